"""Damage: any flipped, missing or added byte is found by `verify --level hash`, and never reaches a reader as data.

Every byte of a small cache is flipped for verify. The reading path opens HDF5 for every flip, 6 ms each, so every eleventh
byte is flipped here and all of them with `pytest -m slow`. Hostile files are test_cache_attacks.py's matter.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from cache_records import TOKENIZER, identity, record, records, same, write_cache

from cache.encoding import Encoding
from cache.manifest import MANIFEST, read_manifest
from cache.reader import ShardReader, open_cache
from cache.record import CachedWindow
from cache.shard import read_index, shard_bytes
from cache.verify import verify
from shared.errors import RunError

ENCODING = Encoding(vocab_size=50, k=8, directions=2)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", records(3), identity())
    return tmp_path / "cache"


def shard_of(cache: Path, number: int = 0) -> Path:
    return cache / read_manifest(cache).shards[number].name


def flips(path: Path, step: int = 1, seed: int = 0) -> list[tuple[int, int]]:
    """(place, xor mask) for every `step`-th byte, masks of one random bit or of many."""
    rng, size = np.random.default_rng(seed), path.stat().st_size
    masks = np.where(rng.random(size) < 0.5, 1 << rng.integers(0, 8, size), rng.integers(1, 256, size))
    return [(place, int(masks[place])) for place in range(seed % step, size, step)]


def flip(handle: int, place: int, mask: int) -> None:
    os.pwrite(handle, bytes([os.pread(handle, 1, place)[0] ^ mask]), place)


@pytest.mark.parametrize("name", [MANIFEST, *(f"tokenizer/{name}" for name in TOKENIZER)])
def test_verify_finds_every_flipped_byte_of_the_small_files(cache: Path, name: str) -> None:
    handle = os.open(cache / name, os.O_RDWR)
    for place, mask in flips(cache / name):
        flip(handle, place, mask)
        assert [problem.shard for problem in verify(cache)] == [name], place
        flip(handle, place, mask)
    os.close(handle)
    assert verify(cache) == []


def test_verify_finds_every_flipped_byte_of_a_shard(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", records(1, positions=1), identity())
    path = shard_of(tmp_path / "cache")
    handle = os.open(path, os.O_RDWR)
    for place, mask in flips(path, step=3):
        flip(handle, place, mask)
        assert [problem.kind for problem in verify(tmp_path / "cache")] == ["hash"], place
        flip(handle, place, mask)
    os.close(handle)


@pytest.mark.parametrize("level", ["size", "hash", "deep"])
def test_sound_cache_has_no_problems(cache: Path, level: str) -> None:
    assert verify(cache, level) == []  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["shard", "tokenizer/tokenizer.json", MANIFEST])
@pytest.mark.parametrize("change", [-1, -100, 1, 4096])
def test_missing_and_added_bytes(cache: Path, name: str, change: int) -> None:
    path = shard_of(cache) if name == "shard" else cache / name
    raw = path.read_bytes()
    path.write_bytes(raw + bytes(change) if change > 0 else raw[:change])
    problem = verify(cache)[0]
    assert problem.shard == path.relative_to(cache).as_posix()
    assert problem.kind == ("manifest" if name == MANIFEST else "size")
    assert verify(cache, "size") == verify(cache, "hash")


def test_missing_file(cache: Path) -> None:
    shard_of(cache, 1).unlink()
    assert [(problem.kind, problem.detail) for problem in verify(cache)] == [("missing", "no such file")]
    with pytest.raises(RunError, match=r"^shard 00001-[0-9a-f]{12}.h5: expected a file beside the manifest, got none"):
        open_cache(cache)


@pytest.mark.parametrize("name", ["notes.txt", "tokenizer/run.py", ".hidden", "deep/er/file", "00009-0123456789ab.h5"])
def test_unknown_file(cache: Path, name: str) -> None:
    (cache / name).parent.mkdir(parents=True, exist_ok=True)
    (cache / name).write_text("x")
    assert [(problem.shard, problem.kind) for problem in verify(cache, "size")] == [(name, "unknown")]


@pytest.mark.parametrize("target", ["/", "/nowhere/at/all", "."])
def test_unknown_link_is_named_and_not_followed(cache: Path, target: str) -> None:
    (cache / "link").symlink_to(target)
    assert [(problem.shard, problem.kind) for problem in verify(cache)] == [("link", "unknown")]


def test_file_replaced_by_a_link_to_its_own_bytes(cache: Path, tmp_path: Path) -> None:
    path = shard_of(cache)
    path.rename(tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    assert [(problem.shard, problem.detail) for problem in verify(cache)] == [(path.name, "not a plain file")]
    with pytest.raises(RunError, match="expected a plain file, got a link"):
        open_cache(cache)


def test_tokenizer_folder_replaced_by_a_link(cache: Path, tmp_path: Path) -> None:
    (cache / "tokenizer").rename(tmp_path / "moved")
    (cache / "tokenizer").symlink_to(tmp_path / "moved")
    assert {problem.kind for problem in verify(cache)} == {"missing", "unknown"}


def test_unreadable_disk_is_a_problem_not_a_traceback(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def dying(path: Path) -> str:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("cache.verify.sha256_file", dying)
    assert {(problem.kind, problem.detail) for problem in verify(cache)} == {("unreadable", "Input/output error")}


def test_deep_finds_a_window_under_another_id(tmp_path: Path) -> None:
    from dataclasses import replace

    windows = [replace(window, id=f"{number:016x}") for number, window in enumerate(records(2))]
    write_cache(tmp_path / "cache", windows, identity())
    assert verify(tmp_path / "cache", "hash") == []
    details = [problem.detail for problem in verify(tmp_path / "cache", "deep")]
    assert details == [f"window {number:016x}: its tokens do not hash to its id" for number in range(2)]


def test_deep_finds_ids_that_stand_twice(tmp_path: Path) -> None:
    from dataclasses import replace

    window = record(np.random.default_rng(0), positions=3, sizes_P=np.array([4, 4, 4]))
    outside = np.setdiff1d(np.arange(50), np.concatenate([window.head_ids_E, window.tokens]))
    ids = window.head_ids_E.copy()
    ids[[5, 6]] = outside[0]
    write_cache(tmp_path / "cache", [replace(window, head_ids_E=ids)], identity())
    details = [problem.detail.partition(": ")[2] for problem in verify(tmp_path / "cache", "deep")]
    assert details == ["an id stands twice in one head"]


# The reading path


def content(path: Path) -> tuple[list[CachedWindow], object]:
    index = read_index(path, ENCODING)
    reader = ShardReader(index)
    return [reader.read(window) for window in range(len(index))], index.summary


def outcome(path: Path, sound: tuple[list[CachedWindow], object]) -> str:
    """What a reader of a damaged shard sees; any exception but RunError comes through and fails the test."""
    try:
        windows, summary = content(path)
    except RunError as error:
        assert "\n" not in str(error)
        return "refused"
    unharmed = summary == sound[1] and len(windows) == len(sound[0])
    return "unharmed" if unharmed and all(map(same, windows, sound[0])) else "wrong"


def read_under_flips(path: Path, windows: int, step: int, seed: int) -> Counter[str]:
    path.write_bytes(shard_bytes(records(windows, positions=5, seed=seed, directions=2), ENCODING, {"a": 1}))
    sound, handle, seen = content(path), os.open(path, os.O_RDWR), Counter[str]()
    for place, mask in flips(path, step, seed):
        flip(handle, place, mask)
        seen[outcome(path, sound)] += 1
        flip(handle, place, mask)
    os.close(handle)
    assert content(path)[1] == sound[1]
    return seen


@pytest.mark.parametrize("windows", [1, 3])
def test_no_flipped_byte_is_read_as_data(tmp_path: Path, windows: int) -> None:
    seen = read_under_flips(tmp_path / "shard.h5", windows, step=11, seed=windows)
    assert seen["wrong"] == 0
    assert seen["refused"] > 0.4 * seen.total(), "the rest is HDF5's free space"


@pytest.mark.slow
@pytest.mark.parametrize("windows", [1, 3, 40])
def test_no_flipped_byte_at_all_is_read_as_data(tmp_path: Path, windows: int) -> None:
    seen = read_under_flips(tmp_path / "shard.h5", windows, step=1, seed=windows)
    assert seen["wrong"] == 0
    assert seen["refused"] > 0.4 * seen.total()


def test_every_byte_of_every_frame_is_guarded(tmp_path: Path) -> None:
    """Where the windows lie there is no free space: each flip is refused, and by the window it hit alone."""
    path = tmp_path / "shard.h5"
    path.write_bytes(shard_bytes(records(3, positions=5, directions=2), ENCODING, {}))
    index = read_index(path, ENCODING)
    reader, sound, handle = ShardReader(index), content(path)[0], os.open(path, os.O_RDWR)
    for window, (offset, size) in enumerate(zip(index.offset, index.size, strict=True)):
        for place in range(int(offset), int(offset + size)):
            flip(handle, place, 1 << place % 8)
            with pytest.raises(RunError, match=f"^shard shard.h5, window {index.id_of(window)}: expected undamaged"):
                reader.read(window)
            assert same(reader.read((window + 1) % 3), sound[(window + 1) % 3])
            flip(handle, place, 1 << place % 8)
    os.close(handle)


@pytest.mark.parametrize("length", [0, 8, 100, 2000, 5000, -1])
def test_shard_cut_short_under_an_open_reader(tmp_path: Path, length: int) -> None:
    path = tmp_path / "shard.h5"
    path.write_bytes(shard_bytes(records(3, positions=5, directions=2), ENCODING, {}))
    reader = ShardReader(read_index(path, ENCODING))
    last = int((reader.index.offset + reader.index.size).max())
    os.truncate(path, min(length, last - 1) if length >= 0 else last - 1)
    with pytest.raises(
        RunError, match=r"window [0-9a-f]{16}: expected undamaged bytes, got .*; run `python -m cache verify"
    ):
        for window in range(3):
            reader.read(window)


@pytest.mark.parametrize("length", [0, 1, 8, 48, 100, 1000, 2000, 3000])
def test_shard_cut_short_before_it_is_opened(tmp_path: Path, length: int) -> None:
    path = tmp_path / "shard.h5"
    path.write_bytes(shard_bytes(records(3, positions=5, directions=2), ENCODING, {})[:length])
    with pytest.raises(RunError, match=r"^shard\.h5: expected "):
        read_index(path, ENCODING)


def test_shard_that_vanished_under_an_open_cache(cache: Path) -> None:
    opened = open_cache(cache)
    shard_of(cache).unlink()
    with pytest.raises(RunError, match=r"window [0-9a-f]{16}: expected undamaged bytes, got .*No such file"):
        opened[0]
    assert opened[2].document == "document 2"
