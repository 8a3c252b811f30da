"""The training curve as a picture: total, distillation and cross-entropy, training and validation.

Not for comparing runs (eval's report does that) and not for the numbers (metrics.jsonl holds them).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shared.files import read_jsonl

PANELS = (("loss", "total"), ("kd", "distillation, KL at T"), ("ce", "cross-entropy"))
STYLES: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 1.0, "alpha": 0.7},
    "validation": {"linewidth": 1.8, "marker": "o", "markersize": 3},
}


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
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    for axes, (key, name) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        for split, style in STYLES.items():
            steps, values = series(rows, split, key)
            if steps:
                axes.plot(steps, values, label=split, **style)
        axes.set(title=name, xlabel="optimizer steps", ylabel="nats a token")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.suptitle(title)
    temporary = picture.with_name(f".{picture.name}.tmp")
    figure.savefig(temporary, format="png", dpi=120)
    temporary.replace(picture)
