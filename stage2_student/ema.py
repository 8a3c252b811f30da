"""A moving average of the student's weights, for validation and publication.

    shadow <- d * shadow + (1 - d) * weights     after every optimizer step, d = min(decay, (1 + step) / (10 + step))

The smaller d of early steps keeps the first, random weights from staying (TensorFlow's ExponentialMovingAverage has the same
rule). Not for averaging over ranks (ranks.py): every rank holds the same shadow.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

FILE = "ema.safetensors"


class Shadow:
    """The average of the parameters that learn, in their own dtype, on their device.

    Args:
        model: the student, where it will train.
        decay: the largest d.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._shadow = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, counted from 1."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self._shadow.values()), [weight.data for weight in self._weights.values()], share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While the body runs, the model holds the shadow. Nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, weight in self._weights.items():
            weight.data, self._shadow[name] = self._shadow[name], weight.data

    def save(self, folder: Path) -> None:
        """Into a checkpoint."""
        save_file({name: tensor.contiguous() for name, tensor in self._shadow.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """From a checkpoint."""
        for name, tensor in load_file(folder / FILE).items():
            self._shadow[name].copy_(tensor)
