"""What a teacher says to a student with another tokenizer: how many positions are aligned, and what ULD gains over text alone.

    python -m benchmarks.stage2_other_tokenizer --teacher DIR --corpus mbpp.jsonl --tokenizers DIR [DIR ...] --out runs/other

One capture of MBPP's training rows by a small StarCoder2 teacher; then, for each tokenizer, the share of the student's
positions where both tokenizers have read the same text, and for each seed the same student trained on the same text:

    text    own tokenizer, cross-entropy alone
    uld W   own tokenizer, cross-entropy + W ULD
    cache   the cache's tokenizer, 0.9 KL + 0.1 cross-entropy: what is lost by having another one

Bits per byte compare them all, on the same held-out tenth of the windows. Runs through the command lines, so it measures what a
user would get; run again, it goes on. Not a test: the table is for reading.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cache.manifest import MANIFEST, TOKENIZER_FOLDER
from cache.reader import Cache, open_cache
from shared.tokenizer import load_tokenizer
from stage2_student.retokenize import Retokenizer
from stage2_student.spelling import spelling_of

ROOT = Path(__file__).resolve().parent.parent
STUDENT = {"architecture": {"layers": 4, "width": 128, "heads": 4, "positions": 512, "dropout": 0.0}}
ULD_WEIGHTS = {"text": 0.0, "uld 0.3": 0.3, "uld 1.5": 1.5}


def run(module: str, verb: str, path: Path, config: dict[str, Any]) -> None:
    """One of our commands with this config; stops where it fails."""
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if subprocess.run(
        [sys.executable, "-m", module, verb, str(path)], cwd=ROOT, env=environment, check=False
    ).returncode:
        sys.exit("a command failed; its own message stands above")


def capture(out: Path, teacher: Path, corpus: Path) -> Cache:
    """MBPP's training rows, read once."""
    if (out / "cache" / MANIFEST).is_file():
        return open_cache(out / "cache")
    config = {
        "cache": str(out / "cache"),
        "teacher": {"model": str(teacher.resolve()), "dtype": "float32"},
        "corpus": {"recipe": "mbpp", "path": str(corpus.resolve())},
        "shape": {"bytes": 40},
    }
    run("stage1_teacher", "capture", out / "capture.yaml", config)
    return open_cache(out / "cache")


def alignment(cache: Cache, tokenizer: Path) -> dict[str, float]:
    """How the two tokenizers cut the cache's text: means over all windows, prompts included."""
    theirs, ours = load_tokenizer(str(cache.directory / TOKENIZER_FOLDER)), load_tokenizer(str(tokenizer.resolve()))
    their_spelling, our_spelling = spelling_of(theirs), spelling_of(ours)
    assert their_spelling is not None and our_spelling is not None
    facts = cache.manifest.tokenizer
    retell = Retokenizer(their_spelling, our_spelling, (facts.eos, facts.bos), ours)
    told = [retell(cache[number]) for number in range(len(cache))]
    aligned = np.concatenate([one.aligned_Q for one in told])
    tokens = sum(len(one.window.tokens) for one in told)
    return {
        "tokens": len(our_spelling.pieces),
        "tokens_for_each_of_the_caches": tokens / int(cache.lengths.sum()),
        "aligned_of_the_students": float(aligned.mean()),
        "aligned_of_the_teachers": float(aligned.sum() / (cache.lengths - 1).sum()),
    }


def settings(arm: str, tokenizer: Path | None) -> dict[str, Any]:
    """What the arms differ by."""
    if tokenizer is None:
        return {"kd_weight": 0.9, "ce_weight": 0.1}
    return {"kd_weight": ULD_WEIGHTS[arm], "ce_weight": 1.0, "other_tokenizer": {"tokenizer": str(tokenizer.resolve())}}


def student(out: Path, arm: str, tokenizer: Path | None, seed: int, steps: int) -> dict[str, Any]:
    """Train one student; its last validation row, with the wall time of the training rows beside it."""
    name = "-".join([arm.replace(" ", "-"), *([tokenizer.name] if tokenizer else []), str(seed)])
    config = {
        "out": str(out / name),
        "cache": str(out / "cache"),
        "validation": {"fraction": 0.1},
        "student": STUDENT,
        "temperature": 1.0,
        "max_steps": steps,
        "batch_size": 8,
        "learning_rate": 3e-3,
        "warmup": steps // 10,
        "scheduler": "cosine",
        "weight_decay": 0.1,
        "seed": seed,
        "log_every": steps,
        "eval_every": steps,
        "save_every": max(1, steps // 4),
        "device": "cpu",
    }
    run("stage2_student", "train", out / f"{name}.yaml", config | settings(arm, tokenizer))
    final: dict[str, Any] = json.loads((out / name / "run.json").read_text(encoding="utf-8"))["final"]
    rows = [json.loads(line) for line in (out / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    speed = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row]
    return {**final, "tokens_per_second": statistics.median(speed)}


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """Means over seeds, with all seeds' bits per byte."""
    lines = [
        "| student | bits per byte | each seed | ce, nats a token | kd | tokens/s |",
        "|---|---:|---|---:|---:|---:|",
    ]
    for name, rows in found.items():
        mean = {
            key: statistics.mean(row[key] for row in rows) for key in ("bits_per_byte", "ce", "kd", "tokens_per_second")
        }
        each = ", ".join(f"{row['bits_per_byte']:.4f}" for row in rows)
        lines.append(
            f"| {name} | {mean['bits_per_byte']:.4f} | {each} | {mean['ce']:.3f} | {mean['kd']:.3f} | "
            f"{mean['tokens_per_second']:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Capture, count, train, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, help="a small teacher's directory")
    parser.add_argument("--corpus", type=Path, required=True, help="MBPP as one JSONL file")
    parser.add_argument(
        "--tokenizers", type=Path, nargs="+", required=True, help="directories of the students' tokenizers"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=120, help="optimizer steps of 8 windows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    options = parser.parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    cache = capture(out, options.teacher, options.corpus)
    cut = {tokenizer.name: alignment(cache, tokenizer) for tokenizer in options.tokenizers}
    print(json.dumps(cut, indent=2))
    arms: list[tuple[str, Path | None]] = [(arm, one) for one in options.tokenizers for arm in ULD_WEIGHTS]
    found: dict[str, list[dict[str, Any]]] = {}
    for arm, tokenizer in [*arms, ("cache", None)]:
        name = f"{arm}, {tokenizer.name if tokenizer else 'cache tokenizer'}"
        found[name] = [student(out, arm, tokenizer, seed, options.steps) for seed in options.seeds]
        (out / "result.json").write_text(json.dumps({"tokenizers": cut, "students": found}, indent=2), encoding="utf-8")
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
