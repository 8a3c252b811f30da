"""Two ranks on the CPU (gloo) against one: the same windows, the same curve, one writer, failures shared."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from student_cache import STUDENT, Crash, crash_after, curve, make_config
from student_ranks import launch

from shared.errors import RunError
from stage2_student import trainer
from stage2_student.batch import CachedWindows
from stage2_student.config import TrainConfig
from stage2_student.data import EpochOrder
from stage2_student.ranks import Ranks
from stage2_student.steps import StepOrder
from stage2_student.train import train

STILL = {"architecture": {**STUDENT["architecture"], "dropout": 0.0}}  # ranks draw dropout of their own
RUN = {"student": STILL, "ema": 0.9, "epochs": 1, "eval_every": 4, "save_every": 3, "temperature": {"from": 1, "to": 2}}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is half the time of so small a run, and test_stage2_student_watch.py's."""
    torch.set_num_threads(1)
    monkeypatch.setattr("stage2_student.train.draw_curves", lambda *_: None)


@pytest.fixture
def config(caches: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    return lambda name, **changes: make_config(tmp_path, caches, {**RUN, "out": str(tmp_path / name), **changes})


@pytest.fixture(scope="module")
def alone(caches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank that accumulates two batches."""
    torch.set_num_threads(1)
    settings = make_config(tmp_path_factory.mktemp("alone"), caches, {**RUN, "gradient_accumulation": 2})
    train(settings)
    return settings.out


def require_same_run(one: Path, other: Path) -> None:
    assert curve(one) == curve(other)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 6), (2, 3), (3, 2), (6, 1)])
def test_ranks_and_accumulation_take_the_same_windows_a_step(world: int, accumulation: int) -> None:
    order = EpochOrder(np.zeros(50, np.int64), seed=3, live_shards=1)
    order.set_epoch(1)
    whole, size = list(order), 2 * world * accumulation
    shares = [
        StepOrder(order, batch_size=2, accumulation=accumulation, ranks=Ranks(rank, world)) for rank in range(world)
    ]
    steps = list(zip(*shares, strict=True))
    assert len(steps) == len(shares[0]) == -(-50 // size)
    for number, step in enumerate(steps):
        assert sorted(chain(*step)) == sorted(whole[number * size : (number + 1) * size])
        assert all(len(share) <= 2 * accumulation for share in step)


def test_two_ranks_learn_what_one_learns_with_accumulation_and_one_writes(
    config: Callable[..., TrainConfig], alone: Path, tmp_path: Path
) -> None:
    settings = config("two", gradient_accumulation=1)
    codes, said = launch(tmp_path, lambda rank: train(settings))
    assert codes == [0, 0], said
    require_same_run(alone, settings.out)
    assert "step 6/6" in said[0]
    assert said[1] == ""
    assert not (settings.out / "checkpoints").exists()


def test_killed_ranks_go_on_to_the_same_curve(
    config: Callable[..., TrainConfig], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config("killed", gradient_accumulation=1)

    def killed(rank: int) -> None:
        crash_after(monkeypatch, 4)
        try:
            train(settings)
        except Crash:
            os.kill(os.getpid(), signal.SIGKILL)

    codes, _ = launch(tmp_path, killed)
    assert codes[0] == -signal.SIGKILL
    assert codes[1] != 0, "its peer is gone"
    assert list((settings.out / "checkpoints").glob("checkpoint-3"))
    codes, said = launch(tmp_path, lambda rank: train(settings))
    assert codes == [0, 0], said
    require_same_run(alone, settings.out)


def test_a_rank_out_of_memory_halves_the_batch_of_all(
    config: Callable[..., TrainConfig], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, real = config("halved", gradient_accumulation=1), trainer.hidden_states

    def tight(student: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        if len(ids_BT) > 2:
            raise torch.OutOfMemoryError("injected")
        return real(student, ids_BT, mask_BT)

    def work(rank: int) -> None:
        if rank == 1:
            monkeypatch.setattr(trainer, "hidden_states", tight)
        train(settings)

    codes, said = launch(tmp_path, work)
    assert codes == [0, 0], said
    assert said[0].count("out of memory with 4 windows at once") == 1
    for one, other in zip(curve(settings.out), curve(alone), strict=True):
        assert one["step"] == other["step"]
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)


def test_a_window_damaged_on_one_rank_ends_both_and_is_said_once(
    config: Callable[..., TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, real = config("damaged", gradient_accumulation=1), CachedWindows.__getitems__

    def damaged(self: CachedWindows, indices: list[int]) -> Any:
        found = zip(indices, real(self, indices), strict=True)
        return [RunError("window 5 of rank 1", got="other bytes") if index == 5 else one for index, one in found]

    def work(rank: int) -> None:
        if rank == 1:
            monkeypatch.setattr(CachedWindows, "__getitems__", damaged)
        train(settings)

    codes, said = launch(tmp_path, work)
    assert codes == [1, 1]
    assert "error: window 5 of rank 1: got other bytes" in said[0]
    assert said[1] == ""


def test_a_signal_to_one_rank_stops_both_at_a_checkpoint(
    config: Callable[..., TrainConfig], alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, real = config("stopped", gradient_accumulation=1), trainer.DistillationTrainer.terms

    def terms(self: trainer.DistillationTrainer, batch: Any, *, scoring: bool) -> Any:
        if self.state.global_step == 3 and not scoring:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, scoring=scoring)

    def work(rank: int) -> None:
        if rank == 1:
            monkeypatch.setattr(trainer.DistillationTrainer, "terms", terms)
        train(settings)

    codes, said = launch(tmp_path, work)
    assert codes == [143, 143], said
    assert [path.name for path in (settings.out / "checkpoints").iterdir()] == ["checkpoint-4"]
    codes, said = launch(tmp_path, lambda rank: train(settings))
    assert codes == [0, 0], said
    require_same_run(alone, settings.out)
