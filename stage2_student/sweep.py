"""`python -m stage2_student sweep`: many students from one file, each a process of its own.

Killed at any moment and run again it goes on: what there is to do follows from the runs' folders and the sweep's ledger, never
from memory. A finished run is skipped, a begun one goes on from its checkpoint, one that halving paused stays paused until its
turn (sweep_schedule.py). Shards are read with pread (cache/reader.py), so all runs of a machine share them in its page cache;
what each run holds is the windows' index, and the tail's basis where its loss is `full`.
Not for where processes run (shared/jobs.py), nor for one run (train.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cache.lock import only_one
from shared.errors import RunError
from shared.jobs import Engine
from stage2_student.asha import Rungs
from stage2_student.estimate import count
from stage2_student.search import at_random, corners, require_sampler
from stage2_student.sweep_config import Overrides, SweepConfig, listed, read_base, resolve
from stage2_student.sweep_plot import draw
from stage2_student.sweep_report import Row, notes, ranked, row_of, with_fronts, write_report
from stage2_student.sweep_runs import Ledger, Run, Status, make_run
from stage2_student.sweep_schedule import Schedule


class Sweep:
    """The runs of one sweep, all checked; `work` trains them.

    Args:
        config: the sweep.
        path: its file.
        for_base: `a.b=c` each, for a base that is a file of its own.
    Raises:
        UsageError: any run's config is wrong (nothing was started), there is no cache, or Optuna is missing.
    """

    def __init__(self, config: SweepConfig, path: Path, for_base: Sequence[str] = ()) -> None:
        self.config, self.out, self.name = config, config.out, path.stem
        self._base, self._ledger = read_base(config, path, for_base), Ledger(config.out)
        self.runs: dict[str, Run] = {}
        for overrides in self._known():
            self.add(overrides)
        self._ended: dict[str, Status] = {}  # in this process
        self._rungs = None if config.halving is None else Rungs(config.halving, config.metric, self._ledger.note)
        if self._rungs is not None:
            self._rungs.replay(self._ledger.rows())

    def _known(self) -> Iterator[Overrides]:
        """The runs that stand fixed before any is trained; of a search by Optuna those that were drawn before."""
        yield from listed(self.config)
        search = self.config.search
        if search is None:
            return
        require_sampler(search)
        for overrides in corners(search):
            resolve(self._base, overrides, self.out)
        if search.sampler == "random":
            yield from (at_random(search, number) for number in range(search.trials))
        else:
            yield from (row["overrides"] for row in self._ledger.rows() if row["event"] == "trial")

    def add(self, overrides: Overrides) -> Run:
        """The run of these overrides; one that resolves to the same config is the same run."""
        run = make_run(self._base, overrides, self.out)
        return self.runs.setdefault(run.id, run)

    def planned(self) -> list[tuple[str, Run]]:
        """(status, run) of all runs; of a search by Optuna that is not through, also its corners."""
        rows: list[tuple[str, Run]] = [(self.status(run), run) for run in self.runs.values()]
        search = self.config.search
        if search is not None and search.sampler == "optuna" and len(rows) < search.trials:
            rows += [("corner", make_run(self._base, overrides, self.out)) for overrides in corners(search)]
        return rows

    @property
    def to_draw(self) -> int:
        """Trials that Optuna has still to draw."""
        search = self.config.search
        return search.trials - len(self.runs) if search is not None and search.sampler == "optuna" else 0

    @property
    def gpus(self) -> int:
        """GPUs that a run asks of a cluster: one where its config says `device: cuda`."""
        return int(any(run.config.device == "cuda" for _, run in self.planned()))

    def work(self, make_engine: Callable[[], Engine]) -> list[Row]:
        """Train what is not finished, then write the report.

        Args:
            make_engine: not called where nothing is left to do.
        Returns:
            the table's rows, best first.
        Raises:
            UsageError: another sweep is at work in the folder.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        with only_one(self.out / ".lock" / "sweep", "sweep"):
            self._ledger.repair()
            Schedule(self.config, self.runs, self._ledger, self._rungs, self.add, self.status, self._ended).work(
                make_engine
            )
            rows = self.rows()
            write_report(self.out, self.name, rows, self.notes(rows), draw)
        return rows

    def rows(self) -> list[Row]:
        """The table, best first."""
        found = [row_of(run, self.status(run), _tokens(run)) for run in self.runs.values()]
        return ranked(with_fronts(found, self._kd_compares()), self.config.metric)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        """What a reader must know beside the table."""
        return notes(rows, self._kd_compares())

    def _kd_compares(self) -> bool:
        """Whether kd means the same in all runs."""
        configs = [run.config for run in self.runs.values()]
        return len({(str(config.temperature), config.form, str(config.divergence)) for config in configs}) == 1

    def status(self, run: Run) -> Status:
        """How a run stands."""
        state = run.state()
        if state == "finished":
            return "finished"
        if run.id in self._ended:
            return self._ended[run.id]
        if self._rungs is not None and self._rungs.waits(run.id):
            return "stopped"
        return "new" if state == "new" else "begun"

    def require_all_ended(self, rows: Sequence[Row]) -> None:
        """Say so where runs failed.

        Raises:
            RunError: names how many, and the first one's last line.
        """
        failed = [row for row in rows if row.status == "failed"]
        if failed:
            raise RunError(
                f"sweep {self.out}",
                expected="every run to come to its end",
                got=f"{len(failed)} of {len(rows)} failed, {failed[0].run} with: {failed[0].last_line}",
                do=f"see {self.out / 'logs'}; the same command again repeats only what failed",
            )


def _tokens(run: Run) -> int:
    """Tokens fed in one epoch: the last one of a window is only predicted."""
    counts = count(run.config)
    return counts.tokens - len(counts.lengths_W)
