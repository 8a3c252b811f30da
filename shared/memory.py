"""Memory that ran out: how every allocator says so, and what is done at once. Not for who halves what then."""

from __future__ import annotations

import gc

import torch

WORDS = ("not enough memory", "can't allocate memory", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator refused: a GPU's has a class for it, a CPU's only words."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in WORDS)
    )


def free_memory() -> None:
    """Give back what a failed pass, or a model that nobody names any more, still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
