"""BLEU of completions against canonical solutions, by sacrebleu.

NOT a measure of correctness: a right program in other words scores low. It is reported because the first recipe did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class BleuScore:
    """Corpus BLEU, 0 to 100, with sacrebleu's signature, which names every setting that moves the number."""

    value: float
    signature: str


def corpus_bleu(completions: Sequence[str], solutions: Sequence[str]) -> BleuScore:
    """Corpus BLEU (Papineni et al. 2002; sacrebleu's defaults: 13a tokens, exponential smoothing), one reference each.

    Args:
        completions: one a task; the report takes each task's first sample (greedy: the only one).
        solutions: the canonical solutions, in the same order. White space around either does not count.
    """
    from sacrebleu.metrics import BLEU

    assert completions and len(completions) == len(solutions)
    metric = BLEU(force=True)  # force: code ends in tokens that look like tokenised text, which is no mistake here
    found = metric.corpus_score([text.strip() for text in completions], [[text.strip() for text in solutions]])
    return BleuScore(float(found.score), str(metric.get_signature()))
