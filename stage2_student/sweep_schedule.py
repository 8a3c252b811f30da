"""Which run of a sweep comes next, from the first to the last.

A slot is filled only when it is free, so that halving and search decide with everything that is known by then.
Not for which runs there are (sweep.py) nor for where their processes run (shared/jobs.py).
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from pathlib import Path

from shared.jobs import Engine, Finished
from stage2_student.asha import Rungs
from stage2_student.estimate import count
from stage2_student.search import Tried, by_optuna
from stage2_student.sweep_config import Overrides, SweepConfig
from stage2_student.sweep_runs import Ledger, Run, Status

LINGER = 0.5  # seconds between two looks at trainings that a killed sweep left behind
LOOK = 1.0  # seconds between two looks at the metrics of running runs, where halving wants them


class Schedule:
    """The work of one `sweep` command, for whoever holds the sweep's lock.

    Args:
        config: the sweep.
        runs: by id; Optuna's grow while it works.
        ledger: where new facts are noted.
        rungs: halving's, with the ledger replayed; None without halving.
        add: makes a run of a trial's overrides, and puts it among the runs.
        status: of a run.
        ended: filled with how runs ended here.
    """

    def __init__(
        self,
        config: SweepConfig,
        runs: dict[str, Run],
        ledger: Ledger,
        rungs: Rungs | None,
        add: Callable[[Overrides], Run],
        status: Callable[[Run], Status],
        ended: dict[str, Status],
    ) -> None:
        self._config, self._runs, self._ledger, self._rungs = config, runs, ledger, rungs
        self._add, self._status, self._ends = add, status, ended
        self._trials = sum(row["event"] == "trial" for row in ledger.rows())
        self._running: set[str] = set()
        self._cancelled: set[str] = set()
        states = {name: status(run) for name, run in runs.items()}
        for name, state in states.items():
            if rungs is not None and state == "finished":
                rungs.finished(name, runs[name].rows(), self._steps(name))
        begun = [name for name, state in states.items() if state == "begun"]
        self._waiting = deque(begun + [name for name, state in states.items() if state == "new"])

    def _steps(self, name: str) -> int:
        return count(self._runs[name].config).steps

    def work(self, make_engine: Callable[[], Engine]) -> None:
        """Until nothing is left to do."""
        first = self._next()
        if first is None:
            return
        wait_for_orphans({run.job().command for run in self._runs.values() if run.state() == "begun"})
        with make_engine() as engine:
            self._begin(engine, first)
            while self._running:
                while len(self._running) < engine.slots and (run := self._next()) is not None:
                    self._begin(engine, run)
                ended = engine.next_finished(None if self._rungs is None else LOOK)
                if ended is not None:
                    self._end(ended)
                self._look(engine)
                if not self._running and (run := self._next()) is not None:
                    self._begin(engine, run)

    def _begin(self, engine: Engine, run: Run) -> None:
        self._running.add(run.id)
        print(f"{run.id} {'begins' if run.state() == 'new' else 'goes on'}: {run.label}", file=sys.stderr)
        engine.submit(run.job())

    def _next(self) -> Run | None:
        """The best paused run that may go on; else one that waits; else a new trial; at the very end halving's last resort."""
        if self._rungs is not None and (name := self._rungs.next_promoted(self._running)) is not None:
            return self._runs[name]
        if self._waiting:
            return self._runs[self._waiting.popleft()]
        if (run := self._next_trial()) is not None:
            return run
        if self._rungs is not None and not self._running and (name := self._rungs.last_resort()) is not None:
            return self._runs[name]
        return None

    def _next_trial(self) -> Run | None:
        """The next trial that Optuna suggests; one that was tried before counts, but is not run again."""
        search = self._config.search
        if search is None or search.sampler == "random":
            return None
        while self._trials < search.trials:
            history = [self._tried(run) for run in self._runs.values()]
            overrides = by_optuna(search, self._config.metric, self._trials, history)
            self._ledger.note({"event": "trial", "number": self._trials, "overrides": overrides})
            self._trials += 1
            known = len(self._runs)
            run = self._add(overrides)
            if len(self._runs) > known:
                return run
        return None

    def _tried(self, run: Run) -> Tried:
        rows, status = run.rows(), self._status(run)
        last = rows[-1] if rows else {"step": 0}
        return Tried(run.overrides, status, last.get(self._config.metric), last["step"])

    def _look(self, engine: Engine) -> None:
        """Cancel running runs that lag behind at a rung; SIGTERM lets them leave a checkpoint."""
        if self._rungs is None:
            return
        for name in sorted(self._running - self._cancelled):
            if not self._rungs.observe(name, self._runs[name].rows(), self._steps(name)):
                self._cancelled.add(name)
                engine.cancel(name)

    def _end(self, finished: Finished) -> None:
        name = finished.job.name
        run = self._runs[name]
        self._running.discard(name)
        status: Status = "failed"
        if run.state() == "finished":
            status = "finished"
        elif name in self._cancelled:
            status = "stopped"
        if self._rungs is not None and status == "finished":
            self._rungs.finished(name, run.rows(), self._steps(name))
        if self._rungs is not None and status == "failed":
            self._rungs.give_up(name)
        self._cancelled.discard(name)
        self._ends[name] = status
        last = f": {run.last_line()}" if status == "failed" else ""
        done = sum(self._status(run) in ("finished", "failed", "stopped") for run in self._runs.values())
        print(f"{name} {status}{last}; {done} of {len(self._runs)} runs have ended", file=sys.stderr)


def wait_for_orphans(commands: AbstractSet[tuple[str, ...]]) -> None:
    """Wait until no process of this machine runs any of `commands`: trainings of a sweep that was killed have seconds to save.

    Two in one folder would write over each other. On other machines, and where there is no /proc, nothing is seen.
    """
    if _anyone_runs(commands):
        print("waiting for the trainings of a killed sweep to save and end", file=sys.stderr)
    while _anyone_runs(commands):
        time.sleep(LINGER)


def _anyone_runs(commands: AbstractSet[tuple[str, ...]]) -> bool:
    wanted = {"\0".join(command[1:]).encode() + b"\0" for command in commands}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it ended while we looked
            running = path.read_bytes()
            if any(running.endswith(command) for command in wanted):
                return True
    return False
