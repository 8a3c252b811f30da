"""A run's folder: what is in it, whose it is, and how the finished student enters it.

    run.json        provenance and settings; status running, then finished
    metrics.jsonl   one line a row (watch.py)
    checkpoints/    while training; removed when the student stands
    config.json model.safetensors generation_config.json and tokenizer files   the student, Hugging Face layout
    curves.png      the training curve

Not for training (train.py, trainer.py).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from cache.manifest import TOKENIZER_FOLDER, Manifest
from cache.writer import differences
from shared.errors import RunError, UsageError
from shared.files import atomic_write, require_fresh_directory, sha256_file, sync_directory
from stage2_student.checkpoint import named_when_full
from stage2_student.lora import merged
from stage2_student.other_tokenizer import Own

RUN = "run.json"
FORMAT = "codestill-student"
WEIGHTS = "model.safetensors"


def claim(out: Path, provenance: dict[str, Any], *, begun: bool) -> dict[str, Any]:
    """Make the folder this run's, or find that it already is.

    Args:
        out: the run's folder, new, empty, or of this very run.
        provenance: everything that must be equal for a run to go on; JSON values.
        begun: a checkpoint of the run stands there. Before the first one, settings may still be changed.
    Returns:
        run.json as it stands; its `status` is running or finished.
    Raises:
        UsageError: the folder holds something else, or a run with other settings (the differing fields are named).
    """
    path = out / RUN
    fresh = {"format": FORMAT, "status": "running", **provenance}
    if not path.is_file():
        require_fresh_directory(out)
        write_run(out, fresh)
        return fresh
    run = _read_run(path)
    if run["status"] == "running" and not begun:
        write_run(out, fresh)
        return fresh
    differing = differences({key: run.get(key) for key in provenance}, json.loads(json.dumps(provenance)))
    if differing:
        raise UsageError(
            f"output directory {out}",
            expected="the settings of the run in it",
            got=", ".join(
                f"{key.removeprefix('config.')} {json.dumps(old)} -> {json.dumps(new)}" for key, old, new in differing
            ),
            do="choose another out, or set these back",
        )
    return run


def _read_run(path: Path) -> dict[str, Any]:
    try:
        run = json.loads(path.read_bytes())
    except ValueError:
        run = None
    if not isinstance(run, dict) or run.get("format") != FORMAT or "status" not in run:
        raise UsageError(str(path), expected="a run of this command", got="another file", do="choose another out")
    return run


def write_run(out: Path, run: dict[str, Any]) -> None:
    """run.json, atomically."""
    atomic_write(out / RUN, json.dumps(run, indent=2, sort_keys=True, allow_nan=False) + "\n")


def publish_student(student: Any, out: Path, cache_directory: Path, manifest: Manifest, own: Own | None = None) -> None:
    """Put the finished student into `out`: written whole beside it, flushed, then renamed file by file, weights last.

    So `model.safetensors` under `out` always means a whole student. Adapters are merged; the tokenizer is the cache's, or the
    student's own.
    Raises:
        RunError: a tokenizer file of the cache is damaged, or the disk is full.
    """
    with named_when_full(out):
        temporary = _write_student(student, out)
        if own is None:
            copy_tokenizer(cache_directory, manifest, temporary)
        else:
            own.save(temporary)
        _flush(temporary)
    for path in sorted(temporary.iterdir(), key=lambda path: (path.name == WEIGHTS, path.name)):
        path.replace(out / path.name)
    temporary.rmdir()
    sync_directory(out)


def _write_student(student: Any, out: Path) -> Path:
    """The student without a tokenizer in a temporary folder."""
    temporary = out / "student.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    student = merged(student)
    student.config.use_cache = True  # training turned it off; generation wants it
    student.save_pretrained(temporary, max_shard_size="1000GB")
    return temporary


def _flush(folder: Path) -> None:
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors makes its file private; results are for teammates
        with path.open("rb") as file:
            os.fsync(file.fileno())


def copy_tokenizer(cache_directory: Path, manifest: Manifest, target: Path) -> None:
    """Copy the teacher's tokenizer files, each checked against the manifest.

    Raises:
        RunError: a file is missing or its bytes are not the manifest's.
    """
    for entry in manifest.tokenizer_files:
        source = cache_directory / TOKENIZER_FOLDER / entry.name
        if not source.is_file() or sha256_file(source) != entry.sha256:
            raise RunError(
                f"tokenizer file {entry.name} of the cache",
                expected=f"sha256 {entry.sha256[:12]}",
                got="other bytes" if source.is_file() else "no such file",
                do="get the cache again, then run the same command again",
            )
        shutil.copyfile(source, target / entry.name)
