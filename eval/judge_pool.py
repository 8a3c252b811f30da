"""Judging servers as processes, and a pool of them that works through many requests.

NOT for what is judged (eval/judge.py). A server is a bare Python started by path, so a judge inside a process that holds
torch costs nothing more. A server that dies takes one answer with it: it is replaced, and the program asked again once.
"""

from __future__ import annotations

import json
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

from eval.sandbox_wire import WireError, read_frame, write_frame
from shared.errors import RunError, UsageError

START = Path(__file__).with_name("sandbox_main.py")
ANSWER_LIMIT = 1 << 20  # bytes
Answer = dict[str, Any]
JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class ServerDied(Exception):
    """The judging server ended instead of answering."""


class Server:
    """One judging server.

    Raises:
        RunError: it could not start.
        UsageError: this machine isolates too little and `allow_weak_sandbox` is False.
    """

    def __init__(self, *, allow_weak_sandbox: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-s", "-S", str(START)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={"PYTHONHASHSEED": "0"},  # nothing of ours; and sets in the same order every time
            cwd="/",
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for us; the server sees its stdin close
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._inbox, self._outbox = self._process.stdin.fileno(), self._process.stdout.fileno()
        self._folder: Path | None = None
        try:
            hello = self._read()
        except ServerDied as error:
            self.stop()
            raise RunError("the judging server did not start", got=str(error), do="see the lines above") from None
        self._folder = Path(hello["folder"])
        self.isolation = ("weak: " if hello["missing"] else "") + "+".join(hello["parts"])
        if hello["missing"] and not allow_weak_sandbox:
            self.stop()
            raise UsageError(
                "sandbox",
                expected="Landlock and seccomp (Linux 5.13 or later on x86_64 or aarch64)",
                got="no " + ", no ".join(hello["missing"]),
                do="judge on such a machine, or allow the weak sandbox if you trust the programs",
            )

    def ask(self, request: Answer) -> Answer:
        """Judge one program (the keys are in eval/judge_plan.py, the answer's in eval/sandbox_server.py).

        Raises:
            ServerDied: no answer came; this server is of no further use.
        """
        try:
            write_frame(self._inbox, json.dumps(request).encode())
        except OSError as error:
            raise ServerDied(str(error)) from None
        return self._read()

    def _read(self) -> Answer:
        try:
            raw = read_frame(self._outbox, ANSWER_LIMIT)
        except (OSError, WireError) as error:
            raise ServerDied(str(error)) from None
        if raw is None:
            raise ServerDied(f"exit code {self._process.wait()}")
        answer: Answer = json.loads(raw)
        return answer

    def stop(self) -> None:
        """Close its stdin, by which it ends, with everything it started; wait until it has."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # a server that was killed could not


class Pool(Generic[JobT, ResultT]):
    """`size` servers, a thread each, over a list of jobs; results come in the order of the jobs.

    Args:
        size: servers.
        allow_weak_sandbox: go on where this machine isolates too little.
        work: does one job on a server; may raise ServerDied, once a job.
        give_up: the result of a job that killed its server twice.
    """

    def __init__(
        self,
        size: int,
        *,
        allow_weak_sandbox: bool,
        work: Callable[[Server, JobT], ResultT],
        give_up: Callable[[Server, JobT], ResultT],
    ) -> None:
        self._allow_weak_sandbox = allow_weak_sandbox
        self._work, self._give_up = work, give_up
        self._jobs: queue.SimpleQueue[tuple[int, JobT] | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[int, ResultT | BaseException]] = queue.SimpleQueue()
        self._stopping = False
        self._servers: list[Server] = []
        self._size = size

    def run(self, jobs: list[JobT]) -> Generator[ResultT, None, None]:
        """Yield each job's result, in order; on leaving, every server has ended.

        Raises:
            RunError, UsageError: a server could not start, or isolates too little.
        """
        threads: list[threading.Thread] = []
        try:
            for _ in range(self._size):
                self._servers.append(Server(allow_weak_sandbox=self._allow_weak_sandbox))
            for numbered in enumerate(jobs):
                self._jobs.put(numbered)
            for slot in range(self._size):
                self._jobs.put(None)
                threads.append(threading.Thread(target=self._serve, args=(slot,), daemon=True))
                threads[-1].start()
            yield from self._in_order(len(jobs))
        finally:
            self._stopping = True
            for server in self._servers:
                server.stop()
            for thread in threads:
                thread.join()
            for server in self._servers:
                server.stop()  # again: a thread may have replaced its server meanwhile

    def _in_order(self, count: int) -> Iterator[ResultT]:
        early: dict[int, ResultT] = {}
        for number in range(count):
            while number not in early:
                place, result = self._results.get()
                if isinstance(result, BaseException):
                    raise result
                early[place] = result
            yield early.pop(number)

    def _serve(self, slot: int) -> None:
        while not self._stopping and (job := self._jobs.get()) is not None:
            try:
                self._results.put((job[0], self._do(slot, job[1])))
            except BaseException as error:  # noqa: BLE001  (raised again where the results are taken)
                self._results.put((job[0], error))
                return

    def _do(self, slot: int, job: JobT) -> ResultT:
        for _ in range(2):
            try:
                return self._work(self._servers[slot], job)
            except ServerDied:
                if self._stopping:
                    raise
                self._servers[slot].stop()
                self._servers[slot] = Server(allow_weak_sandbox=self._allow_weak_sandbox)
        return self._give_up(self._servers[slot], job)
