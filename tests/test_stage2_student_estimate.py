"""Estimates: what is counted is what training builds and does, memory within a stated factor, and what is said when it is too much."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

from cache.manifest import read_manifest
from stage2_student import estimate as estimate_module
from stage2_student.__main__ import app
from stage2_student.config import TrainConfig
from stage2_student.data import open_data
from stage2_student.estimate import Counts, count, estimate, memory_of, what_fits
from stage2_student.estimate_time import Clock, Pace, measure, seconds_of
from stage2_student.skeleton import saved_for_backward, shaped, without_memory
from stage2_student.student_config import StudentConfig
from stage2_student.students import build_student, count_parameters, count_trained
from stage2_student.sweep_plan import estimate_text
from stage2_student.train import total_steps

FACTOR = 1.3  # measured peak over estimate, either way


@pytest.mark.parametrize("family", ["gpt2", "sinusoidal", "llama"])
def test_a_skeleton_has_the_student_s_parameters(caches: Path, family: str) -> None:
    manifest = read_manifest(caches / "cache")
    student = StudentConfig.model_validate({"architecture": {"family": family, "layers": 2, "width": 16, "heads": 2}})
    real = build_student(student, manifest.vocab_size, manifest.tokenizer)
    real_bytes = saved_for_backward(real, 3, 20, low=None)
    with without_memory():
        skeleton = shaped(student, manifest.vocab_size, manifest.tokenizer)
        assert saved_for_backward(skeleton, 3, 20, low=None) == pytest.approx(real_bytes, rel=0.1)
    assert count_parameters(skeleton) == count_parameters(real) == sum(weight.numel() for weight in real.parameters())


def test_presets_have_the_published_sizes(caches: Path) -> None:
    manifest = read_manifest(caches / "cache")
    for name, size in {"gpt2-44m": 44_343_296, "gpt2-202m": 202_012_672}.items():
        with without_memory():
            student = shaped(StudentConfig.model_validate({"preset": name}), 49_152, manifest.tokenizer)
            assert count_parameters(student) == count_trained(student) == size


def test_adapters_are_counted_as_peft_makes_them(caches: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    manifest = read_manifest(caches / "cache")
    small = StudentConfig.model_validate({"architecture": {"layers": 2, "width": 16, "heads": 2}})
    build_student(small, manifest.vocab_size, manifest.tokenizer).save_pretrained(tmp_path)
    shutil.copytree(caches / "cache" / "tokenizer", tmp_path, dirs_exist_ok=True)
    adapted = StudentConfig.model_validate({"pretrained": str(tmp_path), "lora": {"rank": 4, "alpha": 8}})
    real = build_student(adapted, manifest.vocab_size, manifest.tokenizer)
    with without_memory():
        skeleton = shaped(adapted, manifest.vocab_size, manifest.tokenizer)
    assert count_trained(skeleton) == count_trained(real) > 0
    assert count_parameters(skeleton) == count_parameters(real)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 3},
        {"epochs": None, "max_steps": 7},
        {"validation": {"fraction": 0.25}, "batch_size": 5, "gradient_accumulation": 3},
    ],
)
def test_counts_are_training_s_own(config: Callable[..., TrainConfig], changes: dict[str, Any]) -> None:
    settings = config(**changes)
    found, data = count(settings), open_data(settings)
    assert found.exact
    assert found.lengths_W.tolist() == data.training.cache.lengths[data.training.indices].tolist()
    assert found.scored == len(data.validation)
    assert found.steps == total_steps(settings, len(data.training))


def test_a_manifest_alone_is_enough(config: Callable[..., TrainConfig], caches: Path, tmp_path: Path) -> None:
    lone = tmp_path / "lone"
    lone.mkdir()
    shutil.copy(caches / "cache" / "manifest.json", lone)
    whole, bare = (
        count(config(validation={"fraction": 0.25})),
        count(config(cache=str(lone), validation={"fraction": 0.25})),
    )
    assert not bare.exact
    assert len(bare.lengths_W) == 33
    assert bare.tokens == pytest.approx(whole.tokens, rel=0.3)
    known = Clock().estimate(config(cache=str(lone), validation={"fraction": 0.25}, max_steps=4, epochs=None))
    assert known.seconds is not None
    assert known.counts.steps == 4


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that torch held at once in `work`, beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


@pytest.mark.parametrize(
    ("family", "dropout", "changes"),
    [
        ("gpt2", 0.1, {}),
        ("gpt2", 0.1, {"gradient_checkpointing": True}),
        ("llama", 0.0, {"dtype": "bfloat16"}),
        ("sinusoidal", 0.0, {}),
    ],
)
def test_memory_is_what_training_takes(
    config: Callable[..., TrainConfig], family: str, dropout: float, changes: dict[str, Any]
) -> None:
    student = {"family": family, "layers": 3, "width": 64, "heads": 4, "positions": 256, "dropout": dropout}
    settings = config(student={"architecture": student}, batch_size=4, **changes)
    counts = Counts(np.full(8, 250), 0, 250, 1, exact=True)
    peak = peak_of(lambda: measure(settings, counts, "cpu"))
    manifest = read_manifest(settings.cache)  # type: ignore[arg-type]
    with without_memory():
        skeleton = shaped(settings.student, manifest.vocab_size, manifest.tokenizer)
        parts = memory_of(skeleton, settings, manifest, 250, "cpu")
    guess = sum(parts.values()) - parts["process"]
    print(f"{family} {changes}: peak {peak / 1e6:.1f} MB, estimate {guess / 1e6:.1f} MB, ratio {guess / peak:.2f}")
    assert peak / FACTOR < guess < peak * FACTOR


def test_memory_follows_the_settings(config: Callable[..., TrainConfig]) -> None:
    plain = estimate(config()).memory
    assert plain["optimizer"] == 2 * plain["gradients"] == 2 * plain["weights"] == 8 * estimate(config()).parameters
    assert estimate(config(batch_size=8)).memory["activations"] == pytest.approx(2 * plain["activations"], rel=0.1)
    assert estimate(config(dtype="bfloat16")).memory["activations"] < plain["activations"]
    assert estimate(config(ema=0.9)).memory["moving_average"] == plain["weights"]
    deep = {"architecture": {"layers": 8, "width": 16, "heads": 2, "positions": 32, "dropout": 0.1}}
    saved, whole = (
        estimate(config(student=deep, gradient_checkpointing=on)).memory["activations"] for on in (True, False)
    )
    assert saved < 0.5 * whole


def test_seconds_are_counted_over_the_whole_run(config: Callable[..., TrainConfig]) -> None:
    """44 windows: 11 batches of 4, 6 steps of 2 batches an epoch, the last of one; 8 windows scored each epoch."""
    pace = Pace(batch=1.0, step=100.0, score=10_000.0)
    settings = config(epochs=2)
    assert seconds_of(settings, count(settings), pace) == 22 * 1.0 + 12 * 100.0 + 2 * 2 * 10_000.0
    settings = config(epochs=None, max_steps=8, eval_every=4)
    assert seconds_of(settings, count(settings), pace) == (11 + 2 * 2) * 1.0 + 8 * 100.0 + 2 * 2 * 10_000.0


def test_runs_that_cost_the_same_are_timed_once(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[int] = []

    def fake(settings: TrainConfig, *_: Any) -> Pace:
        timed.append(settings.batch_size)
        return Pace(1.0, 1.0, 1.0)

    monkeypatch.setattr("stage2_student.estimate_time.measure", fake)
    clock = Clock()
    short, long, large = (
        clock.estimate(config(**changes)) for changes in ({}, {"epochs": 4, "seed": 1}, {"batch_size": 8})
    )
    assert timed == [4, 8]
    assert (short.seconds, long.seconds) == (11 * 2 + 12 + 4, 11 * 4 + 24 + 8)
    assert large.seconds is not None


def test_a_student_that_does_not_fit_is_not_tried(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config()
    monkeypatch.setattr(estimate_module, "room", lambda device: 1_000_000)
    monkeypatch.setattr(estimate_module, "PRESETS", ["gpt2-44m"])
    known = Clock().estimate(settings)
    assert (known.fits, known.seconds) == (False, None)
    smallest = "no preset fits at batch_size 4; the smallest is gpt2-44m ("
    assert f"the student does not fit this cpu; {smallest}" in estimate_text(settings, known)


def test_presets_that_fit_are_named(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate_module, "PRESETS", ["gpt2-44m", "gpt2-202m"])
    said = what_fits(config(), 2_000_000_000)
    assert said.startswith("these fit: gpt2-44m (")
    assert "202m" not in said


def test_estimate_on_the_command_line(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    config(epochs=1)
    torch.set_num_threads(1)
    done = CliRunner().invoke(app, ["estimate", str(tmp_path / "train.yaml"), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert {"parameters", "memory_bytes", "seconds", "steps", "epochs", "tokens", "fits"} <= set(found)
    assert found["parameters"] == 260 * 16 + 32 * 16 + 3280 + 32
    assert found["memory_bytes"] == sum(found["memory"].values())
    assert found["seconds"] > 0
    assert (found["steps"], found["epochs"]) == (6, 1)
    text = CliRunner().invoke(app, ["estimate", str(tmp_path / "train.yaml"), "--set", "epochs=2"])
    assert "steps       12 (2 epochs)" in text.stdout
    assert not (tmp_path / "out").exists()
