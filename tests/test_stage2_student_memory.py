"""Memory that runs out while training: batches halve, the step is repeated, what does not fit is refused first. One rank."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from student_cache import (
    STUDENT,
    VOCAB,
    Crash,
    crash_after,
    curve,
    require_close,
    same_weights,
)
from tiny_model import byte_tokenizer

from cache.reader import open_cache
from shared.errors import RunError, UsageError
from shared.memory import is_out_of_memory
from shared.tokenizer import fingerprint
from stage2_student import estimate, memory, trainer
from stage2_student.batch import CachedWindows, Collate
from stage2_student.config import TrainConfig
from stage2_student.steps import BY_POSITION, pieces
from stage2_student.student_config import Architecture
from stage2_student.students import count_parameters, from_scratch
from stage2_student.train import train

STILL = {"architecture": {**STUDENT["architecture"], "dropout": 0.0}}


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture is half the time of so small a run, and test_stage2_student_watch.py's."""
    torch.set_num_threads(1)
    monkeypatch.setattr("stage2_student.train.draw_curves", lambda *_: None)


def test_pieces_of_a_batch_hold_every_position_once(caches: Path) -> None:
    windows = CachedWindows(open_cache(caches / "cache"))
    batch = Collate(mask_prompt=True, pad_id=0)([windows[number] for number in range(7)])
    parts = list(pieces(batch, 3))
    assert [len(part["input_ids"]) for part in parts] == [3, 3, 1]
    assert list(chain(*(part["window_ids"] for part in parts))) == batch["window_ids"]
    for name in set(BY_POSITION) & set(batch):
        assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
    seen = torch.cat([part["input_ids"].flatten()[part["counted"]] for part in parts])
    assert torch.equal(seen, batch["input_ids"].flatten()[batch["counted"]])
    assert list(pieces(batch, 7)) == [batch]


def tight(monkeypatch: pytest.MonkeyPatch, most: int) -> list[int]:
    """A device that holds `most` windows' gradients; returns how many windows were tried, call by call."""
    real, tried = trainer.hidden_states, []

    def hidden_states(student: Any, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            tried.append(len(ids_BT))
            if len(ids_BT) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(student, ids_BT, mask_BT)

    monkeypatch.setattr(trainer, "hidden_states", hidden_states)
    return tried


def test_out_of_memory_halves_the_batch_once_and_learns_the_same(
    config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes: dict[str, Any] = {"student": STILL, "epochs": 1, "save_every": 2}
    train(config(**changes, out=str(tmp_path / "roomy")))
    capsys.readouterr()
    with monkeypatch.context() as patch:
        tight(patch, 2)
        train(config(**changes, out=str(tmp_path / "tight")))
    assert capsys.readouterr().err.count("step 1: out of memory with 4 windows at once; repeated") == 1
    require_close(tmp_path / "roomy", tmp_path / "tight", rel=1e-4)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        tight(patch, 2)
        crash_after(patch, 2)
        train(config(**changes, out=str(tmp_path / "broken")))
    with monkeypatch.context() as patch:
        tried = tight(patch, 2)
        train(config(**changes, out=str(tmp_path / "broken")))
    assert max(tried) == 2, "the checkpoint remembers"
    assert "out of memory" not in capsys.readouterr().err.split("going on from step")[1]
    assert curve(tmp_path / "broken") == curve(tmp_path / "tight")
    assert same_weights(tmp_path / "broken", tmp_path / "tight")


def test_memory_that_does_not_hold_one_window_is_one_sentence(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = tight(monkeypatch, 0)
    monkeypatch.setattr(estimate, "what_fits", lambda config: "these fit: gpt2-44m (1.0 GB)")
    with pytest.raises(RunError) as caught:
        train(config())
    assert str(caught.value) == (
        "student: expected room to train it, one window at a time, got out of memory; "
        "set gradient_checkpointing or dtype: bfloat16, or take a smaller one: these fit: gpt2-44m (1.0 GB)"
    )
    assert tried == [4, 2, 1]


def test_a_student_too_big_for_the_device_is_refused_with_presets_that_fit(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "what_fits", lambda config, most: f"these fit in {most}: gpt2-44m (1.0 GB)")
    monkeypatch.setattr("stage2_student.train.free_bytes", lambda device: 100_000)
    monkeypatch.setattr("stage2_student.train.build_student", None)  # refused before its weights take memory
    settings = config()
    with pytest.raises(UsageError) as caught:
        train(settings)
    assert str(caught.value) == (
        "student: expected at most 0.00 GB to train, what this device has free, got about 0.00 GB with one window at once; "
        "take a smaller one: these fit in 100000: gpt2-44m (1.0 GB)"
    )
    assert not settings.out.exists()


def test_the_quick_estimate_is_sixteen_bytes_a_parameter_and_activations(config: Callable[..., TrainConfig]) -> None:
    with torch.device("meta"):
        student = from_scratch(
            Architecture(layers=2, width=8192, heads=2, positions=32), VOCAB, fingerprint(byte_tokenizer())
        )
    parameters, activations = count_parameters(student), 2 * 17 * 24 * 8192 * 4
    needed = memory.needed_bytes(student, 24, config())
    assert needed == 16 * parameters + activations + 2 * 4 * VOCAB * 8192
    assert memory.needed_bytes(student, 24, config(ema=0.9)) == needed + 4 * parameters
    assert memory.needed_bytes(student, 24, config(dtype="bfloat16")) == needed - activations // 2
    assert memory.needed_bytes(student, 24, config(gradient_checkpointing=True)) == needed - activations // 2
    memory.require_room(student, config(), 24, needed)
    memory.require_room(student, config(), 24, None)


def test_what_needs_memory_is_counted(config: Callable[..., TrainConfig], tmp_path: Path) -> None:
    free = memory.free_bytes(torch.device("cpu"))
    assert free is None or free > 0
    assert memory.peak_bytes(torch.device("cpu")) > 10_000_000, "an interpreter with torch in it"
    assert is_out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
