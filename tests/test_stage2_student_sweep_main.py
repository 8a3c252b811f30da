"""`python -m stage2_student sweep` from the command line: plans, a real training, and a Ray cluster that loses a node midway."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from ray_cluster import another_node, ray_cluster  # noqa: F401, a fixture
from sweep_fakes import FakeEngine, base_of
from typer.testing import CliRunner

from shared.errors import RunError
from shared.jobs import Job
from stage2_student import sweep as sweep_module
from stage2_student.__main__ import app
from stage2_student.sweep_runs import Run

ROOT = Path(__file__).resolve().parent.parent
ENDS = 120  # seconds in which what goes wrong is given up

STAND_IN = """
import json, os, pathlib, sys, time
out, gate = map(pathlib.Path, sys.argv[1:])
out.mkdir(exist_ok=True)
state, record = out / "state", out / "run.json"
step = int(state.read_text()) if state.exists() else 0
print(f"{os.getpid()} from step {step}", flush=True)
record.write_text(json.dumps({"status": "running", "parameters": 7}))
while step < 5 or not gate.exists():
    time.sleep(0.02)
    step = min(5, step + 1)
    state.with_suffix(".tmp").write_text(str(step))
    state.with_suffix(".tmp").replace(state)
row = {"split": "validation", "step": 5, "kd": 1.0, "ce": 2.0, "perplexity": 7.4, "agreement": 0.5, "loss": 1.0}
(out / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
record.write_text(json.dumps({"status": "finished", "parameters": 7, "final": row}))
"""


@pytest.fixture
def command(caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr(sweep_module, "draw", lambda rows, picture, title: picture.write_bytes(b""))
    path = tmp_path / "sweep.yaml"
    base = base_of(caches) | {"max_steps": 2, "eval_every": 1}
    path.write_text(yaml.safe_dump({"out": "out", "base": base, "grid": {"seed": [0, 1, 2]}}))
    return lambda *words: CliRunner().invoke(app, ["sweep", str(path), *words])


def is_gone(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_plan_says_what_would_run_and_writes_nothing(command: Callable[..., Result], tmp_path: Path) -> None:
    done = command("--dry-run", "--jobs", "2", "--json")
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert [(row["overrides"], row["status"], row["steps"]) for row in plan["runs"]] == [
        ({"seed": seed}, "new", 2) for seed in range(3)
    ]
    assert len({row["seconds"] for row in plan["runs"]}) == 1, "they cost the same, so one was timed"
    assert all(row["memory_bytes"] > 0 for row in plan["runs"])
    text = command("--dry-run", "--set", "base.max_steps=3").stdout
    assert "| seed 1 | new    | 0.008 M    | 3     |" in text
    assert "3 runs to train, 1 at once: about " in text
    search = ["--set", "grid=null", "--set", "search={space: {seed: {int: [0, 9]}}, trials: 4, sampler: optuna}"]
    text = command("--dry-run", *search).stdout
    assert text.count("| corner |") == 2
    assert "4 more are drawn while it runs" in text
    assert not (tmp_path / "out").exists()


def test_jobs_are_how_many_run_at_once(
    command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("shared.jobs.LocalEngine", lambda jobs: asked.append(jobs) or FakeEngine(jobs))
    done = command("--jobs", "3", "--json")
    assert (done.exit_code, asked) == (0, [3])
    found = json.loads(done.stdout)
    assert found["out"] == str(tmp_path / "out")
    assert [row["status"] for row in found["runs"]] == ["finished"] * 3
    failing = FakeEngine(fails=lambda config: config.seed == 5)
    monkeypatch.setattr("shared.jobs.LocalEngine", lambda jobs: failing)
    done = command("--set", "grid.seed=[0, 5]")
    assert isinstance(done.exception, RunError)
    assert "1 of 2 failed" in str(done.exception)
    assert "| seed 0 | finished |" in done.stdout


class InThisProcess(FakeEngine):
    """Runs a job's very command line, here: imports are already paid for."""

    def _move(self, job: Job) -> int | None:
        assert job.command[:3] == (sys.executable, "-m", "stage2_student")
        return CliRunner().invoke(app, job.command[3:]).exit_code


def test_a_real_training(command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("shared.jobs.LocalEngine", InThisProcess)
    done = command("--set", "grid.seed=[3]", "--jobs", "1")
    assert done.exit_code == 0, done.output
    assert "begins: seed 3" in done.stderr
    (run,) = json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]
    assert (run["status"], run["step"]) == ("finished", 2)
    assert run["kd"] > 0
    assert run["seconds"] > 0
    assert (tmp_path / "out" / run["run"] / "model.safetensors").is_file()
    again = command("--set", "grid.seed=[3]", "--jobs", "1")
    assert "begins" not in again.stderr
    assert again.stdout == done.stdout


@pytest.mark.slow
def test_real_processes_killed_and_run_again(command: Callable[..., Result], tmp_path: Path) -> None:
    """kill -9 of the whole sweep while its second training runs; the same command ends it. About a minute."""
    longer = ["--set", "base.max_steps=60", "--set", "base.save_every=5", "--set", "grid.seed=[0, 1]", "--jobs", "1"]
    words = [sys.executable, "-m", "stage2_student", "sweep", str(tmp_path / "sweep.yaml"), *longer]
    with subprocess.Popen(words, cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as sweep:
        end = time.monotonic() + ENDS
        while len(list((tmp_path / "out").glob("*/metrics.jsonl"))) < 2:
            assert time.monotonic() < end, "it hangs"
            time.sleep(0.05)
        sweep.kill()
    done = command(*longer)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("begins") == 0
    assert [row["status"] for row in json.loads((tmp_path / "out" / "sweep.json").read_text())["runs"]] == [
        "finished"
    ] * 2


def test_a_node_killed_midway_loses_no_run(
    ray_cluster: Any,  # noqa: F811
    command: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Two nodes train a run each until a gate opens; one node dies, and its run goes on from its state on the other."""
    script, gate = tmp_path / "train.py", tmp_path / "gate"
    script.write_text(STAND_IN)

    def job(run: Run) -> Job:
        return Job(run.id, (sys.executable, "-S", str(script), str(run.folder), str(gate)), run.log, tmp_path)

    def logs() -> list[list[str]]:
        return [path.read_text().splitlines() for path in sorted((tmp_path / "out" / "logs").glob("*"))]

    def states() -> list[str]:
        return [path.read_text() for path in (tmp_path / "out").glob("*/state")]

    def wait_for(condition: Callable[[], bool]) -> None:
        end = time.monotonic() + ENDS
        while not condition() and time.monotonic() < end:
            time.sleep(0.05)

    def lose_a_node(node: Any) -> None:
        wait_for(lambda: states() == ["5", "5"])
        ray_cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: any(is_gone(log[0].split()[0]) for log in logs()))
        gate.touch()

    monkeypatch.setattr(Run, "job", job)
    with another_node(ray_cluster) as node:
        loser = threading.Thread(target=lose_a_node, args=(node,))
        loser.start()
        done = command("--engine", "ray", "--address", ray_cluster.address, "--json")
        loser.join()
    assert done.exit_code == 0, done.output
    assert [row["status"] for row in json.loads(done.stdout)["runs"]] == ["finished"] * 3, done.stderr
    starts = [[line.split(" ", 1)[1] for line in log] for log in logs()]
    assert sorted(starts, key=len) == [["from step 0"], ["from step 0"], ["from step 0", "from step 5"]]
