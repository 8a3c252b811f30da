"""Between a GPU and the CPU without waiting: pinned memory, and a stream of its own for what leaves.

Not for what leaves (reading.py). On a CPU nothing has to move.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Leaving:
    """The way out of `device`: copies run beside whatever the device computes next."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def take(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], object]]:
        """(The same on the CPU, what to call before they are read)."""
        if self._stream is None:
            return list(tensors), lambda: None
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copies = [_copy(tensor) for tensor in tensors]
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._stream)
        for tensor in tensors:
            tensor.record_stream(self._stream)  # its memory is not given away before the copy is done
        return copies, arrived.synchronize


def _copy(tensor: Tensor) -> Tensor:
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return host.copy_(tensor, non_blocking=True)


def pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU that can be sent to `device` without waiting."""
    return tensor.pin_memory() if device.type == "cuda" else tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Send it there, without waiting."""
    return pinned(tensor, device).to(device, non_blocking=True)
