"""Asynchronous successive halving (ASHA; Li et al. 2018, arXiv:1810.05934, algorithm 2), as pure bookkeeping.

Rung k stands at min_steps * eta^k optimizer steps of a run's own, whole schedule: a run is never shortened, only paused there
and, when it is among the best 1 / eta of the runs seen at that rung, continued. Nobody waits for anybody: a slot that is free
continues the best run that may go on, or begins a new one. Where the paper's runs are endless, ours are a list: when nothing
else is left to do the best run of the highest rung goes on, so that a sweep always ends with a finished student.
Not for processes or files (sweep.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from stage2_student.sweep_config import HIGHER_IS_BETTER, Halving, Metric


class Rungs:
    """Who reached which rung with what, and who was let on. Runs are named by their id.

    Args:
        halving: first rung and eta.
        metric: read from validation rows.
        note: told every new fact as a row, to be written down; `replay` reads such rows back.
    """

    def __init__(self, halving: Halving, metric: Metric, note: Callable[[dict[str, Any]], None]) -> None:
        self._halving, self._metric, self._note = halving, metric, note
        self._values: list[dict[str, float]] = []  # by rung, in order of arrival
        self._promoted: list[set[str]] = []
        self._failed: set[str] = set()

    def step_of(self, rung: int) -> int:
        """Optimizer steps at which a rung stands."""
        return self._halving.min_steps * int(self._halving.eta**rung)

    def replay(self, rows: Sequence[dict[str, Any]]) -> None:
        """Take the ledger's rows for true; rows of other kinds pass."""
        for row in rows:
            if row["event"] == "reached":
                self._rung(row["rung"])[row["run"]] = row["value"]
            elif row["event"] == "promoted":
                self._rung(row["rung"])
                self._promoted[row["rung"]].add(row["run"])

    def _rung(self, rung: int) -> dict[str, float]:
        while len(self._values) <= rung:
            self._values.append({})
            self._promoted.append(set())
        return self._values[rung]

    def observe(self, run: str, rows: Sequence[dict[str, Any]], total: int) -> bool:
        """Take a run's validation rows, oldest first; whether it may go on for now.

        Args:
            run: its id.
            rows: of metrics.jsonl.
            total: its optimizer steps; a rung at or beyond the end is none.
        """
        rung = 0
        while self.step_of(rung) < total:
            if run not in self._rung(rung):
                row = next((row for row in rows if row["step"] >= self.step_of(rung)), None)
                if row is None:
                    return True  # on its way
                self._reached(run, rung, row)
            if run not in self._promoted[rung]:
                if run not in self._best(rung):
                    return False
                self._promote(run, rung)
            rung += 1
        return True

    def _reached(self, run: str, rung: int, row: dict[str, Any]) -> None:
        value = float(row[self._metric])
        self._values[rung][run] = value
        self._note({"event": "reached", "run": run, "rung": rung, "step": row["step"], "value": value})

    def _promote(self, run: str, rung: int) -> None:
        self._promoted[rung].add(run)
        self._note({"event": "promoted", "run": run, "rung": rung})

    def _ranked(self, rung: int) -> list[str]:
        sign = -1 if self._metric in HIGHER_IS_BETTER else 1
        return sorted(self._values[rung], key=lambda run: sign * self._values[rung][run])

    def _best(self, rung: int) -> list[str]:
        return self._ranked(rung)[: len(self._values[rung]) // self._halving.eta]

    def waits(self, run: str) -> bool:
        """Whether the run stands paused at a rung."""
        return any(run in values and run not in on for values, on in zip(self._values, self._promoted, strict=True))

    def finished(self, run: str, rows: Sequence[dict[str, Any]], total: int) -> None:
        """A run that came to its end passed every rung, stopped or not: the others are measured against it."""
        rung = 0
        while self.step_of(rung) < total:
            row = next((row for row in rows if row["step"] >= self.step_of(rung)), None)
            if row is not None and run not in self._rung(rung):
                self._reached(run, rung, row)
            if run in self._rung(rung) and run not in self._promoted[rung]:
                self._promote(run, rung)
            rung += 1

    def give_up(self, run: str) -> None:
        """A run that failed is not continued."""
        self._failed.add(run)

    def next_promoted(self, running: AbstractSet[str] = frozenset()) -> str | None:
        """The paused run that goes on now, from the highest rung that has one, marked as promoted.

        One that is still on its way to a pause is left for the next time.
        """
        for rung in reversed(range(len(self._values))):
            for run in self._best(rung):
                if run not in self._promoted[rung] | self._failed | running:
                    self._promote(run, rung)
                    return run
        return None

    def last_resort(self) -> str | None:
        """When nothing runs and nothing is left to begin: the best of the highest rung goes on if nobody went on from it."""
        for rung in reversed(range(len(self._values))):
            standing = [run for run in self._ranked(rung) if run not in self._failed]
            if self._promoted[rung] - self._failed:
                return None
            if standing:
                self._promote(standing[0], rung)
                return standing[0]
        return None
