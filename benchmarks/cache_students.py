"""Does a student taught from the cache learn what one taught by the teacher in memory learns?

    python -m benchmarks.cache_students --data FOLDER --out runs/proof [--seeds 0 1] [--steps N] [--arms ...] [--teachers ...]
    python -m benchmarks.cache_students --data FOLDER --out runs/proof --bytes      # captures again; bytes a token only

FOLDER holds python-teacher/, reference-teacher/ and mbpp.jsonl. Two settings: python-teacher over this interpreter's standard
library (training files and held-out files disjoint), reference-teacher over MBPP (train rows; validation rows held out). The
student, its seed, the order of windows and the steps are the same; after a first half of cross-entropy that all arms share, it
is trained by cross-entropy, by the teacher in memory
(full vocabulary), from our cache at three sizes, from the cache's head and one cell for the rest (bucket), and from top-k alone
of the same bytes; at T = 1 and T = 2. Measured on held-out text: loss, and KL to the teacher at the temperature trained at.
The share of an arm is how much of the gain of the teacher in memory over cross-entropy it has.

Every arm leaves its result in --out and is skipped when it is there; caches are captured once. The table and the pictures
(cache_students_plot.py) show whatever is done. Not a test: the figures are for reading.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.cache_students_plot import print_bytes, report
from benchmarks.cache_students_train import (
    HeldOut,
    OnlineTeacher,
    Source,
    from_cache,
    from_teacher,
    from_text,
    order,
    start,
    train,
)
from cache.manifest import Manifest
from cache.reader import open_cache
from shared.config import check_config
from shared.files import atomic_write
from shared.tokenizer import fingerprint, load_tokenizer
from shared.windows import Window, read_windows
from stage1_teacher.capture import capture
from stage1_teacher.config import CaptureConfig
from stage1_teacher.teacher import load_teacher
from stage2_student.data import tail_shape

TEMPERATURES = (1.0, 2.0)
BATCH = 4  # windows a step
PRECISION = "medium"  # of students: float32 products on bfloat16 units, in every arm


@dataclass(frozen=True)
class Size:
    """One size of our cache in bytes a position, basis included, and the k of a plain top-k cache of at least as many.

    With `shape` the settings are given instead, and the bytes are those of shards alone: what the size buys on a corpus so
    large that the basis, stored once, no longer counts.
    """

    bytes: float
    rival_k: int
    shape: tuple[int, float] | None = None  # directions, step


SIZES = {
    "small": Size(24, rival_k=10),
    "medium": Size(40, rival_k=16),
    "large": Size(56, rival_k=24),
    "amortised": Size(56, rival_k=24, shape=(128, 0.0185)),
}

ARMS = ("cross-entropy", "online", "cache-large", "cache-amortised", "bucket", "top-k-large",
        "cache-medium", "cache-small", "top-k-medium", "top-k-small")  # fmt: skip


def corpora(teacher: str, data: Path) -> dict[str, dict[str, Any]]:
    """Training and held-out text of a setting."""
    if teacher == "reference-teacher":
        rows = {"recipe": "mbpp", "path": str(data / "mbpp.jsonl")}
        return {"training": rows, "held-out": rows | {"where": {"task_id": [511, 600]}}}
    library = sysconfig.get_paths()["stdlib"]
    return {
        "training": {"path": library, "glob": "*[mp].py"},  # modules whose names end in m or p
        "held-out": {"path": library, "glob": "*[rt].py"},
    }


WINDOW = {"python-teacher": 128, "reference-teacher": 512}  # tokens at most; MBPP's documents are shorter
HELD_OUT_WINDOWS = 20  # evenly spread over the held-out text


class Setting:
    """A teacher with its text and its caches; all made when first asked for."""

    def __init__(self, teacher: str, data: Path, out: Path) -> None:
        self.name, self.data, self.out = teacher, data, out
        self.teacher_path = str(data / teacher)

    def config(self, side: str, folder: Path, **kept: Any) -> CaptureConfig:
        """A capture of one side of the text."""
        settings = {
            "cache": str(folder),
            "teacher": {"model": self.teacher_path},
            "corpus": corpora(self.name, self.data)[side],
            "windows": {"max_length": WINDOW[self.name], "long_documents": "split"},
            **kept,
        }
        return check_config(CaptureConfig, settings, base=Path.cwd(), name="benchmark")

    def windows(self, side: str) -> list[Window]:
        config = self.config(side, self.out)
        return list(read_windows(config.corpus, self.tokenizer, config.windows)[0])

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.teacher_path)

    @cached_property
    def teacher(self) -> OnlineTeacher:
        return OnlineTeacher(load_teacher(self.config("training", self.out).teacher))

    @cached_property
    def training(self) -> list[Window]:
        return self.windows("training")

    @cached_property
    def held_out(self) -> HeldOut:
        windows = self.windows("held-out")
        stride = max(1, len(windows) // HELD_OUT_WINDOWS)
        return HeldOut(windows[::stride][:HELD_OUT_WINDOWS], self.teacher, 2 * BATCH)

    def captured(self, kind: str, size: str, out: Path) -> tuple[Path, Manifest]:
        """The cache of a size, captured now unless it is there. `kind`: cache (ours) or top-k."""
        chosen, folder = SIZES[size], out / f"{self.name}-{kind}-{size}"
        kept: dict[str, Any] = {"shape": {"bytes": chosen.bytes}}
        if chosen.shape is not None:
            kept = {"shape": dict(zip(("directions", "step"), chosen.shape, strict=True))}
        if kind == "top-k":
            kept = {"selection": {"k": chosen.rival_k, "top_p": 1.0}, "shape": None}
        if (folder / "manifest.json").is_file():
            return folder, open_cache(folder).manifest
        torch.set_float32_matmul_precision("highest")  # as a user's capture; the basis depends on it
        manifest = capture(self.config("training", folder, **kept), progress=False)
        torch.set_float32_matmul_precision(PRECISION)
        return folder, manifest

    def source(self, arm: str) -> Source:
        """Where an arm's belief comes from."""
        if arm == "cross-entropy":
            return from_text(self.training)
        if arm == "online":
            return from_teacher(self.training, self.teacher)
        kind, size = ("cache", "large") if arm == "bucket" else arm.rsplit("-", 1)
        cache = open_cache(self.captured(kind, size, self.out / "caches")[0])
        if kind == "top-k":
            return from_cache(cache, "renormalised", None)
        return from_cache(cache, "bucket", None) if arm == "bucket" else from_cache(cache, "full", tail_shape(cache))


