"""Commands run many at a time, each a process of its own with its own log: a sweep's students, a corpus's parts.

An engine decides where: `LocalEngine` on this machine, one process a GPU or a few on the CPU; `RayEngine` (jobs_ray.py) on a
cluster. Commands meet through files alone, so an engine knows nothing of what they do. Nothing outlives the engine
(jobs_guard.py). Not for what is worth running, or running again: the callers decide that.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol, Self

from shared.jobs_guard import guarded


@dataclass(frozen=True, slots=True)
class Job:
    """A command to run.

    Attributes:
        name: its own among those not yet finished.
        command: argv; starts with sys.executable.
        log: its stdout and stderr are appended here; folders on the way are made.
        folder: working directory; None is the starter's.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """How a job ended.

    Attributes:
        code: exit code; a signal's number, negative, where one ended it. A cancelled job that never began has -SIGTERM.
        seconds: of the last attempt.
        attempts: how often it was begun.
    """

    job: Job
    code: int
    seconds: float
    attempts: int


class Engine(Protocol):
    """Runs jobs, at most `slots` at a time, in the order they were submitted. For one thread of the caller."""

    slots: int

    def submit(self, job: Job) -> None:
        """Run it as soon as a slot is free."""

    def next_finished(self, timeout: float | None = None) -> Finished | None:
        """The next job that ended; None where none does within `timeout` seconds, or none is left.

        Raises:
            OSError: a log cannot be written.
        """

    def cancel(self, name: str) -> None:
        """SIGTERM, and SIGKILL half a minute later; its Finished comes as any other's. Nothing where it has ended."""

    def close(self) -> None:
        """End whatever runs, children included, and come back when it is gone."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class LocalEngine:
    """Processes of this machine.

    Args:
        at_once: how many; one a device where there are any, else one.
        devices: as CUDA_VISIBLE_DEVICES names them, shared out evenly; all visible ones if None.
    """

    def __init__(self, at_once: int | None = None, devices: Sequence[str] | None = None) -> None:
        places = visible_devices() if devices is None else list(devices)
        self.slots = at_once or len(places) or 1
        self._environments: SimpleQueue[dict[str, str]] = SimpleQueue()
        for number in range(self.slots):
            device = places[number % len(places)] if places else None
            self._environments.put(environment(self.slots, device))
        self._pool = ThreadPoolExecutor(self.slots, thread_name_prefix="job")
        self._guard, self._closed = threading.Lock(), False
        self._pending: dict[str, tuple[Job, Future[Finished]]] = {}
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._unwanted: set[str] = set()  # cancelled before or while they ran

    def submit(self, job: Job) -> None:
        assert job.name not in self._pending, f"job {job.name} twice"
        self._pending[job.name] = job, self._pool.submit(self._run, job)

    def next_finished(self, timeout: float | None = None) -> Finished | None:
        dropped = [job for job, future in self._pending.values() if future.cancelled()]
        if dropped:
            del self._pending[dropped[0].name]
            return Finished(dropped[0], -signal.SIGTERM, 0.0, 0)
        futures = {future: job for job, future in self._pending.values()}
        done = next(iter(wait(futures, timeout, FIRST_COMPLETED).done), None)
        if done is None:
            return None
        del self._pending[futures[done].name]
        return done.result()

    def cancel(self, name: str) -> None:
        if name in self._pending and not self._pending[name][1].cancel():
            with self._guard:
                self._unwanted.add(name)
                if process := self._running.get(name):
                    process.terminate()

    def close(self) -> None:
        with self._guard:
            self._closed = True
            for process in self._running.values():
                process.terminate()
        self._pool.shutdown(cancel_futures=True)  # waits; a guard needs GRACE seconds at most

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, job: Job) -> Finished:
        place, begin = self._environments.get(), time.monotonic()
        try:
            with self._guard:
                if self._closed or job.name in self._unwanted:
                    return Finished(job, -signal.SIGTERM, 0.0, 0)
                process = self._running[job.name] = guarded(job.command, job.log, job.folder, place)
            with process:
                code = process.wait()
            return Finished(job, code, time.monotonic() - begin, 1)
        finally:
            with self._guard:
                self._running.pop(job.name, None)
                self._unwanted.discard(job.name)
            self._environments.put(place)


def environment(at_once: int, device: str | None) -> dict[str, str]:
    """This process's environment, for one of `at_once` that share the cores; a user's own OMP_NUM_THREADS stands."""
    found = dict(os.environ)
    found.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // at_once)))
    if device is not None:
        found["CUDA_VISIBLE_DEVICES"] = device
    return found


def visible_devices(environ: Mapping[str, str] = os.environ) -> list[str]:
    """CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them; no context is made on any."""
    import torch  # the only one who knows for sure; takes seconds

    count = torch.cuda.device_count()
    named = environ.get("CUDA_VISIBLE_DEVICES")
    return [name.strip() for name in named.split(",")][:count] if named else [str(number) for number in range(count)]
