"""Table and pictures of cache_students.py's results. Pure functions of the results; trains and captures nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from shared.files import atomic_write

Row = dict[str, Any]

BASE, BEST = "cross-entropy", "online"
NAMES = {
    "cross-entropy": "cross-entropy alone",
    "online": "teacher in memory, full vocabulary",
    "cache-large": "our cache, large",
    "cache-amortised": "our cache, large, basis apart",
    "cache-medium": "our cache, medium",
    "cache-small": "our cache, small",
    "bucket": "bucket (head + one cell)",
    "top-k-large": "top-k renormalised, bytes of large",
    "top-k-medium": "top-k renormalised, bytes of medium",
    "top-k-small": "top-k renormalised, bytes of small",
}
COLOURS = {
    "cross-entropy": "#777777",
    "online": "#000000",
    "cache-large": "#08519c",
    "cache-amortised": "#08306b",
    "cache-medium": "#3182bd",
    "cache-small": "#9ecae1",
    "bucket": "#e6850d",
    "top-k-large": "#a50f15",
    "top-k-medium": "#de2d26",
    "top-k-small": "#fc9272",
}
MEASURES = {"kl": "KL to the teacher, nats", "ce": "validation loss, nats"}


def value(validation: Row, measure: str, temperature: float) -> float:
    """One measure of one validation: `ce`, or `kl` at the temperature."""
    return float(validation["ce"] if measure == "ce" else validation["kl"][f"{temperature:g}"])


def select(results: Iterable[Row], teacher: str, arm: str, temperature: float) -> dict[int, list[Row]]:
    """An arm's validations by seed. Cross-entropy has no temperature: it serves all."""
    return {
        row["seed"]: row["validations"]
        for row in results
        if row["teacher"] == teacher and row["arm"] == arm and row["temperature"] in (None, temperature)
    }


def final(results: Iterable[Row], teacher: str, arm: str, temperature: float, measure: str) -> dict[int, float]:
    """An arm's last measurement by seed."""
    found = select(results, teacher, arm, temperature)
    return {seed: value(rows[-1], measure, temperature) for seed, rows in found.items()}


def shares(results: list[Row], teacher: str, arm: str, temperature: float, measure: str) -> list[float]:
    """Share of the gain of the teacher in memory over cross-entropy, a seed each; none where that gained nothing."""
    worst, best, ours = (final(results, teacher, name, temperature, measure) for name in (BASE, BEST, arm))
    seeds = sorted(worst.keys() & best.keys() & ours.keys())
    return [(worst[seed] - ours[seed]) / (worst[seed] - best[seed]) for seed in seeds if worst[seed] > best[seed]]


def in_words(found: list[float]) -> str:
    """Mean share in percent, and its range over seeds."""
    if not found:
        return "-"
    spread = f" ({min(found):.1%} to {max(found):.1%})" if len(found) > 1 else ""
    return f"{fmean(found):.1%}{spread}"


def weight_of(weights: dict[str, Any], teacher: str, arm: str) -> dict[str, Any] | None:
    """What an arm's cache weighs; the bucket reads the large one's head."""
    found: dict[str, Any] | None = weights.get(f"{teacher} {'cache-large' if arm == 'bucket' else arm}")
    return found


def temperatures_of(results: Iterable[Row]) -> list[float]:
    """All temperatures trained at."""
    return sorted({row["temperature"] for row in results} - {None})


def table_lines(results: list[Row], weights: dict[str, Any], teacher: str, temperature: float) -> list[str]:
    """The Markdown table of one teacher at one temperature."""
    lines = [
        f"\n### {teacher}, T = {temperature:g}\n",
        "| taught by | bytes a token | record's own KL | KL to teacher | share of gain | validation loss | share of gain "
        "| seeds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for arm, name in NAMES.items():
        kl = final(results, teacher, arm, temperature, "kl")
        if not kl:
            continue
        ce = final(results, teacher, arm, temperature, "ce")
        weight = weight_of(weights, teacher, arm)
        size = f"{weight['bytes_per_token']:.1f}" if weight and arm != "bucket" else "-"
        own = f"{weight['record_kl'][f'{temperature:g}']:.4f}" if weight and arm.startswith("cache") else "-"
        found = [in_words(shares(results, teacher, arm, temperature, measure)) for measure in ("kl", "ce")]
        lines.append(
            f"| {name} | {size} | {own} | {fmean(kl.values()):.4f} | {found[0]} "
            f"| {fmean(ce.values()):.4f} | {found[1]} | {len(kl)} |"
        )
    return lines


def print_bytes(weights: dict[str, Any]) -> None:
    """Bytes a token of every cache: shards, and basis included."""
    print("| cache | tokens | bytes a token | basis, MB once | bytes a token with basis |\n|---|---:|---:|---:|---:|")
    for name, weight in weights.items():
        size, basis, tokens = (weight[key] for key in ("bytes_per_token", "basis_bytes", "tokens"))
        print(f"| {name} | {tokens} | {size:.1f} | {basis / 1e6:.2f} | {size + basis / tokens:.1f} |")


def report(results: list[Row], settings: Row, weights: dict[str, Any], out: Path) -> None:
    """Print the tables; write results.json and the pictures."""
    print(f"settings: {json.dumps(settings)}\n")
    print_bytes(weights)
    teachers = sorted({row["teacher"] for row in results})
    for teacher in teachers:
        for temperature in temperatures_of(results):
            print("\n".join(table_lines(results, weights, teacher, temperature)))
        draw_curves(results, teacher, out / f"curves-{teacher}.png")
    print("\nShares are of the same seed. Means over other seeds (last column) cannot be compared with each other.")
    draw_shares(results, weights, teachers, out / "shares.png")
    facts = {"settings": settings, "weights": weights, "results": results}
    atomic_write(out / "results.json", json.dumps(facts, indent=1))


def draw_curves(results: list[Row], teacher: str, path: Path) -> None:
    """Held-out KL and loss over the steps: mean of the seeds as a line, each seed as a point."""
    from matplotlib.figure import Figure

    heats = temperatures_of(results)
    figure = Figure(figsize=(5.2 * len(heats) + 2.6, 8), layout="constrained")
    grid = figure.subplots(len(MEASURES), len(heats), squeeze=False)
    for row, (measure, label) in enumerate(MEASURES.items()):
        for column, temperature in enumerate(heats):
            axis = grid[row][column]
            for arm in NAMES:
                _line(axis, select(results, teacher, arm, temperature), arm, measure, temperature)
            axis.set(
                xlabel="optimiser step after the shared start",
                ylabel=label,
                title=f"trained and measured at T = {temperature:g}",
            )
            axis.grid(alpha=0.25)
            _cut(axis, results, teacher, measure, temperature)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False)
    figure.suptitle(f"Same student, same seeds, {teacher}; held-out text")
    figure.savefig(path, dpi=130)


