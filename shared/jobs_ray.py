"""Jobs on a Ray cluster: each is a Ray task that runs its command as a process of the node it landed on.

What it asks of the nodes: the same paths everywhere (a shared file system holds folders, logs and this code) and the same
Python environment. Environment variables are each node's own. A job whose node or worker is lost is begun again elsewhere;
a command that fails has failed. Ray's own words on lost nodes go to stdout.
Not for queues on one machine (jobs.py). Needs the extra `ray`.
"""

from __future__ import annotations

import importlib
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from shared.errors import RunError, UsageError
from shared.jobs import Finished, Job
from shared.jobs_guard import GRACE, guarded

LOOK = 0.2  # seconds between two looks at a process: Ray's cancel reaches a task only between them
LOST = ("NodeDiedError", "WorkerCrashedError", "LocalRayletDiedError", "OutOfMemoryError", "ObjectLostError")


@dataclass(frozen=True, slots=True)
class _Attempt:
    job: Job
    number: int
    began: float


class RayEngine:
    """Tasks of a Ray cluster.

    Args:
        address: "host:port" or "ray://host:port" of a cluster, "auto" for the one that runs on this machine; None takes
            RAY_ADDRESS, else starts Ray here alone: nobody joins somebody else's cluster unasked.
        cpus, gpus: what each job holds on its node; gpus None means one where any node has one.
        at_once: how many jobs at most; as many as the nodes hold if None.
        retries: how often a job is begun again after its node or worker was lost.
    Raises:
        UsageError: Ray is not installed, or no cluster answers.
    """

    def __init__(
        self,
        address: str | None = None,
        cpus: float = 1,
        gpus: float | None = 0,
        at_once: int | None = None,
        retries: int = 3,
    ) -> None:
        assert cpus or gpus != 0, "Ray would begin any number at once"
        self._ray = _ray()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray, address)
        self._most, self._retries = at_once or math.inf, retries
        gpus = min(1.0, self._ray.cluster_resources().get("GPU", 0)) if gpus is None else gpus
        self.slots = at_once or max(1, self._room(cpus, gpus))
        self._task = self._ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(run_here)
        self._waiting: deque[Job] = deque()
        self._running: dict[Any, _Attempt] = {}
        self._unwanted: set[str] = set()
        self._lost = tuple(getattr(self._ray.exceptions, name) for name in LOST)

    def _room(self, cpus: float, gpus: float) -> int:
        """How many jobs the nodes hold at once; says so where no node holds any, since more may join."""
        wanted = {"CPU": cpus, "GPU": gpus}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        room = [min(int(node.get(name, 0) / need) for name, need in wanted.items() if need) for node in nodes]
        if not any(room):
            print(
                f"no node of this Ray cluster has {cpus:g} CPUs and {gpus:g} GPUs: jobs wait for one", file=sys.stderr
            )
        return sum(room)

    def submit(self, job: Job) -> None:
        """Run it as soon as a node has room; see Engine, for this and the others."""
        names = {attempt.job.name for attempt in self._running.values()} | {other.name for other in self._waiting}
        assert job.name not in names, f"job {job.name} twice"
        self._waiting.append(job)
        self._fill()

    def _fill(self) -> None:
        while self._waiting and len(self._running) < self._most:
            self._begin(self._waiting.popleft(), 1)

    def _begin(self, job: Job, number: int) -> None:
        reference = self._task.remote(job.command, job.log, job.folder)
        self._running[reference] = _Attempt(job, number, time.monotonic())

    def next_finished(self, timeout: float | None = None) -> Finished | None:
        """The next job that ended; None where none does in time, or none is left.

        Raises:
            RunError: a node cannot start it.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while True:
            dropped = next((job for job in self._waiting if job.name in self._unwanted), None)
            if dropped is not None:
                self._waiting.remove(dropped)
                self._unwanted.discard(dropped.name)
                return Finished(dropped, -signal.SIGTERM, 0.0, 0)
            if not self._running:
                return None
            left = None if end is None else max(0.0, end - time.monotonic())
            done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=left)
            if not done:
                return None
            if found := self._ended(done[0]):
                self._fill()
                return found

    def _ended(self, reference: Any) -> Finished | None:
        """How a task ended; None where it was begun again."""
        attempt = self._running.pop(reference)
        job, seconds = attempt.job, time.monotonic() - attempt.began
        try:
            code, seconds = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            if job.name in self._unwanted:
                code = -signal.SIGTERM
            elif not isinstance(error, self._lost):
                raise _cannot_start(job, error) from None
            elif attempt.number <= self._retries:
                print(f"{job.name}: its node or worker was lost; begun again", file=sys.stderr)
                self._begin(job, attempt.number + 1)
                return None
            else:
                code = -signal.SIGKILL
        self._unwanted.discard(job.name)
        return Finished(job, code, seconds, attempt.number)

    def cancel(self, name: str) -> None:
        """SIGTERM, and SIGKILL half a minute later; its Finished comes as any other's."""
        waiting = any(job.name == name for job in self._waiting)
        references = [reference for reference, attempt in self._running.items() if attempt.job.name == name]
        if waiting or references:
            self._unwanted.add(name)
        for reference in references:
            self._ray.cancel(reference)

    def close(self) -> None:
        """End whatever runs, and come back when it is gone."""
        self._waiting.clear()
        for reference in self._running:
            self._ray.cancel(reference)
        if self._running:
            self._ray.wait(list(self._running), num_returns=len(self._running), timeout=2 * GRACE)
        self._running.clear()
        if self._ours:
            self._ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run_here(command: tuple[str, ...], log: Path, folder: Path | None) -> tuple[int, float]:
    """On the node: (exit code, seconds) of the command; a cancelled task ends it first."""
    begin = time.monotonic()
    process = guarded(command, log, folder, os.environ)
    try:
        while True:
            try:
                return process.wait(timeout=LOOK), time.monotonic() - begin
            except subprocess.TimeoutExpired:
                continue
    finally:
        process.terminate()  # nothing where it has ended
        process.communicate()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        do = "install it: pip install 'codestill[ray]'"
        raise UsageError("--engine ray", expected="the extra `ray`", got="no such package", do=do) from None


def _connect(ray: Any, address: str | None) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster on this machine reports to nobody
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    alone = {"include_dashboard": False} if address == "local" else {}
    answer_to_sigterm = signal.getsignal(signal.SIGTERM)  # Ray sets its own
    try:
        ray.init(address=address, log_to_driver=False, logging_level="WARNING", **alone)
    except (ConnectionError, RuntimeError, ValueError) as error:
        do = "start one with `ray start --head`, or give its --address host:port"
        raise UsageError(f"--address {address}", expected="a Ray cluster that answers", got=str(error), do=do) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, answer_to_sigterm)


def _cannot_start(job: Job, error: Exception) -> RunError:
    lines = str(error).strip().splitlines()
    do = "give every node the same paths and the same Python environment"
    return RunError(f"job {job.name}", expected="a node that can start it", got=lines[-1] if lines else "", do=do)
