"""Several ranks of one training on this machine, as forks of the test process: what a launcher does, without its seconds.

Not a test file.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

from accelerate.state import AcceleratorState

from shared.errors import CodestillError

MOST_SECONDS = 200  # ranks that wait for each other for ever are killed


def launch(folder: Path, work: Callable[[int], object], world: int = 2) -> tuple[list[int], list[str]]:
    """Run `work(rank)` in each of `world` processes.

    Returns:
        each rank's exit code (negative: the signal that killed it), and what it wrote to stderr.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    pids = [_fork(folder, work, rank, world, port) for rank in range(world)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return codes, [(folder / f"stderr-{rank}").read_text() for rank in range(world)]


def _fork(folder: Path, work: Callable[[int], object], rank: int, world: int, port: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in place.items()})
    signal.alarm(MOST_SECONDS)
    AcceleratorState._reset_state(True)  # earlier runs of this process were alone
    code = 70
    try:
        with (folder / f"stderr-{rank}").open("w") as stderr, redirect_stderr(stderr):
            code = _exit_code(work, rank)
    finally:
        if sys.exc_info()[0] is not None:
            with (folder / f"stderr-{rank}").open("a") as stderr:
                traceback.print_exc(file=stderr)
        os._exit(code)


def _exit_code(work: Callable[[int], object], rank: int) -> int:
    try:
        work(rank)
    except CodestillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as error:
        return int(error.code or 0)
    return 0
