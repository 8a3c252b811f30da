"""What a cache keeps of a teacher, at any temperature, a byte: ours beside every peer's encoding, on real logits.

    python -m benchmarks.cache_fidelity --peaked-teacher DIR --mbpp FILE --flat-teacher DIR [--out DIR] [--positions 400]
        [--tokens 44000] [--size k,top_p,directions,step]...

`peaked-teacher` reads MBPP's training rows, `flat-teacher` the source of this interpreter's standard library (either may be
left out). Truth is float64 over the whole vocabulary. Every scheme stands at its own bytes: ours with tokens, indexes and
basis, the peers' without tokens. Gradients are those of the reference student of stage1_teacher/fidelity.py. Prints tables and
bars; `--out` gets results.json and a plot of KL against bytes for each teacher. Not for what a student learns
(cache_students.py) nor for how the bytes divide (cache_encoding.py).
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.cache_fidelity_measure import measure
from benchmarks.cache_fidelity_ours import Ours, Size, Source, parse_size
from benchmarks.cache_fidelity_plot import BAR_TEMPERATURES, BARS, plot
from benchmarks.peers import Bucket, peers

TEMPERATURES = (0.7, 1.0, 1.5, 1.7, 2.0, 3.0, 4.0, 5.0)
SIZES = (
    Size(16, 0.9, 0, 0.1),
    Size(4, 0.9, 24, 0.2),
    Size(4, 0.9, 40, 0.12),
    Size(4, 0.9, 80, 0.048),
    Size(4, 0.9, 100, 0.0262),
    Size(8, 0.95, 144, 0.015),
)
WORST_TAIL = 0.006

COLUMNS = (
    ("scheme", "{:<36}"), ("bytes_per_token", "{:>7.1f}"), ("tail_mass_error", "{:>10.5f}"),
    ("tail_mass_error_worst", "{:>10.5f}"), ("kl", "{:>9.4f}"), ("total_variation", "{:>8.4f}"), ("gradient_angle", "{:>8.2f}"),
    ("gradient_norm_ratio", "{:>8.3f}"), ("gradient_rms", "{:>8.3f}"), ("bias_angle", "{:>8.2f}"),
)  # fmt: skip
HEADER = f"{'scheme':<36}" + "".join(
    f"{name:>{width}}"
    for name, width in (("B/tok", 7), ("tail err", 10), ("worst", 10), ("KL nats", 9), ("TV", 8), ("angle", 8), ("norm", 8),
                        ("RMS", 8), ("bias", 8))
)  # fmt: skip


def table(rows: Sequence[dict[str, Any]], temperature: float) -> str:
    """One temperature, every scheme by bytes."""
    chosen = sorted((row for row in rows if row["temperature"] == temperature), key=lambda row: row["bytes_per_token"])
    lines = ["".join(form.format(row[name]) for name, form in COLUMNS) for row in chosen]
    return "\n".join([f"\nT = {temperature:g}", HEADER, *lines])


def bars(rows: Sequence[dict[str, Any]], ours: Sequence[Ours]) -> list[tuple[str, bool]]:
    """Each bar in words, and whether it holds."""
    shaped = [one for one in ours if one.size.directions]
    worst = max(row["tail_mass_error_worst"] for row in rows if row["scheme"] in {one.name for one in ours})
    found = [(f"tail-mass error at the worst position {worst:.4f} <= {WORST_TAIL}, T in [0.7, 5]", worst <= WORST_TAIL)]
    for most, nats in BARS:
        for what, cost in (("all bytes", "bytes_per_token"), ("without the basis", "shard_bytes_per_token")):
            kls = {one.name: worst_kl(rows, one) for one in shaped if getattr(one, cost) <= most}
            best = min(kls, key=lambda name: kls[name], default=None)
            says = f"{kls[best]:.4f} ({best})" if best else "no size that small"
            holds = best is not None and kls[best] <= nats
            found.append((f"mean KL at T = 1, 1.5, 2 at <= {most} B a token, {what}: {says} <= {nats}", holds))
    return found


def worst_kl(rows: Sequence[dict[str, Any]], one: Ours) -> float:
    """The largest mean KL over the bars' temperatures."""
    chosen = [row for row in rows if row["scheme"] == one.name and row["temperature"] in BAR_TEMPERATURES]
    return max(float(row["kl"]) for row in chosen)


