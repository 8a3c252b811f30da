"""Windows of one shard packed into batches of similar length. Not for order: records go back to corpus order after.

Batches never cross a shard, so that a capture that goes on after a crash packs exactly as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shared.windows import Window


def pack(windows: Sequence[Window], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of windows that are read together, longest first.

    Args:
        windows: of one shard.
        batch_tokens: tokens a batch may have, padding included; a longer window makes a batch of its own.
    """
    order = sorted(range(len(windows)), key=lambda index: (-len(windows[index].tokens), index))
    batch: list[int] = []
    for index in order:
        longest = len(windows[batch[0]].tokens) if batch else 0
        if batch and longest * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def tensors(windows: Sequence[Window]) -> tuple[Tensor, Tensor]:
    """Token ids int64 [B, L] padded on the right with 0, and the mask int64 [B, L] that hides the padding."""
    length = max(len(window.tokens) for window in windows)
    tokens_BL = torch.zeros(len(windows), length, dtype=torch.int64)
    mask_BL = torch.zeros(len(windows), length, dtype=torch.int64)
    for row, window in enumerate(windows):
        tokens_BL[row, : len(window.tokens)] = torch.from_numpy(window.tokens)
        mask_BL[row, : len(window.tokens)] = 1
    return tokens_BL, mask_BL
