"""Several sources become one corpus: documents are drawn by weight, in an order that a seed fixes on every machine.

Not for what a source is (shared/corpus.py). Nothing is read ahead: one document of one source at a time.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from shared.document import Document


def interleave(sources: Sequence[tuple[float, Iterator[Document]]], seed: int) -> Iterator[Document]:
    """Every document of every source once, each source in its own order.

    The next document is drawn from source i with probability weight_i / sum of the weights of those that still have any, so
    while all last the mixture has the weights' proportions, in documents.

    Args:
        sources: (weight > 0, its documents).
        seed: of Python's generator, whose `random()` is the same on every machine and in every version.
    """
    left, draw = list(sources), random.Random(seed).random
    while left:
        place = _place([weight for weight, _ in left], draw())
        document = next(left[place][1], None)
        if document is None:
            del left[place]
        else:
            yield document


def _place(weights: Sequence[float], point: float) -> int:
    """The index whose share of [0, 1) holds `point`."""
    rest = point * sum(weights)
    for place, weight in enumerate(weights):
        rest -= weight
        if rest < 0:
            return place
    return len(weights) - 1  # rounding