def run(title: str, source: Source, sizes: Sequence[Size], positions: int) -> dict[str, Any]:
    """Measure one teacher on one text, and print it."""
    places = source.sample(positions)
    truth_SV = source.truth(places)
    ours = [source.ours(size, places) for size in sizes]
    bucket = [Bucket(truth_SV, one) for one in ours if not one.size.directions]
    rows = measure(truth_SV, [*ours, *bucket[:1], *peers(truth_SV)], TEMPERATURES)
    entropy = float(-(truth_SV.exp() * truth_SV).sum(1).mean())
    captured = f"{source.tokens} tokens captured of {source.ahead.tokens}"
    about = f"{captured}, {len(places)} positions measured, teacher's entropy {entropy:.2f} nats"
    print(f"\n=== {title}: {about}")
    print("\n".join(table(rows, temperature) for temperature in TEMPERATURES))
    print("\nours, bytes a token: shards + basis")
    for one in ours:
        cost = f"{one.shard_bytes_per_token:>7.2f} +{one.basis_bytes_per_token:>6.2f}"
        print(f"  {one.name:<36}{cost}   worst KL {worst_kl(rows, one):.4f}")
    checks = bars(rows, ours)
    print("\n".join(f"  {'PASS' if holds else 'FAIL'}  {what}" for what, holds in checks))
    parts = {one.name: {"shards": one.shard_bytes_per_token, "basis": one.basis_bytes_per_token} for one in ours}
    return {"title": title, "about": about, "rows": rows, "ours": parts, "bars": checks}


def sources(options: argparse.Namespace) -> dict[str, tuple[str, dict[str, Any], int, int]]:
    """Arguments of Source by title."""
    found: dict[str, tuple[str, dict[str, Any], int, int]] = {}
    if options.peaked_teacher:
        corpus = {"recipe": "mbpp", "path": str(options.mbpp.resolve())}
        found["MBPP train"] = (options.peaked_teacher, corpus, 2048, 0)
    if options.flat_teacher:
        corpus = {"path": sysconfig.get_paths()["stdlib"], "glob": "*.py"}
        found["standard library"] = (options.flat_teacher, corpus, 512, options.tokens)
    return found


def jsonable(value: Any) -> Any:
    """JSON has no infinity: the string "inf"."""
    if isinstance(value, dict):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return "inf" if value == float("inf") else value


def main() -> None:
    """Tables, bars, results.json, plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peaked-teacher", help="model directory or hub id that reads MBPP train")
    parser.add_argument("--mbpp", type=Path, help="mbpp.jsonl")
    parser.add_argument("--flat-teacher", help="model directory or hub id that reads the standard library")
    parser.add_argument("--out", type=Path, help="folder for results.json and the plots")
    parser.add_argument("--positions", type=int, default=400, help="sampled, of each text")
    parser.add_argument("--tokens", type=int, default=44000, help="of the standard library, captured")
    parser.add_argument(
        "--size", action="append", type=parse_size, help="k,top_p,directions,step instead of the default ones"
    )
    options = parser.parse_args()
    if options.peaked_teacher and not options.mbpp:
        parser.error("--peaked-teacher reads --mbpp FILE")
    results = [
        run(title, Source(*arguments), options.size or SIZES, options.positions)
        for title, arguments in sources(options).items()
    ]
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "results.json").write_text(json.dumps(jsonable(results), indent=1) + "\n", encoding="utf-8")
        for result in results:
            plot(result, options.out / f"kl-{result['title'].replace(' ', '-').lower()}.png")


if __name__ == "__main__":
    main()
