"""Windows of one shard packed into batches of similar length. Not for order: records go back to corpus order after.

Which windows a teacher reads together shows in the last digits of bfloat16, so a batch depends on nothing but the shard's
windows and the budget: it never crosses a shard, and a capture that goes on after a crash packs exactly as before. What may
lower the budget midway, and how that is remembered, is in budget.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from shared.windows import Window

FIXED = 4096  # tokens a batch has where no memory was probed: on a CPU more are no faster


def tokens_of(batch_tokens: int | Literal["auto"]) -> int:
    """The budget of whatever must not depend on the memory at hand: a fit, a sample, a CPU."""
    return FIXED if batch_tokens == "auto" else batch_tokens


def longest_first(windows: Sequence[Window]) -> list[int]:
    """Indices of a shard's windows in the order they are read; the first batch needs the most memory."""
    return sorted(range(len(windows)), key=lambda index: (-len(windows[index].tokens), index))


def next_batch(windows: Sequence[Window], order: Sequence[int], done: int, batch_tokens: int) -> list[int]:
    """Indices of the windows that are read together after the first `done` of `order`.

    Args:
        batch_tokens: tokens a batch may have, padding included; a longer window makes a batch of its own.
    """
    longest = len(windows[order[done]].tokens)
    return list(order[done : done + max(1, batch_tokens // longest)])


def pack(windows: Sequence[Window], batch_tokens: int | Literal["auto"]) -> Iterator[list[int]]:
    """All batches of a shard, longest windows first."""
    order, done = longest_first(windows), 0
    while done < len(order):
        batch = next_batch(windows, order, done, tokens_of(batch_tokens))
        yield batch
        done += len(batch)


def token_ids(windows: Sequence[Window]) -> Tensor:
    """int64 [B, L], padded on the right with 0: no position of a window ever sees what comes after it."""
    length = max(len(window.tokens) for window in windows)
    tokens_BL = torch.zeros(len(windows), length, dtype=torch.int64)
    for row, window in enumerate(windows):
        tokens_BL[row, : len(window.tokens)] = torch.from_numpy(window.tokens)
    return tokens_BL
