"""The judging server: a bare process that judges one program at a time and watches over it.

NOT importable into a process that holds torch and never forked from one: eval/judge_pool.py starts it by path
(eval/sandbox_main.py). It forks the zygote first, before any task is read; for every request on stdin it then joins the task's
tester and a fresh cell by a socket pair, waits, has the cell killed and answers on stdout. Frames of JSON each way.

What decides a timeout is CPU time (an rlimit). A program that sleeps uses none, so the server also counts the time in
which neither side was running or waiting for a processor; time lost to a loaded machine is not counted. Wall time is
only the backstop of a backstop.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from eval.sandbox_bench import Bench, key_of
from eval.sandbox_cell import run_zygote
from eval.sandbox_confine import Confinement, become_reaper
from eval.sandbox_wire import read_frame, write_frame

TICK = 0.1  # seconds between two looks at a program that is still running
IDLE_GRACE = 2.0  # seconds a program may do nothing, beyond its CPU limit
WALL_FACTOR, WALL_GRACE = 20, 60.0  # wall seconds at most: factor * CPU limit + grace
TESTER_FACTOR = 3  # the test text may use this many times the program's CPU limit
MAX_THREADS, MAX_FOLDER_BYTES, MAX_FOLDER_FILES = 64, 64 << 20, 4096
REQUEST_LIMIT = 256 << 20  # bytes; requests come from our own side

# Judged programs import these most; loaded once here, inherited by every fork. They change nothing for a program.
PRELOADED = (
    "abc", "bisect", "cmath", "collections.abc", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "itertools", "json", "math", "operator", "random", "re", "statistics", "string",
    "threading", "traceback", "types", "typing",
)  # fmt: skip


@dataclass
class End:
    """How a run ended: stopped by us and why, or what the tester said; neither when the tester died."""

    stopped: tuple[str, str] | None = None
    said: dict[str, str] | None = None


def main() -> NoReturn:
    """Serve until stdin closes."""
    inbox, outbox = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    for name in PRELOADED:
        importlib.import_module(name)
    become_reaper()
    folder = Path(tempfile.mkdtemp(prefix="codestill-judge-")).resolve()
    control, theirs = socket.socketpair(
        socket.AF_UNIX, socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM
    )
    if os.fork() == 0:
        os.close(inbox)
        os.close(outbox)
        control.close()
        run_zygote(theirs, folder)
    theirs.close()
    server = Server(inbox, outbox, control, folder)
    write_frame(outbox, json.dumps(server.hello).encode())
    gc.collect()
    gc.freeze()
    while (request := read_frame(inbox, REQUEST_LIMIT)) is not None:
        write_frame(outbox, json.dumps(server.judge(json.loads(request))).encode())
    server.close()


class Server:
    """One zygote, one program at a time."""

    def __init__(self, inbox: int, outbox: int, control: socket.socket, folder: Path) -> None:
        self._inbox, self._outbox, self._control, self._folder = inbox, outbox, control, folder
        self._bench: Bench | None = None
        self._confinement = Confinement(None)
        raw = control.recv(4096)
        if not raw:
            sys.exit("the sandbox could not be set up on this machine")
        self.hello: dict[str, Any] = {**json.loads(raw), "folder": str(folder)}

    def close(self) -> NoReturn:
        """End the zygote and everything under it, remove the folder, exit."""
        if self._bench is not None:
            self._bench.stop()
        self._control.close()
        while True:
            try:
                os.wait()
            except ChildProcessError:
                break
        self._folder.rmdir()
        os._exit(0)

    def judge(self, request: dict[str, Any]) -> dict[str, Any]:
        """Judge one program: `verdict`, `detail`, `cpu_s` of the program, `wall_s`."""
        began = time.monotonic()
        bench = self._bench_for(request)  # before the pair, which it must not inherit
        ours, theirs = socket.socketpair()
        limits = {"cpu_seconds": request["cpu_seconds"], "memory_bytes": request["memory_bytes"]}
        socket.send_fds(self._control, [json.dumps(limits).encode()], [theirs.fileno()])
        theirs.close()
        bench.put({name: request[name] for name in ("program", "stubs", "entry_point", "reach")}, ours)
        ours.close()
        end = self._watch(bench, request["cpu_seconds"])
        if end.said is None:
            bench.stop()
            self._bench = None
        self._control.send(b"end")
        report = self._report()
        verdict, detail = _verdict(end, report, request["cpu_seconds"])
        wall = time.monotonic() - began
        return {"verdict": verdict, "detail": detail, "cpu_s": round(report["cpu"], 3), "wall_s": round(wall, 3)}

    def _bench_for(self, request: dict[str, Any]) -> Bench:
        """The tester of this task: the last one if it serves, else a new one."""
        if self._bench is not None and self._bench.key == key_of(request):
            return self._bench
        if self._bench is not None:
            self._bench.stop()
        self._bench = Bench(request, self._confinement, [self._inbox, self._outbox, self._control.fileno()])
        return self._bench

    def _watch(self, bench: Bench, cpu_seconds: int) -> End:
        """Wait for the tester's word; stop what idles, spawns or hoards too much."""
        poll = select.poll()
        poll.register(bench, select.POLLIN)
        poll.register(self._inbox, select.POLLIN)
        began, idle, cell = time.monotonic(), 0.0, 0
        tester_cpu = -1.0
        while not (events := dict(poll.poll(TICK * 1000))):
            tester_cpu = bench.cpu_seconds() if tester_cpu < 0 else tester_cpu
            cell = cell or self._cell_pid()
            idle += 0.0 if _running(cell) or _running(bench.pid) else TICK
            if idle > cpu_seconds + IDLE_GRACE:
                return End(stopped=("timeout", f"did nothing for {idle:.0f} s"))
            if bench.cpu_seconds() - tester_cpu > TESTER_FACTOR * cpu_seconds:
                return End(stopped=("timeout", "the tests took too much CPU time over its answers"))
            if time.monotonic() - began > WALL_FACTOR * cpu_seconds + WALL_GRACE:
                return End(stopped=("timeout", f"not done after {time.monotonic() - began:.0f} s of wall time"))
            if excess := self._excess(cell):
                return End(stopped=("forbidden", excess))
        if self._inbox in events:  # requests come one at a time: this is the end of the client
            self.close()
        return End(said=bench.answer())

    def _cell_pid(self) -> int:
        """The cell's process id as seen from here, which it sent before it was confined; 0 while it has not."""
        try:
            return int(self._control.recv(4096, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return 0

    def _excess(self, cell: int) -> str | None:
        if len(_threads(cell)) > MAX_THREADS:
            return f"more than {MAX_THREADS} threads"
        if not self.hello["private_root"] and _too_full(self._folder):
            return f"more than {MAX_FOLDER_BYTES >> 20} MB or {MAX_FOLDER_FILES} files in its folder"
        return None

    def _report(self) -> dict[str, Any]:
        """The zygote's word that the cell is dead and reaped, and how it ended."""
        while raw := self._control.recv(4096):
            if raw.startswith(b"{"):
                report: dict[str, Any] = json.loads(raw)
                return report
        sys.exit("the sandbox's zygote is gone")


def _threads(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir()) if pid else []
    except OSError:
        return []


def _running(pid: int) -> bool:
    """Whether any thread runs, waits for a processor or waits for a disk (states R and D)."""
    for thread in _threads(pid):
        try:
            state = (thread / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            continue
        if state in "RD":
            return True
    return False


def _too_full(folder: Path) -> bool:
    todo, size, files = [str(folder)], 0, 0
    while todo:
        try:
            entries = list(os.scandir(todo.pop()))
        except OSError:
            continue
        for entry in entries:
            files += 1
            if entry.is_dir(follow_symlinks=False):
                todo.append(entry.path)
            else:
                size += entry.stat(follow_symlinks=False).st_size
        if size > MAX_FOLDER_BYTES or files > MAX_FOLDER_FILES:
            return True
    return False


def _verdict(end: End, report: dict[str, Any], cpu_seconds: int) -> tuple[str, str]:
    if end.stopped:
        return end.stopped
    if end.said is None:
        return "crashed", "the tests' own process ended on its answers"
    if end.said["outcome"] == "garbled":
        return "crashed", "sent something that is no answer"
    return _cause(report, cpu_seconds) if end.said["outcome"] == "lost" else (end.said["outcome"], end.said["detail"])


def _cause(report: dict[str, Any], cpu_seconds: int) -> tuple[str, str]:
    """Why the program stopped answering, from how its process ended."""
    status: int = report["status"]
    if status == -signal.SIGXCPU or (status == -signal.SIGKILL and report["cpu"] >= cpu_seconds):
        return "timeout", f"used {cpu_seconds} s of CPU time"
    if status == -signal.SIGSYS:
        return "forbidden", "killed for a system call that no honest program needs"
    if status == -signal.SIGKILL:
        return "crashed", "stopped answering"
    if status < 0:
        return "crashed", f"killed by {signal.Signals(-status).name}"
    return "crashed", f"ended with exit code {status} before the tests were done"