def _line(axis: Any, by_seed: dict[int, list[Row]], arm: str, measure: str, temperature: float) -> None:
    if not by_seed:
        return
    steps = [row["step"] for row in next(iter(by_seed.values()))]
    runs = [[value(row, measure, temperature) for row in rows] for rows in by_seed.values()]
    style = {"color": COLOURS[arm], "linestyle": "--" if arm in (BASE, BEST) else "-"}
    axis.plot(steps, [fmean(points) for points in zip(*runs, strict=True)], label=NAMES[arm], linewidth=1.8, **style)
    for points in runs:
        axis.plot(steps, points, ".", color=COLOURS[arm], markersize=4)


def _cut(axis: Any, results: list[Row], teacher: str, measure: str, temperature: float) -> None:
    """What is much worse than cross-entropy would flatten all others: leave it above the frame."""
    pair = [final(results, teacher, arm, temperature, measure) for arm in (BASE, BEST)]
    if not all(pair):
        return
    base, best = (fmean(found.values()) for found in pair)
    first = [value(rows[0], measure, temperature) for rows in select(results, teacher, BASE, temperature).values()]
    top = max(*first, base + abs(base - best))
    axis.set_ylim(min(base, best) - 0.08 * (top - min(base, best)), top)


FLOOR = -0.5  # shares below are drawn here
KINDS = {
    "cache": ("o", "our cache, three sizes"),
    "bucket": ("s", "bucket: head and tail mass of the large cache"),
    "top-k": ("v", "top-k renormalised (drawn at -0.5: there or below)"),
}


def draw_shares(results: list[Row], weights: dict[str, Any], teachers: list[str], path: Path) -> None:
    """Share of the gain in KL against bytes a token; what is far below zero is drawn at the frame with its value."""
    from matplotlib.figure import Figure

    heats, widest = temperatures_of(results), max((row["bytes_per_token"] for row in weights.values()), default=1.0)
    figure = Figure(figsize=(5 * len(heats), 4 * len(teachers) + 0.6), layout="constrained")
    grid = figure.subplots(len(teachers), len(heats), squeeze=False)
    for row, teacher in enumerate(teachers):
        for column, temperature in enumerate(heats):
            axis = grid[row][column]
            for arm in NAMES:
                found, weight = shares(results, teacher, arm, temperature, "kl"), weight_of(weights, teacher, arm)
                if found and weight and arm not in (BASE, BEST):
                    _point(axis, arm, weight["bytes_per_token"], fmean(found))
            axis.axhline(1.0, color=COLOURS[BEST], linestyle="--", linewidth=1)
            axis.axhline(0.0, color=COLOURS[BASE], linestyle="--", linewidth=1)
            axis.set(xlabel="bytes a token, basis apart", ylabel="share of the gain in KL")
            axis.set(xlim=(0, 1.15 * widest), ylim=(FLOOR - 0.2, 1.2), title=f"{teacher}, T = {temperature:g}")
            axis.grid(alpha=0.25)
    handles = [grid[0][0].plot([], [], marker, color="#444444", label=label)[0] for marker, label in KINDS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(KINDS), frameon=False)
    figure.suptitle("Gain in KL to the teacher on held-out text: 1 = teacher in memory, 0 = cross-entropy alone")
    figure.savefig(path, dpi=130)


def _point(axis: Any, arm: str, size: float, share: float) -> None:
    marker, _ = KINDS[arm if arm in KINDS else arm.rsplit("-", 1)[0]]
    place = (size, max(share, FLOOR))
    axis.plot(*place, marker, color=COLOURS[arm], markersize=8)
    axis.annotate(f"{share:.1%}", place, textcoords="offset points", xytext=(0, -15), ha="center", fontsize=8)
