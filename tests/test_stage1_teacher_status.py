"""`status`: what another terminal sees while a capture works, after it crashed, and when it is done."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cache_records import files_of
from tiny_capture import tiny_config

from cache.lock import STALE, holder_of
from cache.reader import open_cache
from cache.writer import LOCK, PROGRESS_FOLDER
from shared.errors import UsageError
from stage1_teacher import capture as capture_module
from stage1_teacher.capture import capture
from stage1_teacher.config import CaptureConfig
from stage1_teacher.parts import Part
from stage1_teacher.reading import Reader
from stage1_teacher.status import FILE, read_status, screen

ROOT = Path(__file__).resolve().parent.parent
READ_SHARD = Reader.read_shard


@pytest.fixture
def config(tmp_path: Path) -> CaptureConfig:
    return tiny_config(tmp_path)


@pytest.fixture
def crashed(config: CaptureConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A capture that crashed when it had read three shards of five."""

    def crash_at_3(reader: Reader, windows: Any, number: int, advance: Any) -> Any:
        if number == 3:
            raise KeyboardInterrupt
        return READ_SHARD(reader, windows, number, advance)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Reader, "read_shard", crash_at_3)
        capture(config, progress=False)
    return config.cache


def tokens_of(directory: Path) -> list[int]:
    """Tokens of each of the five shards."""
    lengths = open_cache(directory).lengths
    return [int(lengths[start : start + 9].sum()) for start in range(0, 40, 9)]


def watched(config: CaptureConfig, monkeypatch: pytest.MonkeyPatch, part: Part | None = None) -> list[dict[str, Any]]:
    """What status says before each shard that a capture reads; the one before is sealed by then."""
    seen: list[dict[str, Any]] = []
    directory = part.directory(config.cache) if part else config.cache

    def look(reader: Reader, windows: Any, number: int, advance: Any) -> Any:
        end = time.monotonic() + 60
        while read_status(directory)["windows"] < sum(9 for _ in seen) and time.monotonic() < end:
            time.sleep(0.001)
        before = files_of(directory)
        seen.append(read_status(directory))
        assert files_of(directory) == before, "status writes nothing"
        return READ_SHARD(reader, windows, number, advance)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "read_shard", look)
        patch.setattr("stage1_teacher.status.PERIOD", 0.0)
        capture(config, part=part, progress=False)
    return seen


