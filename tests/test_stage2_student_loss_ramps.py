"""Temperature and weights that move over a run: values, resume, and what the rows say. Not for the formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from student_cache import Crash, crash_after, curve, make_config

from stage2_student.loss import DistillationLoss
from stage2_student.ramp import Ramp, constant
from stage2_student.train import train

MOVING = {
    "temperature": {"from": 3.0, "to": 1.0, "shape": "cosine"},
    "kd_weight": {"from": 0.0, "to": 1.0},
    "ce_weight": {"from": 1.0, "to": 0.25, "shape": "linear"},
    "divergence": {"name": "jsd", "beta": 0.3},
    "epochs": None,
    "max_steps": 9,
    "log_every": 1,
    "save_every": 2,
    "eval_every": 4,
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def ramp(start: float, end: float, shape: str) -> Ramp:
    return Ramp.model_validate({"from": start, "to": end, "shape": shape})


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_a_ramp_meets_its_ends_and_moves_one_way(shape: str) -> None:
    values = [ramp(4.0, 1.0, shape).at(step / 10) for step in range(11)]
    assert values == sorted(values, reverse=True)
    assert (values[0], values[5], values[10]) == pytest.approx((4.0, 2.5, 1.0))
    assert values[1] == pytest.approx(3.7 if shape == "linear" else 2.5 + 1.5 * math.cos(math.pi / 10))


def test_a_constant_stays_to_the_last_digit() -> None:
    assert {constant(0.3).at(step / 7) for step in range(8)} == {0.3}


def test_t_squared_can_be_left_out() -> None:
    settings = {"temperature": ramp(2.0, 4.0, "linear"), "kd_weight": 0.5, "vocab_size": 5}
    whole, bare = DistillationLoss(**settings), DistillationLoss(**settings, t_squared=False)
    for progress, factor in ((0.0, 4.0), (0.5, 9.0), (1.0, 16.0)):
        whole.at(progress)
        bare.at(progress)
        assert whole.kd_scale == pytest.approx(factor * bare.kd_scale)
        assert bare.kd_scale == 0.5


def test_rows_follow_the_ramps_and_validation_stands_at_their_ends(caches: Path, tmp_path: Path) -> None:
    config = make_config(tmp_path, caches, MOVING)
    train(config)
    rows = curve(config.out)
    training = [row for row in rows if row["split"] == "train"]
    assert [row["step"] for row in training] == list(range(1, 10))
    for row in training:
        way = (row["step"] - 1) / 8
        heat, kd, ce = (getattr(config, name).at(way) for name in ("temperature", "kd_weight", "ce_weight"))
        assert row["loss"] == pytest.approx(kd * heat**2 * row["kd"] + ce * row["ce"], rel=1e-5)
    assert training[0]["loss"] == pytest.approx(training[0]["ce"]), "the first step's kd_weight is 0"
    assert training[0]["kd"] > 0, "and its divergence is measured all the same"
    for row in rows:
        if row["split"] == "validation":
            assert row["loss"] == pytest.approx(row["kd"] + 0.25 * row["ce"], rel=1e-5)


def test_a_killed_run_finds_its_place_on_the_ramps(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (make_config(tmp_path, caches, MOVING | {"out": str(tmp_path / name)}) for name in ("a", "b"))
    train(whole)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, 7)
        train(broken)
    train(broken)
    assert curve(broken.out) == curve(whole.out)
    settings = json.loads((broken.out / "run.json").read_text())["config"]
    assert settings["temperature"] == MOVING["temperature"]
    assert settings["divergence"] == {"name": "jsd", "beta": 0.3, "alpha": None}
