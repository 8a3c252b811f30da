"""The validations of a run so far: which was the best, and whether it is time to stop.

Everything follows from the validation rows of metrics.jsonl up to the checkpoint, so a resumed run decides as the
uninterrupted one. The measure is `kd`, the divergence from the teacher at the training temperature.
Not for computing it (trainer.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from shared.files import read_jsonl
from stage2_student.options import EarlyStopping


class Scores(TrainerCallback):  # type: ignore[misc]
    """Asks the Trainer for a checkpoint of each new best student, and to stop when patience has run out.

    Args:
        early: when to stop early; None: never.
        keep_best: whether the best student is published.
    """

    def __init__(self, early: EarlyStopping | None, *, keep_best: bool) -> None:
        self._early, self._keep_best = early, keep_best
        self._kd: dict[int, float] = {}

    def read(self, metrics: Path) -> None:
        """Take up the validations that a resumed run has behind it."""
        rows = read_jsonl(metrics) if metrics.is_file() else ()
        self._kd = {row["step"]: row["kd"] for row in rows if row["split"] == "validation"}

    @property
    def last_step(self) -> int | None:
        """The step of the newest validation."""
        return max(self._kd, default=None)

    @property
    def best_step(self) -> int | None:
        """The step whose student is to be published, the earliest of equals; None: the last one is."""
        return min(self._kd, key=lambda step: (self._kd[step], step)) if self._keep_best and self._kd else None

    @property
    def finished(self) -> bool:
        """Whether the last `patience` validations brought nothing lower."""
        if self._early is None:
            return False
        lowest, stale = float("inf"), 0
        for step in sorted(self._kd):
            lower = self._kd[step] < lowest - self._early.min_delta
            lowest, stale = (self._kd[step], 0) if lower else (lowest, stale + 1)
        return stale >= self._early.patience

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> Any:
        self._kd[state.global_step] = metrics["eval_kd"]
        control.should_training_stop = control.should_training_stop or self.finished
        new_best = self.best_step == state.global_step
        control.should_save = control.should_save or self.finished or new_best
        return control
