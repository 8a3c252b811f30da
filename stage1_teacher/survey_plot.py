"""survey.png: four pictures that people decide by. Not for the numbers (survey.json)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(found: dict[str, Any], picture: Path) -> None:
    """Write the PNG under a temporary name, then rename it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 8.5), layout="constrained")
    panels = figure.subplots(2, 2)
    _bytes(panels[0, 0], found)
    _gradients(panels[0, 1], found)
    _mass(panels[1, 0], found["heads"])
    _directions(panels[1, 1], found["shape"]["directions"])
    figure.suptitle(f"{found['teacher']['id']}: {found['knowledge']['words']}", wrap=True)
    temporary = picture.with_name(f".{picture.name}.tmp")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.replace(picture)


def _lines(trials: list[dict[str, Any]], name: str) -> dict[str, list[tuple[float, float]]]:
    """A line for each selection and temperature: (bytes, value), cheapest first."""
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in sorted(trials, key=lambda row: float(row["bytes_per_token"])):
        for at in row["temperatures"]:
            label = f"k {row['k']}, T {at['temperature']:g}"
            lines.setdefault(label, []).append((row["bytes_per_token"], at[name]))
    return lines


def _bytes(axes: Any, found: dict[str, Any]) -> None:
    _plot(axes, _lines(found["shape"]["trials"], "kl"))
    advice = found["advice"]
    axes.axhline(advice["wanted_kl"], color="black", linewidth=0.8, linestyle=":")
    axes.plot(
        [advice["bytes_per_token"]], [advice["kl"]], marker="*", markersize=15, color="black", label="recommended"
    )
    axes.set(
        title="KL, teacher to what a student sees", xlabel="bytes a token, basis included", ylabel="nats", yscale="log"
    )
    axes.legend(fontsize=7, ncols=2)


def _gradients(axes: Any, found: dict[str, Any]) -> None:
    _plot(axes, _lines(found["shape"]["trials"], "gradient_angle"))
    axes.set(title="error of a student's gradient", xlabel="bytes a token, basis included", ylabel="degrees")
    if axes.lines:
        axes.legend(fontsize=7, ncols=2)


def _mass(axes: Any, rows: list[dict[str, Any]]) -> None:
    for temperature in sorted({row["temperature"] for row in rows}):
        mine = [row for row in rows if row["temperature"] == temperature and row["top_p"] == 1.0]
        axes.plot([r["k"] for r in mine], [r["kept"] for r in mine], marker="o", label=f"T {temperature:g}")
    axes.set(title="mass that a head of k ids keeps", xlabel="k", ylabel="share", xscale="log", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()


def _directions(axes: Any, curve: list[dict[str, float]]) -> None:
    axes.set(title="directions this teacher needs", xlabel="directions kept", ylabel="KL of leaving out the rest, nats")
    points = [(at["directions"], at["kl"]) for at in curve if at["kl"] > 0]
    if not points:
        axes.text(0.5, 0.5, "no tail shape", ha="center", transform=axes.transAxes)
        return
    axes.plot(*zip(*points, strict=True), marker="o", markersize=3)
    axes.set(yscale="log")
    axes.grid(alpha=0.3)


def _plot(axes: Any, lines: dict[str, list[tuple[float, float]]]) -> None:
    styles = ("-", "--", ":")
    colours: dict[str, int] = {}
    for label, points in lines.items():
        k, _, at = label.partition(", ")
        number = colours.setdefault(k, len(colours))
        order = sorted({text.partition(", ")[2] for text in lines}).index(at)
        axes.plot(
            *zip(*points, strict=True), styles[order % 3], color=f"C{number}", marker="o", markersize=3, label=label
        )
    axes.grid(alpha=0.3)
