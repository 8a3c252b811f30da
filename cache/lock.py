"""One capture at a time in a directory, without flock: locks do nothing or fail on many network file systems.

A lock is a file made with O_EXCL that names host and process. Its holder touches it while it works; one whose process is
gone (same host), or that nobody touched for STALE_SECONDS, is taken over. Not for readers: sealed shards need no lock.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shared.errors import UsageError

STALE_SECONDS = 900.0  # far longer than one shard takes; only holders on other hosts are judged by it


@contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Hold the lock file `path` while the body runs.

    Raises:
        UsageError: somebody else holds it; says who.
    """
    while not _take(path):
        holder = _holder(path)
        if holder is not None and _alive(path, holder):
            got = f"process {holder['pid']} on {holder['host']} at work in it"
            raise UsageError(
                str(path.parent.parent), expected="one capture at a time", got=got, do="wait for it to end"
            )
        _drop_stale(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def touch(path: Path) -> None:
    """Tell other hosts that the holder still works."""
    os.utime(path)


def _take(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with os.fdopen(handle, "w") as file:
        json.dump({"host": socket.gethostname(), "pid": os.getpid()}, file)
    return True


def _holder(path: Path) -> dict[str, object] | None:
    """Who made the lock; None when it is gone or was torn by a crash while it was written."""
    try:
        holder = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return holder if isinstance(holder, dict) and {"host", "pid"} <= set(holder) else None


def _alive(path: Path, holder: dict[str, object]) -> bool:
    if holder["host"] != socket.gethostname():
        return time.time() - path.stat().st_mtime < STALE_SECONDS
    if holder["pid"] == os.getpid():
        return False  # we do not hold it: a process of an earlier boot or container had our number
    try:
        os.kill(int(str(holder["pid"])), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:
        return True
    return True


def _drop_stale(path: Path) -> None:
    """Take a stale lock away by renaming it first, so that of two who try only one succeeds."""
    grave = path.with_name(f"{path.name}.stale.{os.getpid()}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return
    grave.unlink()
