"""`sweep --dry-run` and `estimate`, for people: what would run, how large, how long. Nothing is started and nothing written.

Not for the numbers themselves (estimate.py, estimate_time.py).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from shared.jobs import environment
from stage2_student.config import TrainConfig
from stage2_student.estimate import Estimate, what_fits
from stage2_student.estimate_time import Clock
from stage2_student.sweep_report import markdown
from stage2_student.sweep_runs import Run, Status


@dataclass(frozen=True, slots=True)
class Planned:
    """One row of the plan; the status "corner" is of a place in the search space, not of a run."""

    status: Status | str
    run: Run
    known: Estimate

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        return {"run": self.run.id, "status": self.status, "overrides": self.run.overrides, **self.known.as_json()}


def plan(runs: Sequence[tuple[str, Run]], at_once: int) -> list[Planned]:
    """Estimates of all runs, each timed on as many threads as it would have beside `at_once` - 1 others."""
    threads, clock = torch.get_num_threads(), Clock()
    torch.set_num_threads(int(environment(at_once, None)["OMP_NUM_THREADS"]))
    try:
        shown = tqdm(runs, desc="estimating", unit="run", disable=None)
        return [Planned(status, run, clock.estimate(run.config)) for status, run in shown]
    finally:
        torch.set_num_threads(threads)


def plan_text(planned: Sequence[Planned], at_once: int, trials: int) -> str:
    """The table of runs, and one line on all of them.

    Args:
        planned: the rows.
        at_once: runs side by side.
        trials: that a search has still to draw while it runs.
    """
    head = ["run", "what", "status", "parameters", "steps", "memory", "time"]
    lines = [
        [
            row.run.id if row.status != "corner" else "-",
            row.run.label,
            row.status,
            f"{row.known.parameters / 1e6:.3f} M",
            str(row.known.counts.steps),
            f"{row.known.memory_bytes / 1e9:.2f} GB" + ("" if row.known.fits else " does not fit"),
            duration(row.known.seconds),
        ]
        for row in planned
    ]
    return "\n\n".join([markdown(head, lines), _whole(planned, at_once, trials)])


def _whole(planned: Sequence[Planned], at_once: int, trials: int) -> str:
    left = [row.known for row in planned if row.status in ("new", "begun", "failed")]
    seconds = sum(known.seconds or 0.0 for known in left) / max(1, min(at_once, len(left)))
    memory = sum(sorted((known.memory_bytes for known in left), reverse=True)[:at_once])
    parts = [f"{len(left)} runs to train, {at_once} at once: about {duration(seconds)} from start to end"]
    parts += [f"{memory / 1e9:.2f} GB together"] if left and left[0].device == "cpu" else []
    parts += [f"{trials} more are drawn while it runs, between the corners shown"] if trials else []
    return "; ".join(parts)


def estimate_text(config: TrainConfig, known: Estimate) -> str:
    """`estimate` for people: a line a fact."""
    counts, about = known.counts, "" if known.counts.exact else "about "
    memory = ", ".join(f"{name.replace('_', ' ')} {size / 1e9:.3f}" for name, size in known.memory.items() if size)
    lines = [
        f"parameters  {known.parameters:,}" + _trained(known),
        f"data        {about}{len(counts.lengths_W):,} windows, {about}{counts.tokens:,} tokens an epoch; "
        f"longest window {counts.longest} tokens; {about}{counts.scored:,} validation windows",
        f"steps       {counts.steps:,} ({known.epochs:g} epochs)",
        f"memory      {known.memory_bytes / 1e9:.2f} GB of the {known.device}'s {known.room / 1e9:.1f}: {memory}",
        f"time        {duration(known.seconds)} on this {known.device}" + _threads(known),
    ]
    if not known.fits:
        lines.append(f"the student does not fit this {known.device}; {what_fits(config)}")
    return "\n".join(lines)


def _trained(known: Estimate) -> str:
    return "" if known.trained == known.parameters else f", {known.trained:,} of them trained"


def _threads(known: Estimate) -> str:
    named = "OMP_NUM_THREADS" in os.environ
    return (
        f", {torch.get_num_threads()} threads{' (OMP_NUM_THREADS)' if named else ''}" if known.device == "cpu" else ""
    )


def duration(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "not timed"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
