"""The training curve as a picture: losses, agreement with the teacher, tail masses, learning rate, speed.

Not for comparing runs (eval's report does that) and not for the numbers (metrics.jsonl holds them).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.files import read_jsonl

NATS = "nats a token"
STYLES: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 1.0, "alpha": 0.7},
    "validation": {"linewidth": 1.8, "marker": "o", "markersize": 3},
}
COLUMNS = 4


@dataclass(frozen=True, slots=True)
class Panel:
    """One small plot: the keys of metrics.jsonl in it, and what their lines are called where the split does not say it."""

    title: str
    unit: str
    keys: dict[str, str]
    split: str | None = None  # None: both

    def lines(self, rows: list[dict[str, Any]]) -> list[tuple[str, str, list[int], list[float]]]:
        """(label, split, steps, values) of every line that has points."""
        splits = STYLES if self.split is None else [self.split]
        found = [
            (name or split, split, *series(rows, split, key)) for key, name in self.keys.items() for split in splits
        ]
        return [line for line in found if line[2]]


PANELS = (
    Panel("total", NATS, {"loss": ""}),
    Panel("distillation, the divergence at T", NATS, {"kd": ""}),
    Panel("cross-entropy", NATS, {"ce": ""}),
    Panel("perplexity", "", {"perplexity": ""}),
    Panel("same most likely token as the teacher", "share of tokens", {"agreement": ""}, "validation"),
    Panel("mass outside the head at T", "share", {"teacher_tail": "teacher", "student_tail": "student"}, "validation"),
    Panel("learning rate", "", {"learning_rate": ""}, "train"),
    Panel("speed", "tokens a second", {"tokens_per_second": ""}, "train"),
)


def series(rows: list[dict[str, Any]], split: str, key: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one line, rows without the value left out."""
    points = [(row["step"], row[key]) for row in rows if row["split"] == split and key in row]
    return [step for step, _ in points], [value for _, value in points]


def draw_curves(metrics: Path, picture: Path, title: str) -> None:
    """Write the PNG under a temporary name, then rename it.

    Args:
        metrics: metrics.jsonl of a run.
        picture: where the PNG goes.
        title: above it.
    Raises:
        UsageError: no metrics, or a damaged line.
    """
    from matplotlib.figure import Figure

    rows = list(read_jsonl(metrics))
    figure = Figure(figsize=(16, 7))
    for axes, panel in zip(figure.subplots(2, COLUMNS).flat, PANELS, strict=True):
        for label, split, steps, values in panel.lines(rows):
            axes.plot(steps, values, label=label, **STYLES[split])
        axes.set_title(panel.title, fontsize=10)
        axes.set(xlabel="optimizer steps", ylabel=panel.unit)
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    figure.suptitle(title)
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.08, top=0.9, wspace=0.3, hspace=0.35)
    temporary = picture.with_name(f".{picture.name}.tmp")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(picture)
