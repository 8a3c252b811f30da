"""Sweeps: what the runs are, that each is trained once whatever happens, and what is said at the end. Trainings are stood in for."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sweep_fakes import STEPS, FakeEngine, Killed, base_of, make_sweep

from shared.config import load_config
from shared.errors import RunError, UsageError
from stage2_student import sweep as sweep_module
from stage2_student.config import TrainConfig
from stage2_student.sweep import Sweep
from stage2_student.sweep_config import SweepConfig, listed, load_sweep, read_base, resolve
from stage2_student.sweep_schedule import wait_for_orphans

CONFIGS = Path(__file__).resolve().parent.parent / "stage2_student" / "configs"
RATES = [0.3, 0.1, 0.2]


@pytest.fixture
def sweep(caches: Path, tmp_path: Path) -> Callable[..., Sweep]:
    return lambda **settings: make_sweep(tmp_path, base_of(caches), **settings)


@pytest.fixture(autouse=True)
def _no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes a second; one test looks at one."""
    if "fronts" not in request.node.name:
        monkeypatch.setattr(sweep_module, "draw", lambda rows, picture, title: picture.write_bytes(b""))


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_shipped_sweep_is_the_five_shipped_students() -> None:
    path = CONFIGS / "sweep-mbpp-five.yaml"
    config = load_config(SweepConfig, path)
    base = read_base(config, path)
    swept = [resolve(base, overrides, config.out) for overrides in listed(config)]
    alone = [load_config(TrainConfig, path) for path in sorted(CONFIGS.glob("mbpp-*m-t?.?-a*.yaml"))]
    assert len(alone) == 5

    def apart_from_out(config: TrainConfig) -> str:
        return config.model_copy(update={"out": Path()}).model_dump_json()

    assert sorted(map(apart_from_out, swept)) == sorted(map(apart_from_out, alone))


def test_the_shipped_search_stands_on_real_fields() -> None:
    path = CONFIGS / "sweep-mbpp-search.yaml"
    config = load_config(SweepConfig, path)
    assert config.search is not None
    assert config.halving is not None
    first = {field: space.ends[0] for field, space in config.search.space.items()}
    assert resolve(read_base(config, path), first, config.out).eval_every == config.halving.min_steps / 5


def test_a_grid_is_every_combination(sweep: Callable[..., Sweep]) -> None:
    runs = list(sweep(grid={"learning_rate": [1e-3, 1e-2], "student.architecture.layers": [1, 2, 3]}).runs.values())
    chosen = [(run.config.learning_rate, run.config.student.architecture.layers) for run in runs]  # type: ignore[union-attr]
    assert chosen == [(1e-3, 1), (1e-3, 2), (1e-3, 3), (1e-2, 1), (1e-2, 2), (1e-2, 3)]
    assert all(run.folder.name == run.id and len(run.id) == 12 for run in runs)
    assert runs[0].label == "learning_rate 0.001, layers 1"


def test_a_run_is_trained_from_its_resolved_config_file(sweep: Callable[..., Sweep]) -> None:
    found = sweep(runs=[{"temperature": {"from": 4, "to": 1}, "student": {"preset": "gpt2-44m"}, "shards": "0"}])
    (run,) = found.runs.values()
    job = run.job()
    assert job.command[1:4] == ("-m", "stage2_student", "train")
    assert load_config(TrainConfig, Path(job.command[4])) == run.config
    assert run.config.temperature.ends == (1, 4)


def test_paths_start_at_the_file_they_stand_in(caches: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "deep" / "er"
    elsewhere.mkdir(parents=True)
    (tmp_path / "caches").symlink_to(caches)
    base = base_of(Path("../../caches")) | {"out": "../unused"}
    (elsewhere / "base.yaml").write_text(yaml.safe_dump(base))
    found = make_sweep(tmp_path, "deep/er/base.yaml", runs=[{}, {"validation.cache": "./caches/cache", "seed": 1}])
    validations = [run.config.validation.cache for run in found.runs.values()]
    assert validations == [caches / "validation", caches / "cache"]
    assert {run.config.cache for run in found.runs.values()} == {caches / "cache"}


def test_set_reaches_into_a_base_that_is_a_file(caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base_of(Path("no-such"))))
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"out": "out", "base": "base.yaml", "runs": [{"seed": 5}]}))
    monkeypatch.chdir(caches)  # paths typed at the shell start there
    typed = ["base.max_steps=3", "base.cache=cache", "base.validation.cache=validation", "out=here"]
    config, for_base = load_sweep(path, typed)
    (run,) = Sweep(config, path, for_base).runs.values()
    assert (run.config.max_steps, run.config.seed) == (3, 5)
    assert (run.config.cache, run.config.validation.cache) == (caches / "cache", caches / "validation")
    assert config.out == caches / "here"


