"""Training runs, small ones to the end: resume, refusals, what the folder holds. Not for the loss's mathematics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from student_cache import STUDENT, VOCAB, Crash, crash_after, curve
from tiny_model import byte_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from stage2_student import run_folder
from stage2_student.config import TrainConfig
from stage2_student.train import total_steps, train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_a_run_leaves_a_whole_student_and_its_curve(config: Callable[..., TrainConfig]) -> None:
    settings = config(epochs=4)
    run = train(settings)
    out = settings.out
    assert {path.name for path in out.iterdir()} == {
        "run.json", "metrics.jsonl", "curves.png", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json", "README.md",
    }  # fmt: skip
    student = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert student.get_output_embeddings().weight.shape == (VOCAB, 16)
    assert tokenizer("x = 1").input_ids == byte_tokenizer()("x = 1").input_ids
    assert student.generation_config.eos_token_id == 0
    assert student.config.use_cache
    assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = curve(out)
    validation = [row for row in rows if row["split"] == "validation"]
    assert [row["step"] for row in validation] == [6, 12, 18, 24]
    assert validation[-1]["loss"] < validation[0]["loss"]
    for row in rows:
        assert row["loss"] == pytest.approx(0.7 * 1.5**2 * row["kd"] + 0.3 * row["ce"])
    assert run["status"] == "finished"
    assert run["steps"] == 24 == total_steps(settings, 44)
    assert run["final"]["step"] == 24
    assert run == json.loads((out / "run.json").read_text())


@pytest.mark.parametrize(("rows", "every"), [(2, None), (6, None), (8, 3)])
def test_a_killed_run_goes_on_to_the_same_curve(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int, every: int | None
) -> None:
    """Killed before the first checkpoint, between checkpoints, and right after an epoch; with dropout on."""
    changes = {"save_every": every, "eval_every": every, "epochs": 2}
    whole, broken = config(**changes, out=str(tmp_path / "whole")), config(**changes, out=str(tmp_path / "broken"))
    train(whole)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, rows)
        train(broken)
    assert not (broken.out / "model.safetensors").exists()
    train(broken)
    assert curve(broken.out) == curve(whole.out)
    one, other = (load_file(config.out / "model.safetensors") for config in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_kill_while_the_student_is_published_is_finished_by_the_next_run(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config()

    def fail(*_: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(run_folder, "copy_tokenizer", fail)
        train(settings)
    before = curve(settings.out)
    assert not (settings.out / "model.safetensors").exists()
    run = train(settings)
    assert curve(settings.out) == before
    assert run["steps"] == 12
    assert not list(settings.out.glob("*.tmp"))


def test_a_finished_run_says_so_and_changes_nothing(
    config: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = config(max_steps=2, epochs=None)
    first = train(settings)
    stamps = {path.name: path.stat().st_mtime_ns for path in settings.out.iterdir()}
    assert train(settings) == first
    assert {path.name: path.stat().st_mtime_ns for path in settings.out.iterdir()} == stamps
    assert "already finished, 2 steps" in capsys.readouterr().err


def test_accumulation_equals_a_larger_batch(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    """The mean is over positions of the whole optimizer step, so 8 x 1 and 2 x 4 windows learn the same."""
    still = {"student": {"architecture": {**STUDENT["architecture"], "dropout": 0.0}}, "max_steps": 4, "epochs": None}
    train(config(**still, batch_size=8, gradient_accumulation=1, out=str(tmp_path / "a")))
    train(config(**still, batch_size=2, gradient_accumulation=4, out=str(tmp_path / "b")))
    for one, other in zip(curve(tmp_path / "a"), curve(tmp_path / "b"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5)


def test_workers_and_bfloat16_train_too(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    quick = {"max_steps": 2, "epochs": None}
    train(config(**quick, out=str(tmp_path / "a")))
    train(config(**quick, workers=1, out=str(tmp_path / "b")))
    train(config(**quick, dtype="bfloat16", out=str(tmp_path / "c")))
    exact, workers, low = (curve(tmp_path / name)[-1]["loss"] for name in "abc")
    assert workers == exact
    assert low == pytest.approx(exact, rel=5e-3)
    assert low != exact
    weights = load_file(tmp_path / "c" / "model.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_cross_entropy_alone_has_no_training_kd_but_is_scored_on_it(config: Callable[..., TrainConfig]) -> None:
    settings = config(kd_weight=0.0, ce_weight=1.0, epochs=1)
    train(settings)
    for row in curve(settings.out):
        assert row["loss"] == pytest.approx(row["ce"])
        assert ("kd" in row) == (row["split"] == "validation")


def test_mask_prompt_counts_fewer_positions(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    quick = {"max_steps": 1, "epochs": None, "log_every": 1}
    train(config(**quick, out=str(tmp_path / "a")))
    train(config(**quick, mask_prompt=True, out=str(tmp_path / "b")))
    assert curve(tmp_path / "a")[0]["loss"] != curve(tmp_path / "b")[0]["loss"]


def test_the_distilled_student_comes_closer_to_the_teacher_than_its_twin(
    config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    long = {"epochs": 6, "learning_rate": 2e-2, "temperature": 1.0}
    train(config(**long, kd_weight=0.9, ce_weight=0.1, out=str(tmp_path / "kd")))
    train(config(**long, kd_weight=0.0, ce_weight=1.0, out=str(tmp_path / "ce")))
    distilled, plain = (json.loads((tmp_path / name / "run.json").read_text())["final"] for name in ("kd", "ce"))
    assert distilled["kd"] < plain["kd"]


def test_validation_fraction_trains_and_scores_on_disjoint_windows(config: Callable[..., TrainConfig]) -> None:
    run = train(config(validation={"fraction": 0.25}, max_steps=1, epochs=None))
    assert run["cache"]["windows"] + run["validation"]["windows"] == 44
    assert run["validation"]["from"] == "fraction 0.25"
