"""From the training order to optimizer steps: which windows each rank takes, in pieces that fit into memory.

A step takes the next batch_size * gradient_accumulation * ranks windows of the one global order; batch number i of them goes to
rank i modulo ranks. So ranks and accumulation can be traded: the same windows make the same step. The last step of an epoch may
hold fewer.
Not for the order itself (data.py) nor for what a batch holds (batch.py).
Shapes: B windows of a batch, T their most positions, N positions that count.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from cache.record import CachedWindow
from shared.errors import CodestillError
from stage2_student.batch import Collate
from stage2_student.data import EpochOrder
from stage2_student.ranks import Ranks

BY_WINDOW = ("input_ids", "attention_mask")
BY_POSITION = ("targets", "head_ids", "head_logprobs", "head_sizes", "tail", "coords", "target_bytes", "aligned")


class StepOrder(Sampler[list[int]]):
    """One rank's windows of each optimizer step of an epoch; none where the last step has too few.

    Args:
        order: of all training windows.
        batch_size: windows of one forward pass.
        accumulation: batches of a step on each rank.
        ranks: who shares the steps.
    """

    def __init__(self, order: EpochOrder, *, batch_size: int, accumulation: int, ranks: Ranks) -> None:
        self._order, self._batch_size, self._ranks = order, batch_size, ranks
        self._windows = batch_size * accumulation * ranks.world

    def set_epoch(self, epoch: int) -> None:
        self._order.set_epoch(epoch)

    def __len__(self) -> int:
        return math.ceil(len(self._order) / self._windows)

    def __iter__(self) -> Iterator[list[int]]:
        numbers = list(self._order)
        for start in range(0, len(numbers), self._windows):
            yield self._share(numbers[start : start + self._windows])

    def _share(self, step: list[int]) -> list[int]:
        batches = [step[start : start + self._batch_size] for start in range(0, len(step), self._batch_size)]
        return [number for batch in batches[self._ranks.rank :: self._ranks.world] for number in batch]


@dataclass(frozen=True, slots=True)
class CollateStep:
    """The windows of a step -> its batches, each as `Collate` makes it."""

    collate: Collate
    batch_size: int

    def __call__(self, windows: list[CachedWindow | CodestillError]) -> list[dict[str, Any]]:
        starts = range(0, len(windows), self.batch_size)
        return [self.collate(windows[start : start + self.batch_size]) for start in starts]


class StepLoader(DataLoader[Any]):
    """A DataLoader whose batches are whole optimizer steps; the Trainer tells it the epoch."""

    def set_epoch(self, epoch: int) -> None:
        assert isinstance(self.batch_sampler, StepOrder)
        self.batch_sampler.set_epoch(epoch)


def pieces(batch: dict[str, Any], most: int) -> Iterator[dict[str, Any]]:
    """The batch in parts of at most `most` windows; the batch itself where it is no larger.

    Sums of the loss over the parts are the batch's: padding keeps its width, positions stay with their window.
    """
    windows = len(batch["input_ids"])
    if windows <= most:
        yield batch
        return
    for start in range(0, windows, most):
        yield _rows(batch, start, min(start + most, windows))


def _rows(batch: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    width = batch["input_ids"].shape[1]
    first, last = torch.searchsorted(batch["counted"], torch.tensor([start * width, stop * width])).tolist()
    part = {name: batch[name][start:stop] for name in (*BY_WINDOW, "window_ids")}
    part |= {name: batch[name][first:last] for name in BY_POSITION if name in batch}
    return {**part, "counted": batch["counted"][first:last] - start * width}
