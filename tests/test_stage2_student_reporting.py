"""What a run shows while it learns: its rows in full, TensorBoard, Weights & Biases offline, samples. No network."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from student_cache import Crash, crash_after, curve, make_config
from tiny_model import byte_tokenizer
from transformers import AutoModelForCausalLM

from cache.reader import open_cache
from shared.errors import UsageError
from shared.files import read_jsonl
from stage2_student.batch import CachedWindows
from stage2_student.config import TrainConfig
from stage2_student.ranks import Ranks
from stage2_student.reporting import reporting
from stage2_student.samples import complete, indented, prompts_of
from stage2_student.train import train

QUICK: dict[str, Any] = {"max_steps": 4, "epochs": None, "save_every": 2}
SAMPLES = {"every": 2, "prompts": ["def f(", "x"], "max_new_tokens": 5}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("stage2_student.train.draw_curves", lambda *_: None)


@pytest.fixture
def config(caches: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    return lambda **changes: make_config(tmp_path, caches, {**QUICK, **changes})


def test_rows_hold_everything_that_is_watched(config: Callable[..., TrainConfig]) -> None:
    settings = config(temperature={"from": 1.0, "to": 2.0}, kd_weight={"from": 0.5, "to": 1.0}, log_every=1)
    train(settings)
    rows = list(read_jsonl(settings.out / "metrics.jsonl"))
    first, last = rows[0], rows[-1]
    assert set(first) == {
        "step", "epoch", "split", "loss", "kd", "ce", "perplexity", "temperature", "kd_weight", "learning_rate",
        "grad_norm", "tokens_per_second", "data_wait", "peak_memory_bytes",
    }  # fmt: skip
    moving = [(row["temperature"], row["kd_weight"]) for row in rows if row["split"] == "train"]
    assert np.allclose(moving, [(1, 1 / 2), (4 / 3, 2 / 3), (5 / 3, 5 / 6), (2, 1)])
    assert first["perplexity"] == pytest.approx(np.exp(first["ce"]))
    assert 0 < first["data_wait"] < 1
    assert first["peak_memory_bytes"] > 10_000_000
    assert set(last) >= {
        "step", "epoch", "split", "loss", "kd", "ce", "perplexity", "agreement", "teacher_tail", "student_tail",
    }  # fmt: skip


def test_tail_masses_are_those_of_both_models(config: Callable[..., TrainConfig], caches: Path) -> None:
    """Against the published student's own logits, and the teacher's heads, at T = 1."""
    settings = config(temperature=1.0)
    train(settings)
    row = curve(settings.out)[-1]
    student = AutoModelForCausalLM.from_pretrained(settings.out)
    teacher_tail, student_tail, positions = 0.0, 0.0, 0
    for window in CachedWindows(open_cache(caches / "validation")):  # type: ignore[attr-defined]
        ids_1T = torch.from_numpy(window.tokens[None, :-1].astype(np.int64))
        q_TV = student(ids_1T).logits[0].detach().softmax(1)
        ends = window.head_sizes_P.cumsum()
        for position, (end, size) in enumerate(zip(ends, window.head_sizes_P, strict=True)):
            head = slice(end - size, end)
            teacher_tail += 1 - np.exp(window.head_logprobs_E[head]).sum()
            student_tail += 1 - float(q_TV[position, window.head_ids_E[head]].sum())
            positions += 1
    assert row["teacher_tail"] == pytest.approx(teacher_tail / positions, abs=1e-3)
    assert row["student_tail"] == pytest.approx(student_tail / positions, abs=1e-5)


def test_samples_are_greedy_and_go_on_after_a_kill(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(samples=SAMPLES, ema=0.9)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, 2)
        train(settings)
    assert [row["step"] for row in read_jsonl(settings.out / "samples.jsonl")] == [2, 2, 4, 4]
    train(settings)
    rows = list(read_jsonl(settings.out / "samples.jsonl"))
    assert [(row["step"], row["prompt"]) for row in rows] == [(2, "def f("), (2, "x"), (4, "def f("), (4, "x")]
    student = AutoModelForCausalLM.from_pretrained(settings.out)
    tokenizer = byte_tokenizer()
    assert rows[-1]["completion"] == complete(student, tokenizer, "x", 5)
    ids = tokenizer("x", return_tensors="pt").input_ids
    for _ in range(5):
        ids = torch.cat([ids, student(ids).logits[:, -1:].argmax(2)], 1)
    assert rows[-1]["completion"] == tokenizer.decode(ids[0, 1:], skip_special_tokens=True)


def test_a_prompt_as_long_as_the_student_sees_gets_nothing(config: Callable[..., TrainConfig]) -> None:
    settings = config()
    train(settings)
    student = AutoModelForCausalLM.from_pretrained(settings.out)
    assert complete(student, byte_tokenizer(), "x" * 32, 5) == ""
    short, long = (complete(student, byte_tokenizer(), "x" * 30, most) for most in (2, 5))
    assert short == long != ""


def test_prompts_come_from_the_validation_windows(caches: Path) -> None:
    windows = CachedWindows(open_cache(caches / "validation"))
    prompts = prompts_of(windows, byte_tokenizer(), 3)
    expected = [
        byte_tokenizer().decode(windows[number].tokens[:3].tolist(), skip_special_tokens=True) for number in range(8)
    ]
    assert prompts == [text for text in expected if text][:3]
    assert indented("def f():\n  x") == "    def f():\n      x"


@pytest.mark.parametrize("wrong", [{"prompts": []}, {"count": 2}, {"prompts": ["x", ""]}])
def test_samples_need_one_source(config: Callable[..., TrainConfig], wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"exactly one of prompts \(none of them empty\), count"):
        config(samples={**SAMPLES, **wrong})


@pytest.mark.skipif(find_spec("tensorboard") is None, reason="tensorboard is not installed (extra: tensorboard)")
def test_tensorboard_gets_the_rows_and_the_samples(config: Callable[..., TrainConfig]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = config(report_to=["tensorboard"], samples=SAMPLES)
    train(settings)
    assert "TENSORBOARD_LOGGING_DIR" not in os.environ
    events = EventAccumulator(str(settings.out / "tensorboard")).Reload()
    rows = curve(settings.out)
    for name, split in (("train/kd", "train"), ("eval/kd", "validation"), ("eval/student_tail", "validation")):
        wanted = [(row["step"], row[name.split("/")[1]]) for row in rows if row["split"] == split]
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (step, np.float32(value)) for step, value in wanted
        ]
    assert {"train/data_wait", "train/peak_memory_bytes", "train/tokens_per_second", "train/learning_rate"} <= set(
        events.Tags()["scalars"]
    )
    texts = events.Tensors("samples/0/text_summary")
    assert [event.step for event in texts] == [2, 4]
    assert texts[0].tensor_proto.string_val[0].decode().startswith("    def f(")


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed (extra: wandb)")
def test_wandb_works_offline_and_goes_on_in_the_same_run(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    settings = config(report_to=["wandb"], samples=SAMPLES)
    train(settings)
    assert {name for name in os.environ if name.startswith("WANDB_")} == {"WANDB_MODE", "WANDB_SILENT"}
    (folder,) = (settings.out / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    for key in (b"train/kd", b"eval/student_tail", b"train/data_wait", b"samples"):
        assert key in log.read_bytes()
    with reporting(settings, Ranks()):
        assert folder.name.endswith(f"-{os.environ['WANDB_RUN_ID']}"), "a resumed run's name"
        assert os.environ["WANDB_RESUME"] == "allow"
    monkeypatch.setenv("WANDB_RUN_ID", "theirs")
    with reporting(settings, Ranks()):
        assert os.environ["WANDB_RUN_ID"] == "theirs"
    assert os.environ["WANDB_RUN_ID"] == "theirs"
