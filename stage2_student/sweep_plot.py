"""The picture of a sweep: quality against parameters and against time, the Pareto fronts marked.

Not for the numbers (sweep_report.py) nor for one run's curve (curves.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stage2_student.sweep_report import Row

AXES = {"parameters": ("parameters, millions", 1e-6), "seconds": ("training seconds", 1.0)}
NAMED = 12  # runs that get a number and a line below; more cover each other
MARKERS = {"finished": "o", "stopped": "x"}
LINE = 0.19  # inches a line of the names below takes


def draw(rows: Sequence[Row], picture: Path, title: str) -> None:
    """Validation ce and kd against parameters and training seconds; runs on a front are joined by a line.

    Args:
        rows: in the table's order; the numbers in the picture are the table's.
        picture: where the PNG goes, written under a temporary name and renamed.
        title: above it.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    named, colors = rows[:NAMED], [colormaps["tab10"](number % 10) for number in range(len(rows))]
    height = 8.5 + LINE * len(named)
    figure = Figure(figsize=(12, height))
    panels = [(quality, cost) for quality in ("ce", "kd") for cost in AXES]
    for axes, (quality, cost) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        _panel(axes, rows, quality, cost, colors)
    bottom = (0.8 + LINE * len(named)) / height
    figure.subplots_adjust(left=0.07, right=0.98, top=0.94, bottom=bottom, hspace=0.25, wspace=0.16)
    figure.suptitle(f"{title}: validation quality against cost, lower left is better")
    for place, row in enumerate(named):
        line = f"{place + 1}   {row.label} ({row.status})"
        figure.text(0.07, LINE * (len(named) - place - 0.5) / height, line, fontsize=9, color=colors[place])
    temporary = picture.with_name(f".{picture.name}.tmp")
    figure.savefig(temporary, format="png", dpi=100, metadata={"Software": None})
    temporary.replace(picture)


def _panel(axes: Any, rows: Sequence[Row], quality: str, cost: str, colors: Sequence[Any]) -> None:
    name, unit = AXES[cost]
    points = {
        number: (getattr(row, cost) * unit, getattr(row, quality))
        for number, row in enumerate(rows)
        if row.status in MARKERS and getattr(row, quality) is not None and getattr(row, cost) is not None
    }
    front = sorted(points[number] for number in points if f"{quality}/{cost}" in rows[number].front)
    if front:
        style = {"color": "black", "linewidth": 1, "marker": "o", "fillstyle": "none", "markersize": 13}
        axes.plot(*zip(*front, strict=True), **style, label="Pareto front")
        axes.legend()
    for number, point in points.items():
        axes.scatter(*point, color=colors[number], marker=MARKERS[rows[number].status], zorder=3)
        if number < NAMED:
            # each number a little further to the right, so that points side by side stay readable
            offset = (9 + 9 * (number % 5), 4)
            axes.annotate(f"{number + 1}", point, textcoords="offset points", xytext=offset, color=colors[number])
    alike = bool(front) or not points
    axes.set(
        xlabel=name,
        ylabel=f"{quality}, nats a token",
        title="" if alike else f"{quality} of each run's own loss: no front",
    )
    axes.margins(x=0.15, y=0.1)
    axes.grid(alpha=0.3)
