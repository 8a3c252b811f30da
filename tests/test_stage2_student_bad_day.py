"""What stage 2 refuses, and what survives when a run breaks. Not for runs that go well (test_stage2_student_train.py)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from student_cache import STUDENT, Crash, crash_after, make_cache, make_windows

from shared.errors import RunError, UsageError
from stage2_student import checkpoint, trainer
from stage2_student.config import TrainConfig
from stage2_student.train import train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def test_other_settings_in_the_folder_are_named(config: Callable[..., TrainConfig]) -> None:
    train(config(max_steps=1, epochs=None))
    with pytest.raises(UsageError) as caught:
        train(config(max_steps=1, epochs=None, learning_rate=0.5, seed=7))
    assert "got learning_rate 0.01 -> 0.5, seed 0 -> 7; choose another out" in str(caught.value)


def test_settings_may_change_before_the_first_checkpoint_and_not_after(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever follows the advice to lower the learning rate after a bad start must not be sent to another folder."""
    for rows, allowed in ((2, True), (6, False)):
        with monkeypatch.context() as patch, pytest.raises(Crash):
            crash_after(patch, rows)
            train(config(learning_rate=rows / 100))
        if allowed:
            continue
        with pytest.raises(UsageError, match=r"got learning_rate 0\.06 -> 0\.5"):
            train(config(learning_rate=0.5))


def test_another_programs_run_json_is_refused(config: Callable[..., TrainConfig]) -> None:
    settings = config()
    settings.out.mkdir()
    (settings.out / "run.json").write_text('{"format": "theirs"}')
    with pytest.raises(UsageError, match=r"run\.json: expected a run of this command, got another file"):
        train(settings)


def test_a_folder_with_something_else_is_refused(config: Callable[..., TrainConfig]) -> None:
    settings = config()
    settings.out.mkdir()
    (settings.out / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match=r"expected an empty or new directory, got thesis\.tex"):
        train(settings)
    assert [path.name for path in settings.out.iterdir()] == ["thesis.tex"]


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


def test_half_a_launcher_is_refused(config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(
        UsageError, match="beside WORLD_SIZE=2, got no MASTER_ADDR, MASTER_PORT; start it with torchrun"
    ):
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


@pytest.mark.parametrize(
    ("poisoned_split", "sentence"),
    [
        ("loss", "step 6, validation loss: expected a finite number, got nan"),
        ("eval_loss", "step 6, weights transformer.ln_f.bias: expected finite numbers, got nan or inf"),
    ],
)
def test_weights_that_are_no_numbers_are_never_saved(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, poisoned_split: str, sentence: str
) -> None:
    """Poisoned before the validation, which shows it, and after it, where only the weights themselves do."""
    real = trainer.DistillationTrainer.log

    def poison(self: trainer.DistillationTrainer, logs: dict[str, Any], start_time: float | None = None) -> None:
        real(self, logs, start_time)
        if self.state.global_step == 6 and poisoned_split in logs:
            self.model.transformer.ln_f.bias.data.fill_(float("nan"))

    monkeypatch.setattr(trainer.DistillationTrainer, "log", poison)
    settings = config(save_every=3, eval_every=3)
    with pytest.raises(RunError) as caught:
        train(settings)
    assert str(caught.value).startswith(sentence)
    assert [path.name for path in (settings.out / "checkpoints").iterdir()] == ["checkpoint-3"]


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
    assert "expected room for the student's files, got a full disk; free some space" in str(caught.value)
    assert [path.name for path in (settings.out / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert train(settings)["status"] == "finished"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 162880 vs 162768"),  # torch.save's own
    ],
)
def test_every_librarys_full_disk_is_one_sentence(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(RunError, match="got a full disk"), checkpoint.named_when_full(tmp_path):
        raise error


def test_other_errors_keep_their_name(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="of ours"), checkpoint.named_when_full(tmp_path):
        raise RuntimeError("something of ours")


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