def test_while_it_works(config: CaptureConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(config, monkeypatch)
    tokens = tokens_of(config.cache)
    assert {row["state"] for row in seen} == {"at work"}
    assert [row["shards"] for row in seen] == [0, 1, 2, 3, 4]
    assert [row["windows"] for row in seen] == [0, 9, 18, 27, 36]
    assert (
        [row["tokens"] for row in seen] == [row["read_tokens"] for row in seen] == [sum(tokens[:n]) for n in range(5)]
    )
    assert {(row["shards_in_all"], row["windows_in_all"], row["tokens_in_all"]) for row in seen} == {
        (5, 40, sum(tokens))
    }
    first, last = seen[0], seen[-1]
    assert (first["tokens_per_second"], first["seconds_left"], first["part"]) == (None, None, None)
    assert last["tokens_per_second"] > 0
    assert 0 <= last["seconds_left"] <= tokens[-1] / last["tokens_per_second"], (
        "the last shard, less the time that passed"
    )
    assert (last["holder"]["pid"], last["holder"]["host"]) == (os.getpid(), socket.gethostname())
    lines = screen(last | {"tokens_per_second": 3210.4, "seconds_left": 4000.0}).splitlines()
    assert lines[0].startswith(f"{config.cache}: at work (process {os.getpid()} on {socket.gethostname()}, heartbeat ")
    assert lines[1:] == [
        f"sealed: 4 of 5 shards; 36 of 40 windows; {sum(tokens[:4]):,} of {sum(tokens):,} tokens",
        "3,210 tokens/s; about 1 h 7 min left",
    ]
    assert screen(first).endswith("no token read yet")


def test_a_part_counts_its_own(config: CaptureConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(config, monkeypatch, Part(2, 3))
    assert [(row["part"], row["shards"], row["shards_in_all"], row["windows_in_all"]) for row in seen] == [
        ("2/3", 0, 2, 13),
        ("2/3", 1, 2, 13),
    ]
    done = read_status(Part(2, 3).directory(config.cache))
    assert (done["state"], done["part"], done["shards"], done["windows"]) == ("finished", "2/3", 2, 13)


def test_after_a_crash_and_when_it_goes_on(
    config: CaptureConfig, crashed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read_status(crashed)
    assert (found["state"], found["holder"], found["seconds_left"]) == ("stopped", None, None)
    assert (found["shards"], found["shards_in_all"], found["windows"], found["windows_in_all"]) == (3, 5, 27, 40)
    assert screen(found).endswith("\nrun the same capture command again: it goes on behind the sealed shards")
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(Reader, "read_shard", lambda *call: seen.append(read_status(crashed)) or READ_SHARD(*call))
    capture(config, progress=False)
    tokens = tokens_of(crashed)
    assert (seen[0]["state"], seen[0]["windows"], seen[0]["tokens"]) == ("at work", 27, sum(tokens[:3]))
    assert seen[0]["read_tokens"] == 0, "tokens of earlier runs say nothing about this one's pace"
    done = read_status(crashed)
    assert (done["state"], done["shards"], done["windows"], done["tokens"]) == ("finished", 5, 40, sum(tokens))
    assert screen(done).endswith(f"\nnext: python -m cache inspect {crashed}")


def test_the_seconds_left_are_those_of_what_is_not_read(crashed: Path) -> None:
    """1,000 tokens: 200 sealed by an earlier run, 300 read by this one in 30 seconds, ten seconds ago."""
    facts = {"part": None, "shards": 5, "windows": 40, "tokens": 1000, "sealed_windows": 18, "sealed_tokens": 400}
    facts |= {"earlier_tokens": 200, "read_tokens": 300, "seconds": 30.0, "time": time.time() - 10}
    (crashed / PROGRESS_FOLDER / FILE).write_text(json.dumps(facts))
    lock = crashed / PROGRESS_FOLDER / LOCK
    lock.write_text(json.dumps({"host": "elsewhere", "pid": 7, "token": "x"}))
    found = read_status(crashed)
    assert found["tokens_per_second"] == 10
    assert found["seconds_left"] == pytest.approx(500 / 10 - 10, abs=5)
    os.utime(lock, (time.time() - STALE - 5,) * 2)
    silent = read_status(crashed)
    assert (silent["state"], silent["holder"], silent["seconds_left"]) == ("stopped", None, None)


def test_a_killed_process_of_this_host_is_known_at_once(crashed: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    lock = crashed / PROGRESS_FOLDER / LOCK
    for pid, state in ((gone.pid, "stopped"), (os.getppid(), "at work")):
        lock.write_text(json.dumps({"host": socket.gethostname(), "pid": pid, "token": "x"}))
        assert read_status(crashed)["state"] == state
        holder = holder_of(lock)
        assert holder is not None
        assert (holder.pid, holder.alive) == (pid, state == "at work")


@pytest.mark.parametrize("torn", [b"", b'{"shards": 5, "win', b"[]", None])
def test_a_torn_or_missing_progress_file_leaves_what_the_files_say(crashed: Path, torn: bytes | None) -> None:
    path = crashed / PROGRESS_FOLDER / FILE
    path.unlink()
    if torn is not None:
        path.write_bytes(torn)
    found = read_status(crashed)
    assert (found["state"], found["shards"], found["shards_in_all"], found["tokens_in_all"]) == (
        "stopped",
        3,
        None,
        None,
    )
    assert "\nsealed: 3 shards; 0 windows; 0 tokens\n" in screen(found)


def test_a_stream_tells_no_total(config: CaptureConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "look_ahead", lambda *_: None)
    seen = watched(config, monkeypatch)
    assert (seen[-1]["windows"], seen[-1]["windows_in_all"], seen[-1]["seconds_left"]) == (36, None, None)
    assert screen(seen[-1]).endswith(" tokens/s")


def test_where_no_capture_is(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"absent: expected a capture, got no such directory; check the path; a capture"
    ):
        read_status(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"expected a capture, got a directory without one"):
        read_status(tmp_path)


def test_the_command_needs_no_torch(crashed: Path) -> None:
    code = "import sys; from stage1_teacher.__main__ import main; sys.argv = ['stage1-teacher', *sys.argv[1:]]\n"
    code += "try: main()\nfinally: assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code, "status", str(crashed)]
    found = json.loads(
        subprocess.run([*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )
    assert found == read_status(crashed)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == screen(found) + "\n"
    wrong = subprocess.run([*command[:-1], "nowhere"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)


def test_status_of_parts_that_have_not_all_begun(config: CaptureConfig) -> None:
    capture(config, part=Part(1, 3), progress=False)
    Part(3, 3).directory(config.cache).mkdir()
    found = read_status(config.cache)
    assert (found["parts_in_all"], len(found["parts"]), found["shards"], found["shards_in_all"]) == (3, 1, 2, None)
    assert found["seconds_left"] is None
