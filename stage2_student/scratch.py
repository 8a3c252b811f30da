"""Large work buffers that are allocated once and used again, step after step.

A fresh [chunk, vocabulary] tensor is hundreds of thousands of page faults; on a CPU these cost more than the arithmetic. Not
for anything that must outlive the next `take` of the same name: gradients that autograd keeps are never scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


class Scratch:
    """Named flat buffers that grow to the largest shape asked for and never shrink."""

    def __init__(self) -> None:
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int], like: Tensor) -> Tensor:
        """A contiguous tensor of `shape` with like's dtype and device; its contents are whatever was left there."""
        size, flat = prod(shape), self._flat.get(name)
        if flat is None or flat.numel() < size or flat.dtype != like.dtype or flat.device != like.device:
            self._flat.pop(name, None)  # free the old one first: the peak is the larger, not the sum
            flat = self._flat[name] = torch.empty(size, dtype=like.dtype, device=like.device)
        return flat[:size].view(*shape)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(flat.numel() * flat.element_size() for flat in self._flat.values())
