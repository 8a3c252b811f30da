"""The bad days of a capture: full disks, kills, two at once, stale locks, other plans. Whole files or none, same bytes.

Driven without a teacher: a capture is a loop that seals shards. Stage 1's own resume is tested with stage 1.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cache_records import files_of, identity, record, records, write_cache

from cache import lock as lock_module
from cache.encoding import Encoding, encode_window
from cache.lock import only_one
from cache.manifest import read_manifest
from cache.shard import shard_bytes
from cache.verify import verify
from cache.writer import LOCK, PROGRESS_FOLDER, finished, writing
from shared.errors import RunError, UsageError

TESTS = Path(__file__).resolve().parent
CAPTURE = """
import sys, time
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from pathlib import Path
from cache_records import identity, records, write_cache
from cache.writer import finished
directory = Path(sys.argv[3])
print("ready", flush=True)
if finished(directory, identity()) is None:
    write_cache(directory, records(24))
"""


def capture(directory: Path) -> subprocess.Popen[str]:
    """A capture in a process of its own, past its imports."""
    process = subprocess.Popen(
        [sys.executable, "-c", CAPTURE, str(TESTS), str(TESTS.parent), str(directory)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=60)
    return process.returncode


def test_same_windows_same_bytes(tmp_path: Path) -> None:
    windows, encoding = records(9), Encoding(vocab_size=50, k=8)
    assert shard_bytes(windows, encoding, {"b": 1, "a": 2}) == shard_bytes(windows, encoding, {"a": 2, "b": 1})
    for name in ("one", "two"):
        write_cache(tmp_path / name, windows)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")
    assert read_manifest(tmp_path / "one").cache_id == read_manifest(tmp_path / "two").cache_id


def test_shards_are_named_by_place_and_hash_and_nothing_else_is_left(tmp_path: Path) -> None:
    manifest = write_cache(tmp_path / "cache", records(5))
    names = [shard.name for shard in manifest.shards]
    assert [name[:6] for name in names] == ["00000-", "00001-", "00002-"]
    assert sorted(files_of(tmp_path / "cache")) == sorted(
        [*names, "manifest.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"]
    )
    assert not (tmp_path / "cache" / PROGRESS_FOLDER).exists()


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "here")


@pytest.mark.parametrize("call", ["os.fsync", "pathlib.Path.replace"])
@pytest.mark.parametrize("failing", range(12))
def test_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, failing: int
) -> None:
    """The disk fills up at the n-th step of writing; final names are whole, and running again ends well."""
    whole, directory = tmp_path / "whole", tmp_path / "cache"
    write_cache(whole, records(5))
    module, name = (os, "fsync") if call == "os.fsync" else (Path, "replace")
    real, steps = getattr(module, name), iter(range(10**6))
    monkeypatch.setattr(module, name, lambda *args: full_disk() if next(steps) == failing else real(*args))
    try:
        write_cache(directory, records(5))
    except OSError as error:
        assert error.errno == errno.ENOSPC
        assert not (directory / PROGRESS_FOLDER / LOCK).exists()
        final = {name: raw for name, raw in files_of(directory).items() if not name.startswith(PROGRESS_FOLDER)}
        assert not any(name.endswith(".tmp") for name in final)
        assert all(files_of(whole)[name] == raw for name, raw in final.items())
        if (directory / "manifest.json").exists():  # only the directory's own fsync failed, after the rename
            assert finished(directory, identity()) is not None
        else:
            write_cache(directory, records(5))
    assert files_of(directory) == files_of(whole)


def test_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, rng = tmp_path / "whole", np.random.default_rng(0)
    process, start = capture(whole), time.perf_counter()
    assert ended(process) == 0
    span, kills = time.perf_counter() - start, 0
    for number in range(3):
        directory = tmp_path / f"cache{number}"
        for _ in range(2):  # the second kill meets a capture that goes on
            process = capture(directory)
            time.sleep(rng.random() * 0.7 * span)
            process.send_signal(signal.SIGKILL)
            kills += ended(process) == -signal.SIGKILL
        if finished(directory, identity()) is None:
            write_cache(directory, records(24))
        assert files_of(directory) == files_of(whole)
    assert kills >= 2, "at least some came before the end"
    assert verify(directory, "deep") == []


@pytest.mark.parametrize("step", range(14))
def test_killed_between_any_two_steps_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """A kill leaves everything as it stands, the lock too: no clean-up runs."""
    whole, directory = tmp_path / "whole", tmp_path / "cache"
    write_cache(whole, records(5))
    child = os.fork()
    if child == 0:  # the fsync of step number `step` never returns
        real, steps = os.fsync, iter(range(10**6))
        os.fsync = lambda handle: os._exit(9) if next(steps) == step else real(handle)  # type: ignore[assignment]
        write_cache(directory, records(5))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    if finished(directory, identity()) is None:
        write_cache(directory, records(5))
    assert files_of(directory) == files_of(whole)


# One at a time


def test_second_writer_is_told_who_is_at_work(tmp_path: Path) -> None:
    with writing(tmp_path / "cache", identity()):
        code = "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path\n" + (
            "from cache_records import *\nfrom shared.errors import UsageError\n"
            "try: write_cache(Path(sys.argv[3]), records(3))\nexcept UsageError as error: print(error)"
        )
        args = [sys.executable, "-c", code, str(TESTS), str(TESTS.parent), str(tmp_path / "cache")]
        line = subprocess.run(args, capture_output=True, text=True, check=True).stdout
    expected = f"expected one capture at a time, got process {os.getpid()} on {socket.gethostname()} at work in it"
    assert line.startswith(f"{tmp_path / 'cache'}: {expected}; wait for it to end, or delete ")
    assert line.count("\n") == 1


def test_second_writer_in_the_same_process_too(tmp_path: Path) -> None:
    with (
        writing(tmp_path / "cache", identity()),
        pytest.raises(UsageError, match="expected one capture at a time"),
        writing(tmp_path / "cache", identity()),
    ):
        pass


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    (tmp_path / "cache" / PROGRESS_FOLDER).mkdir(parents=True)
    return tmp_path / "cache" / PROGRESS_FOLDER / LOCK


def held(lock: Path, **holder: object) -> Path:
    lock.write_text(json.dumps({"host": socket.gethostname(), "pid": 1, "token": "x"} | holder))
    return lock


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_lock_of_a_dead_process_is_taken_over(lock: Path) -> None:
    with only_one(held(lock, pid=dead_process())):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert list(lock.parent.iterdir()) == []


def test_lock_of_an_earlier_boot_that_has_our_number_is_taken_over(lock: Path) -> None:
    with only_one(held(lock, pid=os.getpid())):
        assert json.loads(lock.read_text())["token"] != "x"


@pytest.mark.parametrize("text", ["", "{", '{"host": "a"', "[]", "null", "\x00\x00"])
def test_torn_lock_is_taken_over(lock: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "TORN", 0.1)
    lock.write_text(text)
    with only_one(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_lock_that_is_just_being_written_is_respected(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock.write_text("")
    monkeypatch.setattr(time, "sleep", lambda _: held(lock, pid=os.getppid()))
    with pytest.raises(UsageError, match=f"got process {os.getppid()} on"), only_one(lock):
        pass


@pytest.mark.parametrize(("age", "alive"), [(0, True), (500, True), (700, False)])
def test_lock_of_another_host_is_judged_by_its_last_touch(lock: Path, age: int, alive: bool) -> None:
    held(lock, host="elsewhere", pid=dead_process())
    os.utime(lock, (time.time() - age, time.time() - age))
    if alive:
        with pytest.raises(UsageError, match="on elsewhere at work in it"), only_one(lock):
            pass
        assert json.loads(lock.read_text())["host"] == "elsewhere"
    else:
        with only_one(lock):
            assert json.loads(lock.read_text())["host"] == socket.gethostname()


def test_holder_keeps_touching_its_lock(lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "HEARTBEAT", 0.02)
    with only_one(lock):
        os.utime(lock, (0, 0))
        end = time.monotonic() + 10
        while lock.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.02)
        assert lock.stat().st_mtime > 0


def test_writer_that_was_taken_over_while_it_slept_writes_no_more(tmp_path: Path) -> None:
    with writing(tmp_path / "cache", identity()) as writer:
        held(tmp_path / "cache" / PROGRESS_FOLDER / LOCK, host="elsewhere")
        with pytest.raises(RunError, match="expected this capture alone in it, got another one"):
            writer.seal(0, records(2), {})
    assert json.loads((tmp_path / "cache" / PROGRESS_FOLDER / LOCK).read_text())["host"] == "elsewhere", (
        "not ours to delete"
    )
    assert not list((tmp_path / "cache").glob("*.h5"))


# The right directory


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "00000-0123456789ab.h5.bak", "manifest.json"])
def test_directory_that_holds_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with (
        pytest.raises(UsageError, match=f"^cache directory .*: expected an empty or new directory, got {name}; choose"),
        writing(tmp_path, identity()),
    ):
        pass
    assert files_of(tmp_path) == {name: b"mine"}
    assert not (tmp_path / PROGRESS_FOLDER).exists()


def test_somebody_elses_temporary_file_is_not_ours_to_delete(tmp_path: Path) -> None:
    (tmp_path / "thesis.tmp").write_text("mine")
    (tmp_path / ".00000-0123456789ab.h5.k2j3.tmp").write_text("a crash left this")
    write_cache(tmp_path, records(2))
    assert files_of(tmp_path)["thesis.tmp"] == b"mine"
    assert not list(tmp_path.glob(".0*"))


def interrupted(directory: Path) -> None:
    """One sealed shard, no manifest."""
    with writing(directory, identity()) as writer:
        writer.seal(0, records(2), {})


def test_other_plan_is_refused_and_the_field_named(tmp_path: Path) -> None:
    interrupted(tmp_path / "cache")
    message = (
        rf"^cache directory {tmp_path / 'cache'}, teacher\.id: expected table, got chair; "
        "use the same settings, or another directory$"
    )
    with pytest.raises(UsageError, match=message):
        write_cache(tmp_path / "cache", records(3), identity(teacher="chair"))
    with pytest.raises(UsageError, match=r", encoding\.vocab_size \(and 1 more\): expected 50, got 60;"):
        write_cache(tmp_path / "cache", records(3), identity(vocab=60))
    write_cache(tmp_path / "cache", records(3))
    with pytest.raises(UsageError, match=message):
        finished(tmp_path / "cache", identity(teacher="chair"))


def test_plan_may_change_while_nothing_is_sealed(tmp_path: Path) -> None:
    with writing(tmp_path / "cache", identity(teacher="chair")):
        pass
    assert write_cache(tmp_path / "cache", records(3)).teacher.id == "table"


def test_shards_without_a_plan(tmp_path: Path) -> None:
    interrupted(tmp_path / "cache")
    (tmp_path / "cache" / PROGRESS_FOLDER / "plan.json").unlink()
    with pytest.raises(UsageError, match=r"expected a plan\.json beside the shards, got none; use a new directory"):
        write_cache(tmp_path / "cache", records(3))


def test_damaged_plan(tmp_path: Path) -> None:
    interrupted(tmp_path / "cache")
    (tmp_path / "cache" / PROGRESS_FOLDER / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan\.json: expected the plan of an interrupted capture, got a damaged one"):
        write_cache(tmp_path / "cache", records(3))


def test_damaged_sealed_shard(tmp_path: Path) -> None:
    interrupted(tmp_path / "cache")
    path = next((tmp_path / "cache").glob("*.h5"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match=f"^shard {path.name}: expected the hash in its name, got another; delete it"):
        write_cache(tmp_path / "cache", records(3))
    path.unlink()
    write_cache(tmp_path / "cache", records(3))
    assert verify(tmp_path / "cache", "deep") == []


def test_shards_of_a_longer_corpus_do_not_slip_in(tmp_path: Path) -> None:
    with writing(tmp_path / "cache", identity()) as writer:
        for number in range(3):
            writer.seal(number, records(2, seed=number), {})
    with pytest.raises(RunError, match="with the corpus's 3 windows, got shards 0, 1, 2 with 6; capture into a new"):
        write_cache(tmp_path / "cache", records(3))
    assert not (tmp_path / "cache" / "manifest.json").exists()


def test_two_shards_of_one_number(tmp_path: Path) -> None:
    interrupted(tmp_path / "cache")
    with writing(tmp_path / "cache", identity()) as writer:
        writer.seal(0, records(2, seed=1), {})
    with pytest.raises(RunError, match="expected one shard of its number, got 00000-"):
        write_cache(tmp_path / "cache", records(3))


def test_windows_longer_than_any_reader_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.shard.MAX_CHUNK_BYTES", 100)
    window = record(np.random.default_rng(0), positions=60)
    longest = sum(map(len, encode_window(window, Encoding(vocab_size=50, k=8)).sections))
    expected = f"bytes of a window: expected at most 100, got {longest}; set a smaller max_length or k"
    with pytest.raises(UsageError, match=expected):
        shard_bytes([window], Encoding(vocab_size=50, k=8), {})
