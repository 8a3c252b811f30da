"""Latency: how many generations are timed, of how many tokens, and what the figures are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import save_tiny_model

from eval.config import LatencySettings, ModelSpec
from eval.latency import measure_latency
from eval.models import LoadedModel, load, locate
from shared.errors import UsageError


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    path = save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", positions=64)
    return load(locate(ModelSpec(name="tiny", path=str(path))), "float32", torch.device("cpu"))


class Counting:
    """Counts generations and remembers their sizes."""

    def __init__(self, model: Any) -> None:
        self.model, self.calls = model, []

    def generate(self, ids_1L: torch.Tensor, **settings: Any) -> Any:
        found = self.model.generate(ids_1L, **settings)
        self.calls.append((ids_1L.shape[1], found.shape[1]))
        return found


def test_every_run_has_the_same_new_tokens_and_warm_up_does_not_count(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0, 100, 100, 200, 200, 201, 201, 203, 203, 209])  # start and end of two warm-ups and three runs
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    counting = Counting(loaded.model)
    settings = LatencySettings(runs=3, warmup=2, new_tokens=8)
    found = measure_latency(replace(loaded, model=counting), [[5, 6, 7], [8] * 60, [9, 10]], settings)
    assert counting.calls == [(3, 11), (2, 10), (3, 11), (2, 10), (3, 11)]  # 60 + 8 tokens do not fit 64 positions
    assert (found.mean, found.median, found.per_token) == (3.0, 2.0, 3.0 / 8)
    assert (found.runs, found.new_tokens, found.device) == (3, 8, "cpu")


def test_no_prompt_fits(loaded: LoadedModel) -> None:
    with pytest.raises(UsageError) as error:
        measure_latency(loaded, [[1] * 40, [1] * 50], LatencySettings(new_tokens=32))
    assert str(error.value) == (
        "model 'tiny': expected a prompt with room for 32 new tokens in 64 positions, got prompts of 40 tokens and more; "
        "lower latency.new_tokens"
    )


def test_directory_is_not_touched(loaded: LoadedModel) -> None:
    before = sorted(Path(loaded.files.path).iterdir())
    assert measure_latency(loaded, [[1, 2]], LatencySettings(runs=1, warmup=0, new_tokens=2)).mean > 0
    assert sorted(Path(loaded.files.path).iterdir()) == before
