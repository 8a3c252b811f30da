"""Does the cache beat cross-entropy? The demo's two students, same text, size and seed, over several seeds.

    python -m benchmarks.embedded_students --out runs/students [--count 2000] [--faulty 0.3] [--epochs 8] [--seeds 0 1 2]

Drives the demo's own configs through the command lines, so it measures what a user would get: one capture, two trainings a seed
(side by side, a core each), one eval of all with 120 held-out tasks, and a table. About two minutes a seed on two cores. Run
again, it goes on. Not a test: the table is for reading.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KINDS = {"distilled": "student", "cross-entropy": "baseline"}


def start(module: str, *words: str) -> subprocess.Popen[bytes]:
    """One of our commands with --set for every word that holds '='."""
    sets = [part for word in words[2:] for part in ("--set", word)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-m", module, *words[:2], *sets], cwd=ROOT, env=environment)


def run(*processes: subprocess.Popen[bytes]) -> None:
    """Wait for all; stop where one failed."""
    codes = [process.wait() for process in processes]
    if any(codes):
        sys.exit("a command failed; its own message stands above")


def main() -> None:
    """Capture, train, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--count", type=int, default=2000, help="documents the students learn from")
    parser.add_argument("--faulty", type=float, default=0.3, help="share of them whose code is wrong")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    out = options.out.resolve()
    corpus = (f"corpus.embedded.count={options.count}", f"corpus.embedded.faulty={options.faulty}")
    run(start("stage1_teacher", "capture", "stage1_teacher/configs/demo.yaml", f"cache={out}/cache", *corpus))
    held_out = f"{out}/held-out-cache"
    run(start("stage1_teacher", "capture", "stage1_teacher/configs/demo-held-out.yaml", f"cache={held_out}"))
    for seed in options.seeds:
        settings = (f"cache={out}/cache", f"validation.cache={held_out}", f"seed={seed}", f"epochs={options.epochs}")
        run(*(train(kind, f"{out}/{kind}-{seed}", settings) for kind in KINDS))
    score(out, options.seeds)
    print_table(json.loads((out / "eval" / "report.json").read_text(encoding="utf-8")))


def train(kind: str, folder: str, settings: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start one student."""
    return start("stage2_student", "train", f"stage2_student/configs/demo-{kind}.yaml", f"out={folder}", *settings)


def score(out: Path, seeds: list[int]) -> None:
    """Teacher and all students in one eval."""
    models = [{"name": "teacher", "path": str(ROOT / "shared" / "embedded_teacher"), "kind": "teacher"}]
    models += [
        {"name": f"{kind}-{seed}", "path": f"{out}/{kind}-{seed}", "kind": role}
        for seed in seeds
        for kind, role in KINDS.items()
    ]
    tasks = [{"name": "embedded", "count": 120, "seed": 5, "preset": "as-is"}]
    sets = (f"out={out}/eval", f"models={json.dumps(models)}", f"tasks={json.dumps(tasks)}")
    run(start("eval", "run", "eval/configs/demo.yaml", *sets, f"held_out={out}/held-out-cache", "latency.runs=1"))


def print_table(report: dict[str, list[dict[str, object]]]) -> None:
    """The lines of the report's table that this question needs."""
    losses = {row["name"]: row for row in report["models"]}
    print("\n| model | held-out loss, nats | pass@1 [95 %] | pass@10 |\n|---|---:|---:|---:|")
    for row in report["tables"][0]["scores"]:  # type: ignore[attr-defined]
        one, ten, name = row["pass_at"]["1"], row["pass_at"]["10"], row["model"]
        interval = f"{one['value']:.3f} [{one['low']:.2f}, {one['high']:.2f}]"
        print(f"| {name} | {losses[name]['loss']:.3f} | {interval} | {ten['value']:.3f} |")


if __name__ == "__main__":
    main()
