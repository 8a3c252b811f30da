"""Checkpoints that are whole or absent, and the sentence for a disk that is full.

Not for what is in one: transformers' Trainer writes weights, optimizer, schedule and random states.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from shared.errors import RunError
from shared.files import sync_directory

WRITING = "writing.tmp"  # a checkpoint stands here until it is whole
FULL_DISK_SIGNS = ("No space left on device", "file write failed", "PytorchStreamWriter failed", "os error 28", "quota")


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = folder.glob("checkpoint-*") if folder.is_dir() else ()
    return sorted((path for path in found if path.name.removeprefix("checkpoint-").isdigit()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def seal(written: Path, folder: Path) -> None:
    """Flush a directory's files and move it to its final name."""
    for file in written.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    sync_directory(written)
    final = folder / written.name
    shutil.rmtree(final, ignore_errors=True)
    written.rename(final)
    shutil.rmtree(folder / WRITING)
    sync_directory(folder)


def drop_older(folder: Path, step: int) -> None:
    """Remove checkpoints before `step`."""
    for path in checkpoints(folder):
        if step_of(path) < step:
            shutil.rmtree(path)


def disk_full(folder: Path, error: Exception) -> Exception:
    """The sentence for a full disk, whichever library met it; any other error comes back as it is.

    torch reports a failed write as RuntimeError and safetensors as its own error, both without errno.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT) or any(sign in str(error) for sign in FULL_DISK_SIGNS):
        return RunError(
            f"{folder}",
            expected="room for a checkpoint",
            got="a full disk",
            do="free some space and run the same command again; the last whole checkpoint is kept",
        )
    return error
