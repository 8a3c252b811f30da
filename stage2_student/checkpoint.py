"""Checkpoints that are whole or absent, and the sentence for a disk that is full.

Not for what is in one: transformers' Trainer writes weights, optimizer, schedule and random states.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from shared.errors import RunError
from shared.files import sync_directory

WRITING = "writing.tmp"  # a checkpoint stands here until it is whole
NO_ROOM = 1 << 16  # bytes; a disk with less has just refused a write
FULL_DISK_SIGNS = ("No space left on device", "os error 28", "PytorchStreamWriter failed", "inline_container.cc")


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


def drop_older(folder: Path, step: int, *, keep: int | None) -> None:
    """Remove checkpoints before `step`, except that of step `keep`."""
    for path in checkpoints(folder):
        if step_of(path) < step and step_of(path) != keep:
            shutil.rmtree(path)


@contextmanager
def named_when_full(folder: Path) -> Iterator[None]:
    """Turn whatever a library raises on a full disk into our sentence; any other error passes as it is.

    Raises:
        RunError: the disk under `folder` is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not is_full(folder, error):
            raise
        raise RunError(
            str(folder),
            expected="room for the student's files",
            got="a full disk",
            do="free some space and run the same command again; what was saved before is kept",
        ) from None


def is_full(folder: Path, error: Exception) -> bool:
    """Whether a failed write met a full disk. torch and safetensors say so without errno, torch not even in words."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(sign in str(error) for sign in FULL_DISK_SIGNS) or shutil.disk_usage(folder).free < NO_ROOM
