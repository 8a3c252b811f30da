"""One command for many processes: the single capture's bytes, whatever is killed; who asks wrongly is told once.

Most jobs run inside the test's process, in an engine that can be told to lose them; real processes once each, here and on Ray.
Not for engines (test_shared_jobs.py, test_shared_jobs_ray.py) nor for parts captured one by one (test_stage1_teacher_parts.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections import deque
from pathlib import Path
from typing import Any, Self

import pytest
from cache_records import files_of
from tiny_capture import tiny_config, write_rows

from cache.lock import only_one
from cache.writer import LOCK, PROGRESS_FOLDER
from shared.errors import CodestillError, RunError, UsageError
from shared.jobs import Finished, Job, LocalEngine
from stage1_teacher import capture as capture_module
from stage1_teacher import fitting as fitting_module
from stage1_teacher import machines as machines_module
from stage1_teacher.__main__ import main
from stage1_teacher.capture import capture
from stage1_teacher.config import CaptureConfig
from stage1_teacher.machines import capture_everywhere, on_own_device, open_engine
from stage1_teacher.parts import Part, work_beside
from stage1_teacher.reading import Reader
from stage1_teacher.signals import Terminated
from stage1_teacher.status import read_status, screen


class Killed(BaseException):
    """Stands for kill -9 of a job."""


class Here:
    """An engine in this process: one job at a time, with its output in its log.

    Args:
        lose: job -> after how many shards it is killed, one number for each time it is begun; then it is let live.
    """

    slots = 2

    def __init__(self, lose: dict[str, list[int]] | None = None) -> None:
        self.lose, self.began, self._waiting = lose or {}, list[str](), deque[Job]()

    def submit(self, job: Job) -> None:
        self._waiting.append(job)

    def next_finished(self, timeout: float | None = None) -> Finished | None:
        job = self._waiting.popleft()
        self.began.append(job.name)
        lives = self.lose.get(job.name) or [10**6]
        job.log.parent.mkdir(exist_ok=True)
        with pytest.MonkeyPatch.context() as patch, job.log.open("a") as log:
            patch.setattr(sys, "argv", ["stage1-teacher", *job.command[3:]])
            patch.setattr(Reader, "read_shard", _dies_after(lives.pop(0), Reader.read_shard))
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                code = _code_of_main()
        if code == -9:  # as from a host that is gone: its lock stays, touched a moment ago
            lock = _directory(job) / PROGRESS_FOLDER / LOCK
            lock.write_text(json.dumps({"host": "elsewhere", "pid": 1, "token": "x"}))
        return Finished(job, code, 0.1, 1)

    def cancel(self, name: str) -> None:
        raise AssertionError("a capture cancels nothing")

    def close(self) -> None:
        self._waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _dies_after(shards: int, read_shard: Any) -> Any:
    left = iter(range(shards))

    def read(*arguments: Any) -> Any:
        if next(left, None) is None:
            raise Killed
        return read_shard(*arguments)

    return read


def _code_of_main() -> int:
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    except Killed:
        return -signal.SIGKILL
    raise AssertionError("main always exits")


def _directory(job: Job) -> Path:
    config = json.loads(Path(job.command[4]).read_text())
    return Part.parse(job.command[job.command.index("--part") + 1]).directory(Path(config["cache"]))


def config_file(folder: Path, config: CaptureConfig) -> Path:
    """The config for the command line, with what it says no to."""
    path = folder / f"{config.cache.name}.json"
    path.write_text(config.model_dump_json())
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """The files of the single captures, without and with the tail's shape."""
    plain, shaped = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("shaped")
    for config in (tiny_config(plain, shape=None), tiny_config(shaped)):
        capture(config, progress=False)
    return {folder.name[:-1]: files_of(folder / "cache") for folder in (plain, shaped)}


@pytest.fixture
def config(tmp_path: Path) -> CaptureConfig:
    """Without the tail's shape: a job less."""
    return tiny_config(tmp_path, shape=None)


@pytest.fixture
def shaped(tmp_path: Path) -> CaptureConfig:
    return tiny_config(tmp_path)


