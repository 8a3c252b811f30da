"""Training that lasts: moving average, best student, early stop, schedules, low precision, signals. One rank."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from student_cache import (
    STUDENT,
    Crash,
    crash_after,
    curve,
    require_close,
    same_weights,
    validations,
    weights,
)
from torch import nn

from shared.errors import UsageError
from shared.files import read_jsonl, write_jsonl
from stage2_student import trainer
from stage2_student.config import TrainConfig
from stage2_student.ema import Shadow
from stage2_student.options import EarlyStopping
from stage2_student.scores import Scores
from stage2_student.train import train

STILL = {"architecture": {**STUDENT["architecture"], "dropout": 0.0}}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is half the time of so small a run, and test_stage2_student_watch.py's."""
    torch.set_num_threads(1)
    monkeypatch.setattr("stage2_student.train.draw_curves", lambda *_: None)


# The moving average


def test_the_shadow_is_the_average_of_the_formula_and_comes_back_from_disk(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(8.0)
    shadow = Shadow(model, 0.25)
    for step, weight, expected in ((1, 0.0, 8 * 2 / 11), (2, 4.0, 8 * 2 / 11 * 0.25 + 4 * 0.75)):
        model.weight.data.fill_(weight)
        shadow.update(step)
        with shadow.in_place():
            assert model.weight.item() == pytest.approx(expected)
        assert model.weight.item() == weight
    shadow.save(tmp_path)
    other = Shadow(model, 0.25)
    other.load(tmp_path)
    with other.in_place():
        assert model.weight.item() == pytest.approx(expected)


def test_the_average_is_validated_published_and_survives_a_kill(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"epochs": 1, "save_every": 2, "eval_every": 3}
    whole, broken = (config(**changes, ema=0.8, out=str(tmp_path / name)) for name in ("whole", "broken"))
    train(whole)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, 4)
        train(broken)
    train(broken)
    assert curve(broken.out) == curve(whole.out)
    assert same_weights(whole.out, broken.out)
    plain = config(**changes, out=str(tmp_path / "plain"))
    train(plain)
    ours, theirs = curve(whole.out), curve(plain.out)
    assert [row for row in ours if row["split"] == "train"] == [row for row in theirs if row["split"] == "train"]
    assert validations(whole.out).keys() == validations(plain.out).keys()
    assert validations(whole.out) != validations(plain.out)
    assert not same_weights(whole.out, plain.out)


# The best student, and when to stop


def scores_of(tmp_path: Path, kd: list[float], early: EarlyStopping | None, *, keep_best: bool = False) -> Scores:
    rows = [{"step": 10 * number, "split": "validation", "kd": value} for number, value in enumerate(kd, 1)]
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 5, "split": "train", "kd": 0.0}, *rows])
    scores = Scores(early, keep_best=keep_best)
    scores.read(tmp_path / "metrics.jsonl")
    return scores


@pytest.mark.parametrize(
    ("kd", "min_delta", "finished"),
    [
        ([], 0.0, False),
        ([3.0, 3.1], 0.0, False),
        ([3.0, 3.1, 3.0], 0.0, True),
        ([3.0, 3.1, 2.9, 2.95], 0.0, False),
        ([3.0, 2.95, 2.9], 0.0, False),
        ([3.0, 2.95, 2.9], 0.2, True),
    ],
)
def test_patience_counts_validations_without_a_new_lowest(
    tmp_path: Path, kd: list[float], min_delta: float, finished: bool
) -> None:
    early = EarlyStopping(patience=2, min_delta=min_delta)
    assert scores_of(tmp_path, kd, early).finished is finished
    assert scores_of(tmp_path, kd, None).finished is False


def test_the_best_step_is_the_earliest_of_the_lowest(tmp_path: Path) -> None:
    assert scores_of(tmp_path, [3.0, 2.0, 2.0, 2.5], None, keep_best=True).best_step == 20
    assert scores_of(tmp_path, [], None, keep_best=True).best_step is None
    assert scores_of(tmp_path, [3.0, 2.0], None).best_step is None
    assert scores_of(tmp_path, [3.0, 2.0], None).last_step == 20


