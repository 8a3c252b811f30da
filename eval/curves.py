"""The six panels of training: total, distillation and cross-entropy loss, in training and in validation.

Reads the metrics.jsonl that stage 2 leaves beside a checkpoint. NOT a live monitor.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import UsageError
from shared.files import read_jsonl

LOSSES = {"loss": "total loss", "kd": "distillation loss", "ce": "cross-entropy"}
SPLITS = ("train", "validation")
INCHES = (13.0, 7.0)
DOTS_PER_INCH = 110

Point = tuple[int, float]  # step, nats a token
Panel = tuple[str, str]  # split, key of the loss


@dataclass(frozen=True)
class Curves:
    """Points of one student, by panel; a student without a teacher has no `kd`."""

    student: str
    panels: Mapping[Panel, Sequence[Point]]


def read_curves(student: str, path: Path) -> Curves:
    """Read a metrics.jsonl; rows without a split (totals, notes) are passed over.

    Raises:
        UsageError: a line is not a JSON object, or a row with a split has no step or a loss that is no number.
    """
    panels: dict[Panel, list[Point]] = {}
    for number, row in enumerate(read_jsonl(path), 1):
        if row.get("split") in SPLITS:
            for key in LOSSES.keys() & row.keys():
                point = _point(row, key, f"{path} row {number}")
                panels.setdefault((row["split"], key), []).append(point)
    return Curves(student, panels)


def _point(row: Mapping[str, Any], key: str, where: str) -> Point:
    step, value = row.get("step"), row[key]
    if not isinstance(step, int) or not isinstance(value, (int, float)):
        raise UsageError(
            where, expected=f"numbers for step and {key}", got=f"{step!r} and {value!r}", do="repair the row"
        )
    return step, float(value)


def draw_curves(curves: Sequence[Curves]) -> bytes:
    """The six panels as a PNG: one row a split, one column a loss, one line a student."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.1))
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(SPLITS), len(LOSSES), sharex=True)
    for axes_row, split in zip(grid, SPLITS, strict=True):
        for axes, (key, title) in zip(axes_row, LOSSES.items(), strict=True):
            _draw_panel(axes, [(one.student, one.panels.get((split, key), [])) for one in curves])
            axes.set_title(f"{split}: {title}")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    for axes_row in grid:
        axes_row[0].set_ylabel("nats a token")
    handles = grid[0][0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=min(len(curves), 5), frameon=False)
    png = io.BytesIO()
    figure.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _draw_panel(axes: Any, lines: Sequence[tuple[str, Sequence[Point]]]) -> None:
    for number, (student, points) in enumerate(lines):
        steps = [step for step, _ in points]
        values = [value for _, value in points]
        few = "o" if len(points) < 12 else ""  # a line of one point would be invisible
        axes.plot(steps, values, color=f"C{number}", label=student, linewidth=1.6, marker=few, markersize=3.5)
    if not any(points for _, points in lines):
        axes.text(0.5, 0.5, "not recorded", transform=axes.transAxes, ha="center", va="center", color="0.5")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
