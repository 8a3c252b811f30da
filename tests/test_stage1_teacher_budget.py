"""Tokens of a batch: probed, halved where memory runs out, and the same again after a crash. A body that raises stands in for
a full card.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_stage1_teacher_capture import files_of, run, settings
from tiny_model import save_tiny_model

from cache.verify import verify
from shared.errors import UsageError
from stage1_teacher import budget as budget_module
from stage1_teacher import capture as capture_module
from stage1_teacher.batches import FIXED
from stage1_teacher.budget import Budget, budget_for, probe
from stage1_teacher.teacher import TeacherModel

Shapes = list[tuple[int, int]]
FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory: you tried to allocate 9"
    ),
]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("teacher"), rows=300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("corpus") / "rows.jsonl"
    rows = [{"ask": f"# {n}\n", "code": f"x = {n} * {'y' * (n % 13)}1\n", "task_id": n} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fits_until(most: int, error: Exception = FULL[0]) -> Callable[[int], None]:
    def attempt(tokens: int) -> None:
        if tokens > most:
            raise error

    return attempt


@pytest.mark.parametrize(
    ("most", "found"), [(10**9, 32_768), (32_768, 32_768), (20_000, 8_192), (5_000, 2_048), (3_000, 1_024), (0, 1_024)]
)
def test_the_probe_leaves_room(most: int, found: int) -> None:
    for error in FULL:
        assert probe(fits_until(most, error)) == found


def test_the_probe_hides_no_other_error() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        probe(fits_until(0, RuntimeError("size mismatch")))


def test_changes_hold_from_their_place_on_and_survive(tmp_path: Path) -> None:
    path = tmp_path / "budget.json"
    budget = Budget(4096, path)
    budget.lower(3, 10, 2000)
    budget.lower(3, 25, 1500)
    budget.lower(3, 25, 900)  # twice at one place
    for one in (budget, Budget(4096, path)):
        places = [(0, 0), (3, 9), (3, 10), (3, 24), (3, 25), (4, 0)]
        assert [one.at(*place) for place in places] == [4096, 4096, 2000, 2000, 900, 900]
        assert (one.lowered, one.now) == (3, 900)
    assert Budget(8192, path).at(9, 0) == 8192, "somebody wants another size now"
    assert Budget(8192, path).lowered == 0


def stuffed(monkeypatch: pytest.MonkeyPatch, most: int, stop: int | None = None, error: Exception = FULL[0]) -> Shapes:
    """A teacher on a card that holds `most` tokens; after `stop` more batches the machine is taken away."""
    real, shapes = capture_module.load_teacher, Shapes()

    class Body(torch.nn.Module):
        def __init__(self, body: Any) -> None:
            super().__init__()
            self.body = body

        def get_input_embeddings(self) -> Any:
            return self.body.get_input_embeddings()

        def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
            if input_ids.numel() > most:
                raise error
            if stop is not None and len(shapes) >= stop:
                raise KeyboardInterrupt
            shapes.append((input_ids.shape[0], input_ids.shape[1]))
            return self.body(input_ids=input_ids, **options)

    def load(config: Any) -> TeacherModel:
        found = real(config)
        return replace(found, body=Body(found.body))

    monkeypatch.setattr(capture_module, "load_teacher", load)
    return shapes


def test_memory_that_runs_out_costs_no_window_and_a_crash_changes_nothing(
    tmp_path: Path,
    teacher: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole, cut = (settings(tmp_path / name, teacher, corpus, shape=None, batch_tokens=300) for name in ("whole", "cut"))
    rates: list[Any] = []
    with monkeypatch.context() as patch:
        shapes = stuffed(patch, 100, error=FULL[1])
        capture_module.capture(whole, progress=False, told=rates.append)
    assert verify(whole.cache, "deep") == []
    assert max(rows * length for rows, length in shapes) <= 100
    assert sum(rows for rows, _ in shapes[:-2]) == 40, "every window once (then two passes for the rates)"
    assert (rates[0].lowered >= 1, rates[0].batch_tokens <= 100) == (True, True)
    with monkeypatch.context() as patch:
        before = stuffed(patch, 100, stop=7)
        with pytest.raises(KeyboardInterrupt):
            run(cut)
    with monkeypatch.context() as patch:
        after = stuffed(patch, 10**9)  # the new machine is a bigger one
        run(cut)
    assert files_of(whole.cache) == files_of(cut.cache)
    read = [*before, *after]
    assert set(read) <= set(shapes), "every window in the company it had"


def test_a_window_that_does_not_fit_alone_says_what_would(
    tmp_path: Path,
    teacher: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stuffed(monkeypatch, 10)
    with pytest.raises(
        UsageError, match=r"a window of \d+ tokens: expected one that fits into .*; in teacher, set quant"
    ):
        run(settings(tmp_path, teacher, corpus, shape=None))


def test_auto_is_a_constant_on_a_cpu_and_what_was_found_before_elsewhere(
    tmp_path: Path,
    teacher: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, model = settings(tmp_path, teacher, corpus, batch_tokens="auto"), capture_module.load_teacher
    path, opened = tmp_path / "budget.json", model(settings(tmp_path, teacher, corpus).teacher)
    assert budget_for(config, opened, path).now == FIXED
    path.unlink()

    class OnACard:
        device = torch.device("cuda")

    monkeypatch.setattr(budget_module, "_try", lambda _model, _length, tokens: fits_until(20_000)(tokens))
    assert budget_for(config, OnACard(), path).now == 8192  # type: ignore[arg-type]
    monkeypatch.setattr(budget_module, "_try", lambda *_: pytest.fail("it was known"))
    assert budget_for(config, OnACard(), path).now == 8192  # type: ignore[arg-type]