def overfit(monkeypatch: pytest.MonkeyPatch, kd: dict[int, float]) -> None:
    """Let validation find these values, as if the student got worse."""
    real = trainer._means

    def means(loss: Any, sums: list[float]) -> dict[str, float]:
        values = real(loss, sums)
        return {**values, "kd": kd[len(found)] if not found.append(1) else 0.0}  # type: ignore[func-returns-value]

    found: list[int] = []
    monkeypatch.setattr(trainer, "_means", means)


def test_the_best_student_is_published_and_the_run_ends_early(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Best at the second validation of six; two more without a lower one end it. Checkpoints fall elsewhere."""
    kinds = {"eval_every": 2, "save_every": 5, "keep_best": True, "early_stopping": {"patience": 2}}
    with monkeypatch.context() as patch:
        overfit(patch, {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.1})
        run = train(config(**kinds, out=str(tmp_path / "best")))
    assert run["status"] == "finished"
    assert run["steps"] == 8
    assert (run["final"]["step"], run["final"]["kd"]) == (4, 2.0)
    assert validations(tmp_path / "best") == {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.1}
    kept: list[list[str]] = []
    real = trainer.drop_older

    def drop_older(folder: Path, step: int, *, keep: int | None) -> None:
        real(folder, step, keep=keep)
        kept.append(sorted(path.name for path in folder.iterdir()))
        if step == 8:
            raise Crash

    with monkeypatch.context() as patch, pytest.raises(Crash):
        overfit(patch, {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.1})
        patch.setattr(trainer, "drop_older", drop_older)
        train(config(**kinds, out=str(tmp_path / "broken")))
    names = [["2"], ["4"], ["4", "5"], ["4", "8"]]
    assert kept == [[f"checkpoint-{step}" for step in steps] for steps in names]
    run = train(config(**kinds, out=str(tmp_path / "broken")))
    assert run["steps"] == 8, "it had stopped, and does not start again"
    assert curve(tmp_path / "broken") == curve(tmp_path / "best")
    assert same_weights(tmp_path / "best", tmp_path / "broken")


# Schedules and precision


def test_wsd_warms_up_stays_and_falls_at_the_end(config: Callable[..., TrainConfig]) -> None:
    settings = config(scheduler="wsd", warmup=3, decay=4, log_every=1, learning_rate=1.0, max_steps=10, epochs=None)
    train(settings)
    rates = [row["learning_rate"] for row in curve(settings.out) if row["split"] == "train"]
    assert rates == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1, 1, 1 - 0.25**0.5, 1 - 0.5**0.5, 1 - 0.75**0.5])


def test_a_fall_longer_than_the_run_is_refused(config: Callable[..., TrainConfig]) -> None:
    with pytest.raises(
        UsageError, match="scheduler wsd: expected at most the run's 12 steps, got warmup 5 \\+ decay 8"
    ):
        train(config(scheduler="wsd", warmup=5, decay=8))


@pytest.mark.parametrize("changes", [{"scheduler": "wsd"}, {"decay": 3}])
def test_wsd_and_its_fall_belong_together(config: Callable[..., TrainConfig], changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="decay beside scheduler: wsd"):
        config(**changes)


def test_float16_scales_the_loss_and_leaves_out_a_step_that_overflows(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick: dict[str, Any] = {"student": STILL, "max_steps": 4, "epochs": None, "log_every": 1}
    train(config(**quick, out=str(tmp_path / "exact")))
    train(config(**quick, dtype="float16", out=str(tmp_path / "low")))
    require_close(tmp_path / "exact", tmp_path / "low", rel=5e-3)
    assert not same_weights(tmp_path / "exact", tmp_path / "low")
    real = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device: real(device, init_scale=2.0**126, growth_interval=1))
    train(config(**quick, dtype="float16", out=str(tmp_path / "overflow")))
    assert "grad_norm" not in curve(tmp_path / "overflow")[0]


def test_gradient_checkpointing_changes_nothing_but_memory(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    quick = {"max_steps": 3, "epochs": None}
    train(config(**quick, out=str(tmp_path / "a")))
    train(config(**quick, gradient_checkpointing=True, out=str(tmp_path / "b")))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")


def test_compile_without_a_compiler_is_refused(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(
        UsageError, match=r"compile: expected a C\+\+ compiler \(g\+\+, clang\+\+, cl\), got none on PATH"
    ):
        train(config(compile=True))


def test_compile_wires_the_body_and_leaves_samples_alone(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """torch's tracing as it is, without the minute that a compiler takes."""
    quick: dict[str, Any] = {"student": STILL, "max_steps": 1, "epochs": None, "log_every": 1}
    quick["samples"] = {"every": 1, "prompts": ["x"], "max_new_tokens": 2}
    train(config(**quick, out=str(tmp_path / "plain")))
    real, compiled = nn.Module.compile, list[str]()

    def compile_eagerly(self: nn.Module) -> None:
        compiled.append(type(self).__name__)
        real(self, backend="eager")

    monkeypatch.setattr(nn.Module, "compile", compile_eagerly)
    train(config(**quick, compile=True, out=str(tmp_path / "compiled")))
    assert compiled == ["GPT2Model"]
    require_close(tmp_path / "plain", tmp_path / "compiled", rel=1e-6)
    assert weights(tmp_path / "plain").keys() == weights(tmp_path / "compiled").keys()
    assert list(read_jsonl(tmp_path / "plain" / "samples.jsonl")) == list(
        read_jsonl(tmp_path / "compiled" / "samples.jsonl")
    )


@pytest.mark.slow
def test_compile_with_the_real_compiler_learns_the_same(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    quick: dict[str, Any] = {"student": STILL, "max_steps": 3, "epochs": None, "log_every": 1}
    train(config(**quick, out=str(tmp_path / "plain")))
    train(config(**quick, compile=True, out=str(tmp_path / "compiled")))
    require_close(tmp_path / "plain", tmp_path / "compiled", rel=1e-5)


@pytest.mark.requires_gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_gpu_trains_in_low_precision_and_tells_its_memory(
    config: Callable[..., TrainConfig], tmp_path: Path, dtype: str
) -> None:
    quick: dict[str, Any] = {"student": STILL, "max_steps": 3, "epochs": None, "log_every": 1}
    train(config(**quick, out=str(tmp_path / "cpu")))
    train(config(**quick, device="cuda", dtype=dtype, out=str(tmp_path / "gpu")))
    require_close(tmp_path / "cpu", tmp_path / "gpu", rel=1e-2)
    rows = list(read_jsonl(tmp_path / "gpu" / "metrics.jsonl"))
    assert rows[0]["peak_memory_bytes"] == pytest.approx(torch.cuda.max_memory_allocated(), rel=0.5)


# Ctrl-C and SIGTERM


@pytest.mark.parametrize(
    ("number", "name", "code", "dtype"),
    [(signal.SIGINT, "Ctrl-C", 130, "float32"), (signal.SIGTERM, "SIGTERM", 143, "float16")],
)
def test_a_signal_ends_the_run_after_a_checkpoint_and_it_goes_on_exactly(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int, name: str, code: int,
    dtype: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """In the middle of a row, of an epoch and between validations; with dropout, a moving average and float16's scale."""
    changes: dict[str, Any] = {"epochs": 1, "log_every": 4, "eval_every": 4, "ema": 0.9, "dtype": dtype}
    whole, stopped = (config(**changes, out=str(tmp_path / folder)) for folder in ("whole", "stopped"))
    train(whole)
    real, sent = trainer.DistillationTrainer.terms, list[int]()

    def terms(self: trainer.DistillationTrainer, batch: Any, *, scoring: bool) -> Any:
        if self.state.global_step == 2 and not scoring and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return real(self, batch, scoring=scoring)

    before = signal.getsignal(number)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr(trainer.DistillationTrainer, "terms", terms)
        train(stopped)
    said = capsys.readouterr().err
    assert said.count("stopping after this step and a checkpoint") == 1
    assert caught.value.code == code
    assert f"stopped by {name} at step 3 of 6: saved in {stopped.out}; the same command goes on" in said
    assert signal.getsignal(number) is before
    assert [path.name for path in (stopped.out / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert json.loads((stopped.out / "run.json").read_text())["status"] == "running"
    assert train(stopped)["status"] == "finished"
    assert curve(stopped.out) == curve(whole.out)
    assert same_weights(stopped.out, whole.out)
