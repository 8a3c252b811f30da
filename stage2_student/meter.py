"""What a training row of metrics.jsonl says: means over the positions since the last row, and how fast they came.

Not for where rows go (watch.py) nor for validation (trainer.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from stage2_student.loss import DistillationLoss, LossTerms
from stage2_student.memory import peak_bytes
from stage2_student.ranks import Ranks


def perplexity(ce: float) -> float:
    """exp of a cross-entropy in nats; beyond 700 exp overflows, where perplexity says nothing anyway."""
    return math.exp(min(ce, 700.0))


class Meter:
    """Sums since the last training row, kept on the device so that a step need not wait for them.

    Args:
        loss: of training; says whether there is a kd, and what moves.
        ranks: whose sums are added up for a row.
    """

    def __init__(self, loss: DistillationLoss, ranks: Ranks) -> None:
        self._loss, self._ranks = loss, ranks
        self._restart()

    def _restart(self) -> None:
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._positions, self._tokens, self._waited = 0, 0, 0.0
        self._since = time.perf_counter()

    def add(self, terms: LossTerms, tokens: int) -> None:
        """One batch."""
        sums = torch.stack((terms.loss.detach(), terms.kd, terms.ce)).double()
        self._sums = self._sums.to(sums.device) + sums
        self._positions, self._tokens = self._positions + terms.positions, self._tokens + tokens

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time in here is spent waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here (validation, samples, saving) does not count as training."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def take(self, device: torch.device) -> dict[str, float]:
        """The row's numbers; starts anew. Without kd_weight there is no kd: training does not compute it.

        Returns:
            loss, kd, ce in nats a position; perplexity; tokens_per_second of all ranks together; data_wait, the share of
            time in which this process waited for batches; peak_memory_bytes of this process (GPU memory on a GPU); and
            temperature, kd_weight, ce_weight where they move.
        """
        seconds = max(1e-9, time.perf_counter() - self._since)
        *sums, positions, tokens = self._ranks.add([*self._sums.tolist(), self._positions, self._tokens])
        row = dict(zip(("loss", "kd", "ce"), (value / max(1, positions) for value in sums), strict=True))
        if not self._loss.distils:
            del row["kd"]
        row["perplexity"] = perplexity(row["ce"])
        row |= {"tokens_per_second": tokens / seconds, "data_wait": self._waited / seconds}
        row |= {"peak_memory_bytes": peak_bytes(device), **self._loss.moving()}
        self._restart()
        return row

    def state(self) -> dict[str, Any]:
        """What a checkpoint in the middle of a row keeps; exact."""
        return {"sums": self._sums.tolist(), "positions": self._positions, "tokens": self._tokens}

    def load(self, state: dict[str, Any]) -> None:
        """Go on with the row."""
        self._restart()
        self._sums = torch.tensor(state["sums"], dtype=torch.float64)
        self._positions, self._tokens = state["positions"], state["tokens"]
