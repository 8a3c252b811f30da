"""Jobs as processes of this machine: codes, logs, order, slots, devices, cancelling, and that nothing outlives anybody."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engine_jobs import ENDS, ended, is_gone, said, wait_for

from shared import jobs_guard
from shared.jobs import Job, LocalEngine, environment, visible_devices

ROOT = Path(__file__).resolve().parent.parent
SLEEP = "import time; print('began', flush=True); time.sleep(600)"
WITH_CHILD = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", {SLEEP!r}])
print(child.pid, flush=True)
child.wait()
"""
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    with LocalEngine(2, devices=[]) as found:
        yield found


@pytest.fixture
def job(tmp_path: Path) -> Callable[[str, str], Job]:
    return lambda name, code: Job(name, (sys.executable, "-S", "-c", code), tmp_path / "logs" / name, tmp_path)


def test_codes_logs_and_folders(engine: LocalEngine, job: Callable[[str, str], Job], tmp_path: Path) -> None:
    codes = {
        "fine": "import os, sys; print(os.getcwd()); print('loud', file=sys.stderr)",
        "three": "raise SystemExit(3)",
        "killed": "import os; os.kill(os.getpid(), 9)",
        "terminated": "import os; os.kill(os.getpid(), 15)",
        "no input": "import sys; raise SystemExit(len(sys.stdin.read()))",
    }
    jobs = [job(name, code) for name, code in codes.items()]
    for one in jobs:
        engine.submit(one)
    found = {one.job.name: one for one in (ended(engine) for _ in jobs)}
    assert {name: one.code for name, one in found.items()} == {
        "fine": 0,
        "three": 3,
        "killed": -9,
        "terminated": -15,
        "no input": 0,
    }
    assert {one.attempts for one in found.values()} == {1}
    assert all(one.seconds > 0 for one in found.values())
    assert sorted(said(jobs[0]).splitlines()) == sorted([str(tmp_path), "loud"])
    engine.submit(jobs[0])
    ended(engine)
    assert said(jobs[0]).count("loud") == 2, "appended"
    assert engine.next_finished() is None, "nothing is left to wait for"


def test_no_more_than_slots_and_in_order(job: Callable[[str, str], Job], tmp_path: Path) -> None:
    mark = f"open({str(tmp_path / 'order')!r}, 'a').write('%s ')"
    with LocalEngine(1, devices=[]) as engine:
        for name in "abc":
            engine.submit(job(name, f"{mark % name}; import time; time.sleep(0.05); {mark % name}"))
        assert [ended(engine).job.name for _ in "abc"] == ["a", "b", "c"]
    assert (tmp_path / "order").read_text() == "a a b b c c "


def test_each_slot_has_its_device_and_its_share_of_cores(
    job: Callable[[str, str], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0))
    assert environment(1, None)["OMP_NUM_THREADS"] == str(cores)
    assert environment(10 * cores, None)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    show = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'], flush=True); "
    with LocalEngine(devices=["3", "GPU-5"]) as engine:
        assert engine.slots == 2
        jobs = [job(name, show + SLEEP) for name in "ab"]
        for one in jobs:
            engine.submit(one)
        wait_for(lambda: all("began" in said(one) for one in jobs))
    assert sorted(said(one).splitlines()[0] for one in jobs) == ["3 7", "GPU-5 7"]


def test_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_devices({}) == ["0", "1"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "5, MIG-7"}) == ["5", "MIG-7"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "0,1"}) == []
    with LocalEngine() as engine:
        assert engine.slots == 1


def test_cancelling(engine: LocalEngine, job: Callable[[str, str], Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM, which a job may answer in its own time, and SIGKILL when that is over."""
    answer = "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); "
    jobs = {name: job(name, code) for name, code in {"tidy": answer + SLEEP, "deaf": DEAF, "waiting": SLEEP}.items()}
    for name, grace in (("tidy", ENDS), ("deaf", 0.1)):
        monkeypatch.setattr(jobs_guard, "GRACE", grace)
        engine.submit(one := jobs[name])
        wait_for(lambda one=one: "began" in said(one))
    engine.submit(jobs["waiting"])
    assert engine.next_finished(0.01) is None
    for name in ("waiting", "deaf", "tidy", "unheard of"):
        engine.cancel(name)
    found = {one.job.name: (one.code, one.attempts) for one in (ended(engine) for _ in jobs)}
    assert found == {"deaf": (-9, 1), "tidy": (5, 1), "waiting": (-15, 0)}
    assert not jobs["waiting"].log.exists()
    engine.cancel("tidy")  # it has ended
    engine.submit(job("tidy", "print('again')"))
    assert ended(engine).code == 0, "a name is free once its job has ended"


def test_what_cannot_be_started_is_told(engine: LocalEngine, tmp_path: Path) -> None:
    engine.submit(Job("lost", (sys.executable, "-c", ""), tmp_path / "log", tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        engine.next_finished(ENDS)


def test_closing_ends_the_children_of_children(job: Callable[[str, str], Job]) -> None:
    one, other = job("one", WITH_CHILD), job("other", SLEEP)
    with LocalEngine(1, devices=[]) as engine:
        engine.submit(one)
        engine.submit(other)
        wait_for(lambda: "began" in said(one))
    child = int(said(one).split()[0])
    wait_for(lambda: is_gone(child))
    assert not other.log.exists(), "what had not begun never begins"


def test_what_a_job_leaves_behind_goes_with_it(engine: LocalEngine, job: Callable[[str, str], Job]) -> None:
    one = job("one", WITH_CHILD.replace("child.wait()", ""))
    engine.submit(one)
    assert ended(engine).code == 0
    child = int(said(one).split()[0])
    wait_for(lambda: is_gone(child))


@pytest.mark.parametrize("victim", ["starter", "guard"])
def test_kill_9_leaves_no_orphan(tmp_path: Path, victim: str) -> None:
    """Neither where the process that holds the engine is killed, nor where the guard between the two is."""
    log = tmp_path / "log"
    starter = f"""
import sys, time
from pathlib import Path
from shared.jobs import Job, LocalEngine
with LocalEngine(1, devices=[]) as engine:
    engine.submit(Job("one", (sys.executable, "-S", "-c", {"import os; print(os.getppid(), os.getpid(), flush=True); " + SLEEP!r}), Path({str(log)!r})))
    print(engine.next_finished(), flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", starter], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: log.exists() and "began" in log.read_text())
    guard, job = map(int, log.read_text().split()[:2])
    os.kill(process.pid if victim == "starter" else guard, signal.SIGKILL)
    out, _ = process.communicate(timeout=ENDS)
    wait_for(lambda: is_gone(job) and is_gone(guard))
    assert ("code=-9, " in out) == (victim == "guard")
