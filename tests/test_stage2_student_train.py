"""Training runs, small ones to the end: resume, refusals, what the folder holds. Not for the loss's mathematics."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from student_cache import VOCAB, make_cache, make_windows
from tiny_model import byte_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from shared.config import load_config
from shared.errors import RunError, UsageError
from shared.files import read_jsonl
from stage2_student import checkpoint, run_folder, trainer, watch
from stage2_student.config import TrainConfig
from stage2_student.train import total_steps, train

STUDENT = {"architecture": {"layers": 1, "width": 16, "heads": 2, "positions": 32, "dropout": 0.1}}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("caches")
    make_cache(folder / "cache", make_windows(44, seed=3))
    make_cache(folder / "validation", make_windows(8, seed=4))
    make_cache(folder / "stranger", make_windows(8, seed=5), weights="1" * 64)
    return folder


@pytest.fixture
def config(caches: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    def make(**changes: Any) -> TrainConfig:
        fields = {
            "out": str(tmp_path / "out"),
            "cache": str(caches / "cache"),
            "validation": {"cache": str(caches / "validation")},
            "student": STUDENT,
            "temperature": 1.5,
            "kd_weight": 0.7,
            "ce_weight": 0.3,
            "epochs": 2,
            "batch_size": 4,
            "gradient_accumulation": 2,
            "learning_rate": 1e-2,
            "log_every": 2,
            "device": "cpu",
        }
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(fields | changes))
        return load_config(TrainConfig, path)

    return make


def curve(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    return [
        {key: value for key, value in row.items() if key != "tokens_per_second"}
        for row in read_jsonl(out / "metrics.jsonl")
    ]


def test_a_run_leaves_a_whole_student_and_its_curve(config: Callable[..., TrainConfig]) -> None:
    settings = config(epochs=4)
    run = train(settings)
    out = settings.out
    assert {path.name for path in out.iterdir()} == {
        "run.json", "metrics.jsonl", "curves.png", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
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


class Crash(BaseException):
    """Stands in for kill -9: nothing catches it."""


def crash_after(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    real, seen = watch.append_jsonl, []

    def append(path: Path, new: list[dict[str, Any]]) -> None:
        real(path, new)
        seen.extend(new)
        if len(seen) == rows:
            with path.open("a") as file:
                file.write('{"step": 9, "spl')  # torn
            raise Crash

    monkeypatch.setattr(watch, "append_jsonl", append)


@pytest.mark.parametrize(("rows", "every"), [(2, None), (6, None), (8, 3)])
def test_a_killed_run_goes_on_to_the_same_curve(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows: int, every: int | None
) -> None:
    """Killed before the first checkpoint, between checkpoints, and right after an epoch; with dropout on."""
    changes = {"save_every": every, "eval_every": every, "epochs": 3}
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


def test_other_settings_in_the_folder_are_named(config: Callable[..., TrainConfig]) -> None:
    train(config(max_steps=1, epochs=None))
    with pytest.raises(UsageError) as caught:
        train(config(max_steps=1, epochs=None, learning_rate=0.5, seed=7))
    assert "got learning_rate 0.01 -> 0.5, seed 0 -> 7; choose another out" in str(caught.value)


def test_a_folder_with_something_else_is_refused(config: Callable[..., TrainConfig]) -> None:
    settings = config()
    settings.out.mkdir()
    (settings.out / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"expected an empty or new directory, got thesis\.tex"):
        train(settings)
    assert [path.name for path in settings.out.iterdir()] == ["thesis.tex"]


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
    long = {"epochs": 8, "learning_rate": 2e-2, "temperature": 1.0}
    train(config(**long, kd_weight=0.9, ce_weight=0.1, out=str(tmp_path / "kd")))
    train(config(**long, kd_weight=0.0, ce_weight=1.0, out=str(tmp_path / "ce")))
    distilled, plain = (json.loads((tmp_path / name / "run.json").read_text())["final"] for name in ("kd", "ce"))
    assert distilled["kd"] < plain["kd"]


def test_validation_fraction_trains_and_scores_on_disjoint_windows(config: Callable[..., TrainConfig]) -> None:
    run = train(config(validation={"fraction": 0.25}, max_steps=1, epochs=None))
    assert run["cache"]["windows"] + run["validation"]["windows"] == 44
    assert run["validation"]["from"] == "fraction 0.25"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"cache": "/nowhere/cache"}, "/nowhere/cache: expected a cache with manifest.json, got no such directory"),
        ({"device": "cuda"}, "device: expected a CUDA device, got none that torch sees; set device to auto or cpu"),
        (
            {"validation": {"fraction": 1e-9}},
            "validation.fraction: expected windows on both sides, got 0 of 44 windows",
        ),
        (
            {"student": {"architecture": {**STUDENT["architecture"], "positions": 8}}},
            "positions, for the cache's longest window of",
        ),
    ],
)
def test_refused_before_anything_is_written(
    config: Callable[..., TrainConfig], changes: dict[str, Any], sentence: str
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    settings = config(**changes)
    with pytest.raises(UsageError) as caught:
        train(settings)
    assert sentence in str(caught.value)
    assert not settings.out.exists()


def test_another_teachers_validation_cache_is_refused(config: Callable[..., TrainConfig], caches: Path) -> None:
    with pytest.raises(UsageError, match="expected teacher weights 000000000000, got 111111111111"):
        train(config(validation={"cache": str(caches / "stranger")}))


def test_several_processes_are_refused(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="expected one process, got WORLD_SIZE=2"):
        train(config())


def test_a_missing_reporter_is_named(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stage2_student.train.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'codestill\[wandb\]'"):
        train(config(report_to=["wandb"]))


def test_a_loss_that_is_no_number_stops_and_names_the_windows(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = trainer.hidden_states, []

    def poisoned(*inputs: Any) -> torch.Tensor:
        calls.append(1)
        return real(*inputs) * (float("nan") if len(calls) == 14 else 1.0)

    monkeypatch.setattr(trainer, "hidden_states", poisoned)
    settings = config(epochs=2, batch_size=4, save_every=3)
    with pytest.raises(RunError) as caught:
        train(settings)
    # 11 batches and 2 of validation came before, so the 14th call is the first batch of step 7
    assert str(caught.value).startswith("step 7, windows ")
    assert str(caught.value).count(",") == 4 + 1
    assert "expected a finite loss, got nan" in str(caught.value)
    assert [path.name for path in (settings.out / "checkpoints").iterdir()] == ["checkpoint-6"]


def test_a_full_disk_keeps_the_last_checkpoint(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(save_every=2)
    real = torch.save

    def full(value: Any, path: Any, *rest: Any, **named: Any) -> None:
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(value, path, *rest, **named)

    with monkeypatch.context() as patch, pytest.raises(RunError) as caught:
        patch.setattr(torch, "save", full)
        train(settings)
    assert "expected room for a checkpoint, got a full disk; free some space" in str(caught.value)
    assert [path.name for path in (settings.out / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert train(settings)["status"] == "finished"


def test_other_errors_of_a_checkpoint_keep_their_name(tmp_path: Path) -> None:
    error = RuntimeError("something of ours")
    assert checkpoint.disk_full(tmp_path, error) is error
    assert isinstance(checkpoint.disk_full(tmp_path, RuntimeError("PytorchStreamWriter failed writing file")), RunError)


def test_a_half_written_checkpoint_is_not_taken(tmp_path: Path) -> None:
    for name in ("checkpoint-3", "checkpoint-12", "checkpoint-x", "writing.tmp"):
        (tmp_path / name).mkdir()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-12"]


def test_a_damaged_tokenizer_file_is_found_before_the_student_stands(
    config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    cache = make_cache(tmp_path / "own", make_windows(20, seed=6))
    path = cache / "tokenizer" / "tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    settings = config(cache=str(cache), max_steps=1, epochs=None, validation={"fraction": 0.3})
    with pytest.raises(RunError, match=r"tokenizer file tokenizer\.json of the cache: expected sha256"):
        train(settings)
    assert not (settings.out / "model.safetensors").exists()