def run(config: CaptureConfig, engine: Here, parts: int | None = 3, **more: Any) -> None:
    file = config_file(config.cache.parent, config)
    with engine:
        capture_everywhere(config, [str(file)], engine, parts=parts, progress=False, **more)


def beside(config: CaptureConfig) -> list[str]:
    """What stands beside the cache of its own."""
    return sorted(path.name for path in config.cache.parent.glob("cache-*"))


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> object:
    monkeypatch.setattr(sys, "argv", ["stage1-teacher", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself; overrides reach the jobs, and relative ones mean this directory."""
    config = tiny_config(tmp_path, shape=None)
    file = config_file(tmp_path, config)
    monkeypatch.setenv("PYTHONPATH", str(Path(machines_module.__file__).parent.parent))
    monkeypatch.chdir(tmp_path)
    wanted = ["--set", "selection.k=5", "--set", "cache=moved"]
    assert call(monkeypatch, "capture", file, *wanted, "--parts", 2, "--json") == 0
    found = capsys.readouterr()
    facts = json.loads(found.out)
    assert (facts["cache"], facts["part"], facts["windows"]) == (str(tmp_path / "moved"), None, 40)
    assert "part 1/2" not in found.err, "the jobs speak in their logs"
    assert not list(tmp_path.glob("moved-*"))
    assert not config.cache.exists()
    selection = config.selection.model_copy(update={"k": 5})
    capture(config.model_copy(update={"selection": selection}), progress=False)
    assert files_of(tmp_path / "moved") == files_of(config.cache)


def test_parts_that_are_killed_are_begun_again(
    shaped: CaptureConfig, prepared: dict[str, dict[str, bytes]], capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Here({"part 1/3": [1, 0]})
    run(shaped, engine)
    assert engine.began == ["fit", "part 1/3", "part 2/3", "part 3/3", "part 1/3", "part 1/3"]
    assert files_of(shaped.cache) == prepared["shaped"]
    assert beside(shaped) == []
    log = shaped.cache.with_name("cache-machines") / "logs" / "part 1-of-3.log"
    line = f"part 1/3 was killed by signal 9 and is begun again; log {log}"
    assert [said for said in capsys.readouterr().err.splitlines() if said.startswith("part ")] == [line, line]


def test_killed_once_more_and_run_again(shaped: CaptureConfig, prepared: dict[str, dict[str, bytes]]) -> None:
    lost = Here({"part 1/3": [0, 1, 0]})
    with pytest.raises(RunError) as caught:
        run(shaped, lost)
    log = shaped.cache.with_name("cache-machines") / "logs" / "part 1-of-3.log"
    assert str(caught.value) == (
        f"part 1/3: expected an end of its own, got killed by signal 9 3 times; see {log}, and the host's memory"
    )
    (Part(1, 3).directory(shaped.cache) / PROGRESS_FOLDER / LOCK).unlink()  # the other host's
    engine = Here()
    run(shaped, engine, parts=None)
    assert engine.began == ["part 1/3"], "as many parts as there are; the shape and the others stand"
    assert files_of(shaped.cache) == prepared["shaped"]
    assert beside(shaped) == []


def test_a_crash_before_and_after_the_merge(
    config: CaptureConfig, prepared: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("merge", "shutil.rmtree"):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(f"stage1_teacher.machines.{name}", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            run(config, engine := Here(), parts=2)
        assert len(engine.began) == (2 if name == "merge" else 0), "what is captured is not captured again"
    run(config, engine := Here(), parts=2)
    assert (engine.began, beside(config)) == ([], [])
    assert files_of(config.cache) == prepared["plain"]
    capture(config, part=Part(1, 2), progress=False)
    run(config, engine := Here(), parts=2)
    assert beside(config) == ["cache-part-001-of-002"], "what somebody else put there stays"


def test_a_part_that_complains_is_heard_once(shaped: CaptureConfig, tmp_path: Path) -> None:
    capture_module.fit(shaped, tmp_path / "shape", progress=False)
    (tmp_path / "shape").write_bytes((tmp_path / "shape").read_bytes()[:-1])
    engine = Here()
    with pytest.raises(UsageError) as caught:
        run(shaped, engine, shape=tmp_path / "shape")
    assert engine.began == ["part 1/3"]
    log = shaped.cache.with_name("cache-machines") / "logs" / "part 1-of-3.log"
    assert str(caught.value).startswith(f"part 1/3: {tmp_path}/shape: expected a tail's shape as `fit` wrote it, got ")
    assert str(caught.value).endswith(f"(log {log})")


def test_stopped_parts_are_no_finished_ones(config: CaptureConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spot machine's SIGTERM reaches a part alone, which answers with 0."""
    monkeypatch.setattr(capture_module, "load_teacher", lambda _: (_ for _ in ()).throw(Terminated))
    with pytest.raises(RunError, match=r"^part 1/1: expected an end of its own, got stopped by SIGTERM 3 times; see "):
        run(config, Here(), parts=1)


def test_a_teacher_whose_tail_has_no_shape(
    shaped: CaptureConfig, prepared: dict[str, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (capture_module, fitting_module):
        monkeypatch.setattr(module, "why_not", lambda _: "its logits are soft-capped")
    engine = Here()
    run(shaped, engine, parts=2)
    assert engine.began == ["fit", "part 1/2", "part 2/2"]
    assert files_of(shaped.cache) == prepared["plain"]


def test_as_many_parts_as_run_at_once_and_never_more_than_shards(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", 9)
    config = tiny_config(tmp_path, shape=None)
    engine = Here()
    run(config, engine, parts=None)
    assert engine.began == ["part 1/1"]


def test_another_cache_or_other_parts_are_refused(config: CaptureConfig) -> None:
    capture(config, part=Part(2, 3), progress=False)
    with pytest.raises(UsageError) as caught:
        run(config, Here(), parts=2)
    assert str(caught.value) == (
        f"--parts 2: expected the 3 parts that are there, got 2; "
        f"go on with --parts 3, or delete {config.cache}-part-*-of-003"
    )
    other = config.model_copy(update={"selection": config.selection.model_copy(update={"k": 7})})
    part = Part(2, 3).directory(config.cache)
    with pytest.raises(UsageError, match=rf"^cache directory {part}, selection\.k: expected 8, got 7; use the same"):
        run(other, Here())
    capture(config, progress=False)
    with pytest.raises(UsageError, match=rf"^cache directory {config.cache}, selection\.k: expected 8, got 7; use"):
        run(other, Here())
    with pytest.raises(UsageError, match=r"^--parts 6: expected at most 5 parts, got 6; use fewer parts"):
        run(config.model_copy(update={"cache": config.cache.with_name("new")}), Here(), parts=6)
    assert not config.cache.with_name("new-machines").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--part", "1/2", "--parts", "2"],
            "--part 1/2: expected no --parts nor --engine beside it, got both; leave out",
        ),
        (["--engine", "slurm"], "--engine slurm: expected local or ray, got slurm; write --engine local, or --engine"),
        (
            ["--engine", "local", "--address", "a:1"],
            "--engine local: expected local or ray, got --address, which is Ray",
        ),
        (["--address", "a:1"], "--address a:1: expected --engine ray, got no --engine; add --engine ray"),
    ],
)
def test_wrong_calls(
    config: CaptureConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str,
) -> None:
    assert call(monkeypatch, "capture", config_file(tmp_path, config), *arguments) == 2
    complained = capsys.readouterr().err
    assert complained.startswith(f"error: {line}")
    assert len(complained.splitlines()) == 1


def test_sigterm_ends_all_of_it_in_order(
    config: CaptureConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Here()

    def stop(_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(machines_module, "open_engine", lambda *_: engine)
        patch.setattr(machines_module, "tokens_read", stop)  # when the first part has ended
        assert call(patch, "capture", config_file(tmp_path, config), "--parts", 2) == 0
    part = Part(1, 2).directory(config.cache)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"stopped by SIGTERM: 3 shards are sealed in {part}; the same command goes on"
    assert engine.began == ["part 1/2"]


def test_torchruns_ranks_are_parts(
    config: CaptureConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Part.of_rank({}) is None
    assert Part.of_rank({"RANK": "0", "WORLD_SIZE": "1"}) is None, "one process captures the whole"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        assert call(monkeypatch, "capture", config_file(tmp_path, config)) == 0
        found = capsys.readouterr()
        part = Part(rank + 1, 2).directory(config.cache)
        assert found.out.startswith(f"{part}: ")
        assert ("next, when all 2 parts are there" in found.out, "capture:" in found.err) == (rank == 0, rank == 0)
    assert beside(config) == ["cache-part-001-of-002", "cache-part-002-of-002"]


def test_local_rank_is_the_gpu(config: CaptureConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines_module, "visible_devices", lambda: ["4", "7"])
    auto = config.model_copy(update={"teacher": config.teacher.model_copy(update={"device_map": "auto"})})
    assert on_own_device(auto, {"LOCAL_RANK": "1"}).teacher.device_map == "cuda:1"
    assert on_own_device(config, {"LOCAL_RANK": "1"}) == config, "it says cpu"
    with pytest.raises(UsageError) as caught:
        on_own_device(auto, {"LOCAL_RANK": "2"})
    assert str(caught.value) == (
        "LOCAL_RANK 2: expected a GPU of its own, got 2 GPUs here; use torchrun --nproc-per-node 2"
    )
    monkeypatch.setattr(machines_module, "visible_devices", list)
    assert on_own_device(auto, {"LOCAL_RANK": "2"}) == auto


def test_where_the_parts_run(config: CaptureConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines_module, "visible_devices", lambda: ["4", "7"])
    auto = config.model_copy(update={"teacher": config.teacher.model_copy(update={"device_map": "auto"})})
    for settings, parts, slots in ((auto, 5, 2), (auto, None, 2), (config, 5, 5), (config, None, 1)):
        with open_engine("local", None, settings, parts) as engine:
            assert isinstance(engine, LocalEngine)
            assert engine.slots == slots


def test_status_shows_the_parts_together(config: CaptureConfig) -> None:
    with pytest.raises(CodestillError):
        run(config, Here({"part 2/3": [1, 0, 0]}))
    found = read_status(config.cache)
    each = [read_status(Part(number, 3).directory(config.cache)) for number in (1, 2, 3)]
    assert [part["holder"].pop("heartbeat_seconds_ago") >= 0 for part in (found["parts"][1], each[1])] == [True, True]
    assert found["parts"] == each
    assert [part["state"] for part in each] == ["finished", "at work", "finished"], "the lost host's lock is fresh"
    assert (found["state"], found["shards"], found["shards_in_all"], found["windows_in_all"]) == ("at work", 4, 5, 40)
    (Part(2, 3).directory(config.cache) / PROGRESS_FOLDER / LOCK).unlink()
    stopped = read_status(config.cache)
    assert (stopped["state"], stopped["tokens_per_second"], stopped["seconds_left"]) == ("stopped", None, None)
    lines = screen(stopped).splitlines()
    assert lines[0] == f"{config.cache}: stopped"
    assert lines[1].startswith("sealed: 4 of 5 shards; 36 of 40 windows; ")
    assert [line.split(", ")[:2] for line in lines[3:]] == [
        ["  1/3: finished", "2 of 2 shards"],
        ["  2/3: stopped", "1 of 2 shards"],
        ["  3/3: finished", "1 of 1 shards"],
    ]
    capture(config, part=Part(2, 3), progress=False)
    done = read_status(config.cache)
    assert (done["state"], done["tokens"]) == ("captured", done["tokens_in_all"])
    assert (
        screen(done).splitlines()[2] == f"next: python -m cache merge {config.cache}-part-*-of-003 --out {config.cache}"
    )


def test_status_before_any_part_has_begun(config: CaptureConfig) -> None:
    work_beside(config.cache).mkdir()
    with only_one(work_beside(config.cache) / PROGRESS_FOLDER / LOCK):
        found = read_status(config.cache)
    assert (found["state"], found["holder"]["pid"], found["parts"]) == ("at work", os.getpid(), [])
    assert (found["shards_in_all"], found["seconds_left"]) == (None, None)
    assert screen(found).splitlines()[1:] == ["sealed: 0 shards; 0 windows; 0 tokens", "no token read yet"]
    assert read_status(config.cache)["state"] == "stopped"