def runs(options: argparse.Namespace) -> Iterator[tuple[str, str, float | None, int, Path]]:
    """(teacher, arm, T, seed, result's file), in the order they are done: what matters most first, seed after seed."""
    for seed in options.seeds:
        for arm in options.arms:
            for temperature in (None,) if arm == "cross-entropy" else TEMPERATURES:
                for teacher in options.teachers:
                    heat = "" if temperature is None else f"-T{temperature:g}"
                    name = f"{teacher}-{arm}{heat}-seed{seed}-steps{options.steps}.json"
                    yield teacher, arm, temperature, seed, options.out / "results" / name


def run(setting: Setting, arm: str, temperature: float | None, seed: int, steps: int) -> dict[str, Any]:
    """Train and measure one student."""
    windows, scored = setting.training, setting.held_out
    half = {"steps": steps // 2, "batch": BATCH, "seed": seed}
    folder = setting.out / "starts" / f"{setting.name}-seed{seed}-steps{steps}"
    student = start(folder, windows, fingerprint(setting.tokenizer), scored.vocab_size, **half)
    batches = list(order(len(windows), steps, BATCH, seed))[steps // 2 :]
    source, begun = setting.source(arm), time.process_time()
    rows = train(student, source, scored, batches, temperature or 1.0, (temperature,) if temperature else TEMPERATURES)
    facts = {"teacher": setting.name, "arm": arm, "temperature": temperature, "seed": seed, "steps": steps}
    text = {"training_windows": len(windows), "held_out_positions": scored.positions}
    return facts | text | {"validations": rows, "cpu_seconds": time.process_time() - begun}


def weigh(manifest: Manifest) -> dict[str, Any]:
    """Bytes of the shards a token; the basis, stored once, apart."""
    per_token = manifest.total("bytes") / manifest.total("tokens")
    kl = {f"{row.temperature:g}": row.kl for row in manifest.fidelity}
    return {"bytes_per_token": per_token, "basis_bytes": manifest.size - manifest.total("bytes"),
            "tokens": manifest.total("tokens"), "record_kl": kl}  # fmt: skip


def weigh_all(settings: dict[str, Setting], out: Path, *, anew: bool) -> dict[str, Any]:
    """Sizes of the caches that are there; `anew`: of all, captured into a folder that is dropped afterwards."""
    found: dict[str, Any] = {}
    for setting in settings.values():
        for kind in ("cache", "top-k"):
            for size in (size for size in SIZES if kind == "cache" or SIZES[size].shape is None):
                if anew or (out / f"{setting.name}-{kind}-{size}" / "manifest.json").is_file():
                    found[f"{setting.name} {kind}-{size}"] = weigh(setting.captured(kind, size, out)[1])
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    teachers = list(WINDOW)
    parser.add_argument("--data", type=Path, required=True, help="folder with both teachers and mbpp.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="folder of caches, results and pictures")
    parser.add_argument("--teachers", nargs="+", default=teachers, choices=teachers)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--steps",
        type=int,
        default=200,
        help=f"optimiser steps of {BATCH} windows; the first half is cross-entropy, shared by all arms of a seed",
    )
    parser.add_argument("--bytes", action="store_true", help="only capture all sizes again and print bytes a token")
    options = parser.parse_args()
    options.data, options.out = options.data.resolve(), options.out.resolve()
    return options


def main() -> None:
    """Run what is missing, then show what is there."""
    options = parse()
    torch.set_float32_matmul_precision(PRECISION)
    settings = {teacher: Setting(teacher, options.data, options.out) for teacher in options.teachers}
    (options.out / "results").mkdir(parents=True, exist_ok=True)
    if options.bytes:
        with TemporaryDirectory(dir=options.out) as folder:
            return print_bytes(weigh_all(settings, Path(folder), anew=True))
    for teacher, arm, temperature, seed, path in runs(options):
        if not path.is_file():
            result = run(settings[teacher], arm, temperature, seed, options.steps)
            atomic_write(path, json.dumps(result, indent=1))
            print(f"{path.stem}: {result['validations'][-1]}, {result['cpu_seconds']:.0f} s of CPU", flush=True)
    pattern = f"*-steps{options.steps}.json"
    done = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((options.out / "results").glob(pattern))]
    sizes = {name: asdict(size) for name, size in SIZES.items()}
    report(
        [row for row in done if row["teacher"] in settings],
        sizes,
        weigh_all(settings, options.out / "caches", anew=False),
        options.out,
    )
    return None


if __name__ == "__main__":
    main()
