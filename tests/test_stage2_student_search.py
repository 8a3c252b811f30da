"""Search spaces: draws lie inside and come back the same; Optuna learns from what ended, and survives a kill."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_fakes import FakeEngine, Killed, base_of, make_sweep

from shared.errors import UsageError
from stage2_student import search as search_module
from stage2_student import sweep as sweep_module
from stage2_student.search import Tried, at_random, by_optuna, corners
from stage2_student.sweep import Sweep
from stage2_student.sweep_config import Search

SPACE = {
    "learning_rate": {"log_uniform": [1e-3, 1.0]},
    "weight_decay": {"uniform": [0.0, 0.5]},
    "student.architecture.layers": {"int": [1, 4]},
    "mask_prompt": {"choice": [True, False]},
}


@pytest.fixture
def sweep(caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweep]:
    monkeypatch.setattr(sweep_module, "draw", lambda rows, picture, title: picture.write_bytes(b""))
    return lambda **search: make_sweep(tmp_path, base_of(caches), metric="ce", search={"space": SPACE, **search})


def space(**settings: Any) -> Search:
    return Search.model_validate({"space": SPACE, "trials": 9, **settings})


def test_draws_lie_inside_and_follow_from_seed_and_number() -> None:
    drawn = [at_random(space(), number) for number in range(200)]
    assert drawn == [at_random(space(), number) for number in range(200)]
    assert drawn[0] != at_random(space(seed=1), 0)
    rates = [row["learning_rate"] for row in drawn]
    assert 1e-3 <= min(rates) < 3e-3
    assert 0.3 < max(rates) <= 1.0
    assert math.isclose(sum(rate < math.sqrt(1e-3) for rate in rates) / 200, 0.5, abs_tol=0.12), "even in the logarithm"
    assert {row["student.architecture.layers"] for row in drawn} == {1, 2, 3, 4}
    assert {row["mask_prompt"] for row in drawn} == {True, False}
    assert all(0 <= row["weight_decay"] <= 0.5 for row in drawn)


def test_corners_hold_every_end_and_choice() -> None:
    found = corners(space())
    for field, ends in {
        "learning_rate": {1e-3, 1.0},
        "student.architecture.layers": {1, 4},
        "mask_prompt": {True, False},
    }.items():
        assert {row[field] for row in found} == ends


def tried(rate: float, *, status: Any = "finished", best: float = 0.03) -> Tried:
    overrides = {**corners(space())[0], "learning_rate": rate}
    return Tried(overrides, status, abs(math.log(rate / best)), 27)


@pytest.mark.parametrize(("metric", "best"), [("ce", 0.03), ("agreement", 0.5)])
def test_optuna_goes_where_it_was_good(metric: Any, best: float) -> None:
    """40 trials over the whole range; what TPE draws next lies nearer to the best than chance would."""
    sign = 1 if metric == "ce" else -1
    rates = [10 ** (-3 + 3 * number / 39) for number in range(40)]
    history = [Tried(tried(rate).overrides, "finished", sign * abs(math.log(rate / best)), 27) for rate in rates]
    drawn = [by_optuna(space(), metric, number, history)["learning_rate"] for number in range(8)]
    far = sorted(abs(math.log(rate / best)) for rate in drawn)
    assert far[len(far) // 2] < 1.0
    assert drawn == [by_optuna(space(), metric, number, history)["learning_rate"] for number in range(8)]


def test_optuna_takes_every_status() -> None:
    history = [tried(0.1, status=status) for status in ("finished", "stopped", "failed", "begun", "new")]
    history.append(Tried(history[0].overrides, "stopped", None, 0))
    elsewhere = [tried(5.0), Tried({"seed": 1}, "finished", 0.1, 27)]
    found = by_optuna(space(), "ce", 6, history)
    assert set(found) == set(SPACE)
    assert by_optuna(space(), "ce", 6, history + elsewhere) == found, "from a space that was since changed"


def test_a_missing_optuna_is_said_in_one_line(sweep: Callable[..., Sweep], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        sweep(trials=2, sampler="optuna")
    assert str(caught.value) == (
        "search.sampler: expected the package optuna, got not installed; pip install 'codestill[optuna]', or set "
        "search.sampler: random"
    )


def test_a_wrong_end_of_the_space_stops_the_search_before_it_starts(
    sweep: Callable[..., Sweep], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="key 'weight_decay'"):
        sweep(trials=2, sampler="optuna", space={"weight_decay": {"uniform": [-1.0, 1.0]}})
    with pytest.raises(UsageError, match="unknown key 'weight_decai'"):
        sweep(trials=2, space={"weight_decai": {"uniform": [0.0, 1.0]}})
    with pytest.raises(UsageError, match="expected two numbers, the smaller one first"):
        sweep(trials=2, space={"weight_decay": {"uniform": [1.0, 0.0]}})
    assert not (tmp_path / "out").exists()


def test_a_random_search_is_a_list_that_is_known_before(sweep: Callable[..., Sweep]) -> None:
    found = sweep(trials=5, seed=3)
    assert [run.overrides for run in found.runs.values()] == [at_random(space(seed=3), number) for number in range(5)]
    assert found.to_draw == 0


def test_an_optuna_search_draws_as_it_goes_and_goes_on_after_a_kill(
    sweep: Callable[..., Sweep], caches: Path, tmp_path: Path
) -> None:
    first = FakeEngine(kill_after=30)
    search = {"trials": 6, "sampler": "optuna", "seed": 5}
    begun = sweep(**search)
    assert (begun.to_draw, [status for status, _ in begun.planned()]) == (6, ["corner"] * 2)
    with pytest.raises(Killed):
        begun.work(lambda: first)
    again = sweep(**search)
    assert again.to_draw == 2
    rows = again.work(FakeEngine)
    assert [row.status for row in rows] == ["finished"] * 6
    assert again.to_draw == 0
    (tmp_path / "whole").mkdir()
    whole = make_sweep(tmp_path / "whole", base_of(caches), metric="ce", search={"space": SPACE, **search})
    assert {row.run for row in whole.work(FakeEngine)} == {row.run for row in rows}

    def never() -> FakeEngine:
        raise AssertionError("all trials were drawn and trained")

    assert sweep(**search).work(never) == rows
