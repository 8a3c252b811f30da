"""A command that cannot outlive whoever started it: run as a small process between the two.

The guard's standard input is a pipe from the starter. When that closes, because the starter ended in whatever way, kill -9
included, or when SIGTERM comes, the command's process group gets SIGTERM and GRACE seconds later SIGKILL. What the command
leaves running in its group goes with it. The guard ends as the command did: same exit code, same signal.
Not for queues of jobs (jobs.py). Nothing of ours is imported: the script runs isolated, in milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

GRACE = 30.0  # seconds from SIGTERM to SIGKILL: a capture drops its shard, a training writes a checkpoint
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def guarded(
    command: Sequence[str], log: Path, folder: Path | None, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start `command` under a guard; stdout and stderr are appended to `log`. SIGTERM to the guard ends it.

    Raises:
        OSError: the log cannot be written, or there is no such folder.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(GRACE), *command],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"TQDM_MININTERVAL": "30", **environment},  # seconds; a log needs no bar ten times a second
            start_new_session=True,  # Ctrl-C is for the starter, which then ends its jobs in order
        )


def main(grace: float, command: list[str]) -> None:
    """Run `command`, and end as it ends."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        preexec_fn=_die_with_parent,  # no thread is there yet
    )
    asked = threading.Event()

    def stop(*_: Any) -> None:
        if not asked.is_set():
            asked.set()
            _signal_group(process.pid, signal.SIGTERM)
            later = threading.Timer(grace, _signal_group, (process.pid, signal.SIGKILL))
            later.daemon = True
            later.start()

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=_when_starter_ends, daemon=True).start()
    code = process.wait()
    _signal_group(process.pid, signal.SIGKILL)
    if code < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        signal.pause()
    os._exit(code)  # the watching thread sits in a read


def _when_starter_ends() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def _die_with_parent() -> None:
    """Where the guard itself is killed with -9 (Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
