"""ASHA: its bookkeeping against the paper's algorithm 2, and in a whole sweep of stand-in trainings, killed anywhere."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sweep_fakes import STEPS, FakeEngine, Killed, base_of, make_sweep

from stage2_student import sweep as sweep_module
from stage2_student.asha import Rungs
from stage2_student.sweep import Sweep
from stage2_student.sweep_config import Halving

RATES = [round(0.01 * number, 2) for number in (5, 2, 8, 1, 9, 3, 7, 4, 6)]


@pytest.fixture
def sweep(caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Sweep]:
    monkeypatch.setattr(sweep_module, "draw", lambda rows, picture, title: picture.write_bytes(b""))
    return lambda **settings: make_sweep(
        tmp_path,
        base_of(caches),
        grid={"learning_rate": RATES},
        metric="ce",
        halving={"min_steps": 3, "eta": 3},
        **settings,
    )


def rungs(*, metric: Any = "ce", eta: int = 3, min_steps: int = 10) -> tuple[Rungs, list[dict[str, Any]]]:
    noted: list[dict[str, Any]] = []
    return Rungs(Halving(min_steps=min_steps, eta=eta), metric, noted.append), noted


def rows(values: dict[int, float], metric: str = "ce") -> list[dict[str, Any]]:
    return [{"step": step, metric: value} for step, value in values.items()]


def test_rungs_stand_at_powers_of_eta() -> None:
    found, _ = rungs()
    assert [found.step_of(rung) for rung in range(3)] == [10, 30, 90]


def test_the_best_third_goes_on_and_nobody_waits() -> None:
    found, noted = rungs()
    assert found.observe("a", rows({9: 1.0}), 100), "not yet at the rung"
    assert not found.observe("a", rows({9: 1.0, 10: 5.0}), 100), "alone it is no third"
    assert not found.observe("b", rows({12: 4.0}), 100), "the first row at or after the rung counts"
    assert found.next_promoted() is None
    assert found.observe("c", rows({10: 3.0}), 100), "the best of three goes on at once"
    assert [found.waits(run) for run in "abc"] == [True, True, False]
    for run, value in {"d": 3.5, "e": 6.0, "f": 7.0}.items():
        assert not found.observe(run, rows({10: value}), 100)
    assert found.next_promoted({"d"}) is None, "still on its way to the pause"
    assert found.next_promoted() == "d", "the best two of six are c and d"
    assert found.next_promoted() is None
    assert [row["event"] for row in noted].count("promoted") == 2


def test_the_highest_rung_is_served_first_and_the_highest_value_can_be_best() -> None:
    found, _ = rungs(metric="agreement")
    for run, value in {"a": 0.1, "b": 0.2, "c": 0.3}.items():
        found.observe(run, rows({10: value, 30: value + 0.5}, "agreement"), 100)
    for run, value in {"d": 0.9, "e": 0.8, "f": 0.7}.items():
        found.observe(run, rows({10: value, 30: value - 0.6}, "agreement"), 100)
    on = [found.next_promoted() for _ in range(3)]
    assert on[0] == "e"
    for run, value in {"e": 0.2}.items():
        found.observe(run, rows({10: 0.8, 30: value}, "agreement"), 100)
    assert found.next_promoted() == "c", "rung 30 knows c 0.8, d 0.3 and e 0.2: its best third is c"


def test_rungs_at_or_beyond_the_end_are_none() -> None:
    found, noted = rungs()
    assert found.observe("a", rows({10: 1.0}), 10)
    assert noted == []


def test_a_short_list_still_ends_with_a_finished_run() -> None:
    found, _ = rungs()
    found.observe("a", rows({10: 2.0}), 50)
    found.observe("b", rows({10: 1.0}), 50)
    assert found.next_promoted() is None
    assert found.last_resort() == "b"
    assert found.last_resort() is None, "one is on its way"
    assert not found.observe("b", rows({10: 1.0, 30: 1.0}), 50)
    assert found.last_resort() == "b"
    found.give_up("b")
    assert found.last_resort() == "a", "b failed"


def test_the_ledger_alone_brings_everything_back() -> None:
    draw = random.Random(0)
    found, noted = rungs()
    for run in map(str, range(30)):
        found.observe(run, rows({10: draw.random(), 30: draw.random()}), 100)
    again, repeated = rungs()
    again.replay([{"event": "trial", "number": 0}, *json.loads(json.dumps(noted))])
    assert [again.waits(str(run)) for run in range(30)] == [found.waits(str(run)) for run in range(30)]
    known = len(noted)
    for _ in range(5):
        assert again.next_promoted() == found.next_promoted()
    assert repeated == noted[known:] != []


def halved(found: Sweep, engine: FakeEngine) -> dict[float, tuple[str, int]]:
    """Rate -> how it ended, and at which step."""
    ended = found.work(lambda: engine)
    return {row.overrides["learning_rate"]: (row.status, row.step or 0) for row in ended}


def test_a_sweep_trains_the_good_ones_to_the_end_and_stops_the_others(sweep: Callable[..., Sweep]) -> None:
    engine, found = FakeEngine(), sweep()
    ended = halved(found, engine)
    assert ended[0.01] == ("finished", STEPS), "the best of all"
    assert sum(status == "finished" for status, _ in ended.values()) < len(RATES) / 2
    assert all(status in ("finished", "stopped") for status, _ in ended.values())
    steps = [step for _, step in ended.values()]
    assert sorted(steps)[: len(RATES) // 2] == [3] * (len(RATES) // 2), "the lower half never passed the first rung"
    assert all(row["step"] % 3 == 0 for run in found.runs.values() for row in run.rows())
    assert len(engine.begun) > len(RATES), "a promoted run was begun again, from where it stood"

    def never() -> FakeEngine:
        raise AssertionError("stopped runs stay stopped")

    assert {row.run: row.status for row in sweep().work(never)} == {row.run: row.status for row in found.rows()}


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("kill_after", [1, 4, 11, 17])
def test_killed_and_run_again_it_decides_the_same(
    sweep: Callable[..., Sweep], caches: Path, tmp_path: Path, kill_after: int, slots: int
) -> None:
    first = FakeEngine(slots, kill_after=kill_after)
    with pytest.raises(Killed):
        sweep().work(lambda: first)
    ended = halved(sweep(), FakeEngine(slots))
    assert ended[0.01] == ("finished", STEPS)
    if slots == 1:
        (tmp_path / "whole").mkdir()
        settings = {"grid": {"learning_rate": RATES}, "metric": "ce", "halving": {"min_steps": 3, "eta": 3}}
        whole = halved(make_sweep(tmp_path / "whole", base_of(caches), **settings), FakeEngine(slots))
        assert ended == whole


def test_a_run_that_fails_is_not_promoted(sweep: Callable[..., Sweep]) -> None:
    engine = FakeEngine(fails=lambda config: config.learning_rate == 0.01)
    found = sweep()
    ended = halved(found, engine)
    assert ended[0.01] == ("failed", 3)
    assert ended[0.02] == ("finished", STEPS), "the best of those that can"
