"""What a running training writes and shows: metrics.jsonl and the progress bar.

Not for what the numbers are (trainer.py) and not for plots (curves.py).
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

from shared.files import append_jsonl, read_jsonl, repair_jsonl, write_jsonl

METRICS = "metrics.jsonl"
MOVING = ("temperature", "kd_weight", "ce_weight")  # in a row only where they move
SPEED = ("tokens_per_second", "data_wait", "peak_memory_bytes")
TRAIN_KEYS = ("loss", "kd", "ce", "perplexity", *MOVING, "learning_rate", "grad_norm", *SPEED)


class MetricsFile(TrainerCallback):  # type: ignore[misc]
    """One line a row: {"step", "epoch", "split": "train" | "validation", "loss", "kd", "ce", ...}.

    `kd` is the divergence at the training temperature in nats, without weight or T^2 (absent where it was not computed);
    `loss` = kd_weight * T^2 * kd + ce_weight * ce. `data_wait` is the share of time spent waiting for batches. Validation
    rows have `agreement` with the teacher's most likely token, and `teacher_tail` and `student_tail`: the masses outside the
    head at T.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        row = as_row(logs, state.global_step, state.epoch)
        if row is not None:
            append_jsonl(self.path, [row])


def as_row(logs: dict[str, Any], step: int, epoch: float | None) -> dict[str, Any] | None:
    """A row of metrics.jsonl from what the Trainer logs; None for its closing summary."""
    place = {"step": step, "epoch": None if epoch is None else round(epoch, 6)}
    if "eval_loss" in logs:
        values = {key.removeprefix("eval_"): value for key, value in logs.items() if key.startswith("eval_")}
        return {**place, "split": "validation", **values}
    if "loss" in logs:
        return {**place, "split": "train", **{key: logs[key] for key in TRAIN_KEYS if key in logs}}
    return None


def cut_back(path: Path, step: int) -> None:
    """Drop rows after `step`: what a killed run wrote beyond its last checkpoint is computed again."""
    repair_jsonl(path)
    if path.is_file():
        write_jsonl(path, [row for row in read_jsonl(path) if row["step"] <= step])


def validation_at(path: Path, step: int | None) -> dict[str, Any] | None:
    """The validation row of a step; of the last one for None."""
    rows = [row for row in read_jsonl(path) if row["split"] == "validation"] if path.is_file() else []
    found = [row for row in rows if step in (None, row["step"])]
    return found[-1] if found else None


class Progress(TrainerCallback):  # type: ignore[misc]
    """One bar with the time left, and one short line a row, both on stderr."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._begun, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        done, total = state.global_step, state.max_steps
        self._begun, self._first = time.perf_counter(), done
        # disable=None: no bar where stderr is not a terminal, the lines stay
        self._bar = tqdm(total=total, initial=done, unit="step", disable=None, dynamic_ncols=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        row = as_row(logs, state.global_step, state.epoch)
        if row is not None:
            tqdm.write(line_of(row, state.max_steps) + self._left(state), file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()

    def _left(self, state: Any) -> str:
        """Time to the end, at this run's speed so far."""
        done, left = state.global_step - self._first, state.max_steps - state.global_step
        seconds = (time.perf_counter() - self._begun) / max(1, done) * left
        return f"  {tqdm.format_interval(seconds)} left" if done and left else ""


def line_of(row: dict[str, Any], max_steps: int) -> str:
    """A row for people."""
    numbers = [("loss", ".4f"), ("kd", ".4f"), ("ce", ".4f"), ("perplexity", ".2f"), ("agreement", ".3f")]
    numbers.append(("bits_per_byte", ".3f"))
    parts = [f"{name} {row[name]:{form if abs(row[name]) < 1e7 else '.2e'}}" for name, form in numbers if name in row]
    if "tokens_per_second" in row:
        parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    epoch = "" if row["epoch"] is None else f" epoch {row['epoch']:.2f}"
    return f"{row['split']:<10} step {row['step']}/{max_steps}{epoch}  " + "  ".join(parts)
