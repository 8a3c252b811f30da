"""How many tokens a teacher reads at once: found by trying what fits, halved where memory runs out, remembered for a resume.

Batches decide the last digits of bfloat16, so the budget of a capture is part of its work in progress: the file BUDGET
holds the first budget and every change, by the windows that were read before it. A capture that goes on after a crash
therefore reads every window in the company it had, on whatever card. The finished cache does not name it: two budgets
differ as two cards do. Who wants the same bytes everywhere gives batch_tokens a number that fits everywhere.
Not for packing (batches.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shared.files import atomic_write
from shared.memory import free_memory, is_out_of_memory
from stage1_teacher.batches import FIXED
from stage1_teacher.config import CaptureConfig

if TYPE_CHECKING:
    from stage1_teacher.teacher import TeacherModel

BUDGET = "budget.json"  # in a capture's folder for work in progress
MOST = 32_768  # tokens; a big card is busy long before


class Budget:
    """Tokens of a batch, by shard and windows read in it.

    Args:
        tokens: at the beginning.
        path: where it is remembered; None remembers nothing. What an earlier run left there goes on, unless it began with
            other tokens: then somebody wants others now.
    """

    def __init__(self, tokens: int, path: Path | None = None) -> None:
        self._path = path
        self._changes = [(-1, 0, tokens)]  # shard, windows read in it, tokens from there on
        if path is not None and (kept := _kept(path)) and kept[0] == self._changes[0]:
            self._changes = kept
        else:
            self._keep()

    def at(self, shard: int, done: int) -> int:
        """Tokens of the batch that follows the first `done` windows of a shard."""
        return [tokens for *place, tokens in self._changes if tuple(place) <= (shard, done)][-1]

    def lower(self, shard: int, done: int, tokens: int) -> None:
        """From this batch on. On the disk before anything is read with it."""
        self._changes.append((shard, done, tokens))
        self._keep()

    @property
    def lowered(self) -> int:
        """How often memory ran out."""
        return len(self._changes) - 1

    @property
    def now(self) -> int:
        """Tokens after the last change."""
        return self._changes[-1][2]

    def _keep(self) -> None:
        if self._path is not None:
            atomic_write(self._path, json.dumps(self._changes))


def _kept(path: Path) -> list[tuple[int, int, int]]:
    if not path.is_file():
        return []
    return [(shard, done, tokens) for shard, done, tokens in json.loads(path.read_bytes())]


def budget_for(config: CaptureConfig, teacher: TeacherModel, path: Path) -> Budget:
    """The config's number, or for `auto` what an earlier run of this capture found, or what fits now."""
    if config.batch_tokens != "auto":
        return Budget(config.batch_tokens, path)
    if kept := _kept(path):
        return Budget(kept[0][2], path)
    if teacher.device.type != "cuda":
        return Budget(FIXED, path)
    return Budget(probe(lambda tokens: _try(teacher, config.windows.max_length, tokens)), path)


def probe(attempt: Callable[[int], object], most: int = MOST) -> int:
    """Tokens of a batch: FIXED doubled as long as `attempt` survives it, at most `most`.

    Where memory ran out, half of what still fitted: other windows need other shapes, and an allocator does not use every
    byte. Where not even FIXED fits, a quarter of it: whoever reads lowers that further, or says what card would do.
    """
    tokens = FIXED
    while tokens <= most:
        if not _survives(attempt, tokens):
            return tokens // 4
        tokens *= 2
    return tokens // 2


def _survives(attempt: Callable[[int], object], tokens: int) -> bool:
    try:
        attempt(tokens)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        free_memory()
        return False
    return True


@torch.inference_mode()
def _try(teacher: TeacherModel, length: int, tokens: int) -> None:
    """One forward pass over a batch of the largest windows there may be."""
    tokens_BL = torch.arange(max(1, tokens // length) * length).view(-1, length) % teacher.vocab_size
    teacher.hidden(tokens_BL)
    torch.cuda.synchronize(teacher.device)
