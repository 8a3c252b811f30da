"""One capture at a time in a directory, without flock: locks do nothing or fail on many network file systems.

A lock is a file made with O_EXCL that names host, process and a random token. While it is held a thread touches it every
HEARTBEAT seconds. It is stale, and taken over, when its process is gone (same host) or nobody touched it for STALE
seconds (another host; the file system's clock is asked, not ours). Two containers that share both a volume and a host name
are taken for one host. Not for readers: sealed shards need no lock.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.errors import RunError, UsageError

HEARTBEAT = 30.0  # seconds between two touches
STALE = 600.0  # seconds without a touch after which a holder on another host is given up
TORN = 2.0  # seconds a lock may stay without its content: it is being written, or a crash tore it

_held: set[str] = set()  # tokens of this process, which may hold locks of several directories


class Lock:
    """A held lock. Made by `only_one`."""

    def __init__(self, path: Path, token: str) -> None:
        self.path, self._token = path, token

    def ours(self) -> bool:
        """Whether the file still is the one we made."""
        return (_read(self.path) or {}).get("token") == self._token

    def require(self) -> None:
        """Be sure, before anything is written, that nobody took over while this process slept.

        Raises:
            RunError: somebody did.
        """
        if not self.ours():
            raise RunError(
                str(self.path.parent.parent),
                expected="this capture alone in it",
                got="another one, which took over after this one had not answered for minutes",
                do="let the other one end",
            )


@contextmanager
def only_one(path: Path) -> Iterator[Lock]:
    """Hold the lock file `path` while the body runs.

    Raises:
        UsageError: somebody else holds it; says who.
    """
    token = secrets.token_hex(8)
    while not _take(path, token):
        holder = _settled(path)
        if holder is not None and _alive(path, holder):
            raise UsageError(
                str(path.parent.parent),
                expected="one capture at a time",
                got=f"process {holder['pid']} on {holder['host']} at work in it",
                do=f"wait for it to end, or delete {path} if that machine is gone",
            )
        _drop_stale(path)
    lock, ended = Lock(path, token), threading.Event()
    heartbeat = threading.Thread(target=_beat, args=(lock, ended), name="cache lock", daemon=True)
    heartbeat.start()
    try:
        yield lock
    finally:
        ended.set()
        heartbeat.join()
        if lock.ours():
            path.unlink(missing_ok=True)
        _held.discard(token)


def _beat(lock: Lock, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        try:
            if lock.ours():
                os.utime(lock.path)
        except OSError:
            continue  # a disk that stumbles: the next beat may pass, and `require` speaks before anything is written


def _take(path: Path, token: str) -> bool:
    path.parent.mkdir(exist_ok=True)  # whoever held it before us may have tidied up just now
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except (FileExistsError, FileNotFoundError):
        return False
    _held.add(token)
    with os.fdopen(handle, "w") as file:
        json.dump({"host": socket.gethostname(), "pid": os.getpid(), "token": token}, file)
    return True


def _read(path: Path) -> dict[str, Any] | None:
    """What the lock says; None when it is gone, or has no whole content."""
    try:
        holder = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return holder if isinstance(holder, dict) and {"host", "pid", "token"} <= set(holder) else None


def _settled(path: Path) -> dict[str, Any] | None:
    """The same, but a lock without content gets TORN seconds to show one."""
    end = time.monotonic() + TORN
    while (holder := _read(path)) is None and path.exists() and time.monotonic() < end:
        time.sleep(0.05)
    return holder


def _alive(path: Path, holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return _seconds_untouched(path) < STALE
    if holder["pid"] == os.getpid():
        return holder["token"] in _held  # if not: a process of an earlier boot or container had our number
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, ValueError, TypeError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _seconds_untouched(path: Path) -> float:
    """By the clock of the machine that keeps the files, which on a network disk is not ours."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".clock.", suffix=".tmp") as now:
        try:
            return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime
        except FileNotFoundError:
            return STALE


def _drop_stale(path: Path) -> None:
    """Take a stale lock away by renaming it first, so that of two who try only one succeeds."""
    grave = path.with_name(f"{path.name}.stale.{os.getpid()}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return
    grave.unlink()