@pytest.mark.parametrize(
    ("runs", "complaint"),
    [
        (
            [{"seed": 1}, {"learning_rat": 0.1}],
            "sweep.yaml, run learning_rat 0.1: unknown key 'learning_rat': expected one of ",
        ),
        (
            [{"seed": 1}, {"student.architecture.width": 7}],
            "run width 7: key 'student.architecture': expected width to be a",
        ),
        ([{"out": "elsewhere"}], "run out elsewhere: expected fields of a run, got out; leave it out"),
    ],
)
def test_a_wrong_field_stops_the_sweep_before_anything_starts(
    sweep: Callable[..., Sweep], tmp_path: Path, runs: list[dict[str, Any]], complaint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        sweep(runs=runs)
    assert complaint in str(caught.value)
    assert ("did you mean 'learning_rate'?" in str(caught.value)) == ("learning_rat" in runs[-1])
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_compared_is_not_halved_by(sweep: Callable[..., Sweep]) -> None:
    sweep(grid={"temperature": [1, 2]})
    halving = {"min_steps": 1}
    with pytest.raises(UsageError, match="runs differ in temperature, which changes what kd means"):
        sweep(grid={"temperature": [1, 2]}, halving=halving)
    with pytest.raises(UsageError, match="runs differ in ce_weight, which changes what loss means"):
        sweep(grid={"ce_weight": [1, 2]}, halving=halving, metric="loss")
    sweep(grid={"ce_weight": [1, 2]}, halving=halving)


def test_a_run_is_named_by_what_it_learns(caches: Path, tmp_path: Path) -> None:
    def name(where: str = "a", **changes: Any) -> str:
        (tmp_path / where).mkdir(exist_ok=True)
        (only,) = make_sweep(tmp_path / where, base_of(caches) | changes, runs=[{}]).runs
        return only

    moved = tmp_path / "moved"
    moved.symlink_to(caches / "cache")
    assert name() == name("b") == name(workers=2) == name(cache=str(moved))
    others = [name(seed=1), name(cache=str(caches / "stranger"), validation={"fraction": 0.5}), name(mask_prompt=True)]
    assert len({name(), *others}) == 4


def test_each_run_is_trained_once(sweep: Callable[..., Sweep], capsys: pytest.CaptureFixture[str]) -> None:
    engine, found = FakeEngine(2), sweep(grid={"learning_rate": RATES})
    rows = found.work(lambda: engine)
    assert engine.begun == list(found.runs)
    assert [(row.status, row.step, row.overrides["learning_rate"]) for row in rows] == [
        ("finished", STEPS, rate) for rate in sorted(RATES)
    ]
    assert "begins: learning_rate 0.3" in capsys.readouterr().err
    before = stamps(found.out)

    def never() -> FakeEngine:
        raise AssertionError("nothing is left to do")

    assert sweep(grid={"learning_rate": RATES}).work(never) == rows
    assert stamps(found.out) == before
    more = FakeEngine()
    grown = sweep(grid={"learning_rate": [*RATES, 0.5]})
    grown.work(lambda: more)
    assert more.begun == [list(grown.runs)[-1]]


@pytest.mark.parametrize("kill_after", [1, 9, 14])
def test_a_killed_sweep_goes_on(sweep: Callable[..., Sweep], kill_after: int) -> None:
    """The begun run first, the finished one never again; 9 validations are a run."""
    first = FakeEngine(kill_after=kill_after)
    with pytest.raises(Killed):
        sweep(grid={"learning_rate": RATES}).work(lambda: first)
    second, found = FakeEngine(), sweep(grid={"learning_rate": RATES})
    rows = found.work(lambda: second)
    assert {row.status for row in rows} == {"finished"}
    assert second.begun == list(found.runs)[kill_after // 9 :]
    for run in found.runs.values():
        assert [row["step"] for row in run.rows()] == list(range(3, STEPS + 1, 3))


def test_trainings_that_a_killed_sweep_left_are_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = (sys.executable, "-S", "-c", "input()", str(tmp_path / "configs" / "0123456789ab.yaml"))
    with subprocess.Popen(command, stdin=subprocess.PIPE) as left:
        assert left.stdin is not None
        threading.Timer(0.2, left.stdin.close).start()
        wait_for_orphans({command, (*command, "other")})
        assert left.wait(0) is not None
    assert "waiting for the trainings of a killed sweep" in capsys.readouterr().err
    wait_for_orphans({command})
    assert capsys.readouterr().err == ""


def test_only_one_sweep_works_in_a_folder(sweep: Callable[..., Sweep]) -> None:
    found = sweep(runs=[{}])

    def meanwhile() -> FakeEngine:
        with pytest.raises(UsageError, match="expected one sweep at a time"):
            sweep(runs=[{}]).work(FakeEngine)
        return FakeEngine()

    found.work(meanwhile)


def test_a_run_that_fails_is_named_and_the_others_go_on(sweep: Callable[..., Sweep]) -> None:
    grid, engine = {"learning_rate": RATES}, FakeEngine(fails=lambda config: config.learning_rate == 0.1)
    found = sweep(grid=grid)
    rows = found.work(lambda: engine)
    assert [row.status for row in rows] == ["finished", "finished", "failed"]
    failed = rows[-1].run
    with pytest.raises(RunError) as caught:
        found.require_all_ended(rows)
    assert str(caught.value) == (
        f"sweep {found.out}: expected every run to come to its end, got 1 of 3 failed, {failed} with: error: step 4, windows "
        f"0a: expected a finite loss, got nan; see {found.out / 'logs'}; the same command again repeats only what failed"
    )
    assert f"{failed} (learning_rate 0.1) failed: error: step 4" in (found.out / "report.md").read_text()
    again = FakeEngine()
    repaired = sweep(grid=grid)
    repaired.require_all_ended(repaired.work(lambda: again))
    assert again.begun == [failed]


def test_the_report_marks_the_fronts(sweep: Callable[..., Sweep]) -> None:
    """Fake students have more parameters the higher the rate: 0.3 is worse than 0.1 and larger, so on no front."""
    better = {0.1: 3.0, 0.2: 1.0, 0.3: 2.0}
    found = sweep(grid={"learning_rate": RATES, "temperature": [1]}, metric="ce")
    engine = FakeEngine(ce=lambda config: better[config.learning_rate])
    rows = found.work(lambda: engine)
    assert [(row.overrides["learning_rate"], row.parameters, row.ce) for row in rows] == [
        (0.2, 1200, 1.0), (0.3, 1300, 2.0), (0.1, 1100, 3.0)
    ]  # fmt: skip
    assert [("ce/parameters" in row.front) for row in rows] == [True, False, True]
    written = json.loads((found.out / "sweep.json").read_text())
    assert [row["run"] for row in written["runs"]] == [row.run for row in rows]
    assert written["runs"][0]["ce"] == 1.0
    tokens = sum(int(length) for length in [*_lengths(found)]) - 44
    assert rows[0].seconds == pytest.approx(STEPS / 10 * tokens / 100, rel=1e-3)
    assert (found.out / "sweep.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    report = (found.out / "report.md").read_text()
    assert "| 0.001 M" in report
    assert "![quality against parameters and time](sweep.png)" in report
    assert "does not compare" not in report
    varied = make_sweep(found.out.parent, found.config.base, runs=[{"temperature": 1}, {"temperature": 2}])  # type: ignore[arg-type]
    varied.work(FakeEngine)
    rows = varied.rows()
    assert [row.front for row in rows] == [("ce/parameters", "ce/seconds")] * 2, (
        "equal points are both on it; kd has none"
    )
    assert any("does not compare" in note for note in varied.notes(rows))


def _lengths(found: Sweep) -> list[int]:
    from cache.reader import open_cache

    return open_cache(next(iter(found.runs.values())).config.cache).lengths.tolist()  # type: ignore[arg-type, no-any-return]
