"""Stand-ins for a sweep's tests: trainings that only write what a training leaves, and an engine that moves them by hand.

Not a test file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from student_cache import STUDENT

from shared.config import load_config
from shared.files import append_jsonl, read_jsonl
from shared.jobs import Finished, Job
from stage2_student.config import TrainConfig
from stage2_student.sweep import Sweep
from stage2_student.sweep_config import SweepConfig

STEPS, EVERY = 27, 3  # of a fake training: its end, and its validations
TERMINATED = 143


class Killed(BaseException):
    """Stands in for kill -9 of the sweep: nothing catches it."""


class FakeEngine:
    """Each look moves every running training by one validation, in the order they began.

    Args:
        slots: trainings at once.
        ce: a config's validation cross-entropy in the end; on the way there it is higher.
        fails: configs whose training ends with code 1 at its second validation.
        kill_after: validations after which the sweep is killed.
    """

    def __init__(
        self,
        slots: int = 1,
        *,
        ce: Callable[[TrainConfig], float] = lambda config: config.learning_rate,
        fails: Callable[[TrainConfig], bool] = lambda config: False,
        kill_after: int | None = None,
    ) -> None:
        self.slots, self._ce, self._fails, self._left = slots, ce, fails, kill_after
        self.begun: list[str] = []
        self._running: dict[str, Job] = {}
        self._cancelled: set[str] = set()

    def submit(self, job: Job) -> None:
        assert job.name not in self._running
        assert len(self._running) < self.slots
        self.begun.append(job.name)
        self._running[job.name] = job

    def cancel(self, name: str) -> None:
        assert name in self._running
        self._cancelled.add(name)

    def next_finished(self, timeout: float | None = None) -> Finished | None:
        assert self._running, "nothing was left to wait for"
        while True:
            for name, job in self._running.items():
                code = TERMINATED if name in self._cancelled else self._move(job)
                if code is not None:
                    del self._running[name]
                    self._cancelled.discard(name)
                    return Finished(job, code, 1.0, 1)
            if timeout is not None:
                return None

    def _move(self, job: Job) -> int | None:
        """One validation further; the exit code where it ends."""
        if self._left == 0:
            raise Killed
        self._left = None if self._left is None else self._left - 1
        config = load_config(TrainConfig, Path(job.command[-1]))
        metrics = config.out / "metrics.jsonl"
        config.out.mkdir(exist_ok=True)
        step = max((row["step"] for row in read_jsonl(metrics)), default=0) if metrics.is_file() else 0
        self._record(config, "running")
        if self._fails(config) and step >= EVERY:
            job.log.parent.mkdir(exist_ok=True)
            job.log.write_text("step 3\nerror: step 4, windows 0a: expected a finite loss, got nan\n\n")
            return 1
        step += EVERY
        ce = self._ce(config) + 10 * (1 - step / STEPS)
        quality = {"loss": ce, "kd": ce / 2, "ce": ce, "perplexity": 2.0, "agreement": 1 / (1 + ce)}
        train = {"split": "train", "step": step, "epoch": step / 10, "loss": ce, "tokens_per_second": 100.0}
        append_jsonl(metrics, [train, {"split": "validation", "step": step, "epoch": step / 10, **quality}])
        if step < STEPS:
            return None
        self._record(config, "finished", quality | {"step": step})
        return 0

    def _record(self, config: TrainConfig, status: str, final: dict[str, Any] | None = None) -> None:
        parameters = 1000 + int(1000 * config.learning_rate)
        (config.out / "run.json").write_text(json.dumps({"status": status, "parameters": parameters, "final": final}))

    def close(self) -> None:
        self._running.clear()

    def __enter__(self) -> FakeEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def base_of(caches: Path) -> dict[str, Any]:
    """A base config of students that would train in seconds."""
    return {
        "cache": str(caches / "cache"),
        "validation": {"cache": str(caches / "validation")},
        "student": STUDENT,
        "form": "bucket",
        "kd_weight": 0.7,
        "ce_weight": 0.3,
        "max_steps": STEPS,
        "eval_every": EVERY,
        "batch_size": 4,
        "device": "cpu",
    }


def make_sweep(folder: Path, base: dict[str, Any] | str, **settings: Any) -> Sweep:
    """A sweep read from a file as a user's would be."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({"out": str(folder / "out"), "base": base, **settings}, sort_keys=False))
    return Sweep(load_config(SweepConfig, path), path)
