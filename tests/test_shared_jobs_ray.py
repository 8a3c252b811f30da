"""Jobs as tasks of a local Ray cluster of two nodes: codes, cancelling, a node killed midway, and a capture in parts."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_records import files_of
from engine_jobs import ended, is_gone, said, wait_for
from ray_cluster import another_node, ray_cluster  # noqa: F401, a fixture
from tiny_capture import config_file, tiny_config

from shared import jobs_ray
from shared.errors import UsageError
from shared.jobs import Job
from shared.jobs_ray import RayEngine
from stage1_teacher.__main__ import main
from stage1_teacher.capture import capture

SLEEP = "import time; print('began', flush=True); time.sleep(600)"


@pytest.fixture
def engine(ray_cluster: Any) -> Iterator[RayEngine]:  # noqa: F811
    with RayEngine(ray_cluster.address) as found:
        yield found


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str, str], Job]:
    return lambda name, code: Job(name, (sys.executable, "-S", "-c", code), tmp_path / "logs" / name, tmp_path)


def test_codes_logs_and_cancelling(engine: RayEngine, job: Callable[[str, str], Job], tmp_path: Path) -> None:
    """One CPU, so one after the other."""
    assert engine.slots == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "Ray's own answer would hide the command's"
    for name, code in {"fine": "import os; print(os.getcwd())", "three": "raise SystemExit(3)"}.items():
        engine.submit(job(name, code))
    assert [(one.job.name, one.code, one.attempts) for one in (ended(engine), ended(engine))] == [
        ("fine", 0, 1),
        ("three", 3, 1),
    ]
    assert said(job("fine", "")) == f"{tmp_path}\n"
    long, waiting = job("long", "import os; print(os.getpid()); " + SLEEP), job("waiting", SLEEP)
    engine.submit(long)
    wait_for(lambda: "began" in said(long))
    engine.submit(waiting)
    assert engine.next_finished(0.01) is None
    engine.cancel("long")
    engine.cancel("waiting")
    assert {(one.job.name, one.code) for one in (ended(engine), ended(engine))} == {("long", -15), ("waiting", -15)}
    assert is_gone(int(said(long).split()[0]))
    assert not waiting.log.exists()
    assert engine.next_finished() is None
    engine.submit(last := job("last", "import os; print(os.getpid()); " + SLEEP))
    wait_for(lambda: "began" in said(last))
    engine.close()
    assert is_gone(int(said(last).split()[0])), "closing ends what runs"


def test_a_node_killed_midway_loses_no_job(ray_cluster: Any, job: Callable[[str, str], Job], tmp_path: Path) -> None:  # noqa: F811
    """Two nodes run a job each, which waits for a file; the node of one dies, and all three jobs end all the same."""
    gate = tmp_path / "gate"
    code = f"import os, time; print(os.getpid(), flush=True)\nwhile not os.path.exists({str(gate)!r}): time.sleep(0.02)"
    jobs = [job(name, code) for name in "abc"]
    with another_node(ray_cluster) as node, RayEngine(ray_cluster.address) as engine:
        assert engine.slots == 2
        for one in jobs:
            engine.submit(one)
        wait_for(lambda: sum(bool(said(one)) for one in jobs) == 2)
        pids = {one.name: int(said(one).split()[0]) for one in jobs if said(one)}
        ray_cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: sum(is_gone(pid) for pid in pids.values()) == 1)
        lost = next(name for name, pid in pids.items() if is_gone(pid))
        assert engine.next_finished(0.5) is None, "it is begun again, which is not an end"
        gate.touch()
        found = {one.job.name: (one.code, one.attempts) for one in (ended(engine) for _ in jobs)}
    assert found == {name: (0, 2 if name == lost else 1) for name in "abc"}
    assert [len(said(one).split()) for one in jobs] == [2 if one.name == lost else 1 for one in jobs]


@pytest.mark.slow
def test_a_capture(
    ray_cluster: Any,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The command; its part is a real process of the cluster."""
    config = tiny_config(tmp_path, shape=None)
    options = ["--set", "shape=null", "--parts", "1", "--engine", "ray", "--address", ray_cluster.address]
    monkeypatch.setattr(sys, "argv", ["stage1-teacher", "capture", str(config_file(tmp_path, config)), *options])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 0
    assert capsys.readouterr().out.startswith(f"{config.cache}: 40 windows, ")
    whole = config.model_copy(update={"cache": tmp_path / "whole"})
    capture(whole, progress=False)
    assert files_of(config.cache) == files_of(whole.cache)
    assert not list(tmp_path.glob("cache-*"))


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError) as caught:
        RayEngine()
    assert str(caught.value) == (
        "--engine ray: expected the extra `ray`, got no such package; install it: pip install 'codestill[ray]'"
    )


def test_no_cluster_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nowhere:
        @staticmethod
        def is_initialized() -> bool:
            return False

        @staticmethod
        def init(**_: Any) -> None:
            raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(jobs_ray, "_ray", Nowhere)
    with pytest.raises(UsageError) as caught:
        RayEngine("auto")
    assert str(caught.value) == (
        "--address auto: expected a Ray cluster that answers, got Could not find any running Ray instance.; "
        "start one with `ray start --head`, or give its --address host:port"
    )
