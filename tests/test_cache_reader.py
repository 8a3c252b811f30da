"""Random access from threads, processes and other working directories: always the same windows, no leaked files."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cache_records import identity, record, records, same, write_cache

from cache import reader as reader_module
from cache.decoding import decode_window
from cache.encoding import Encoding, encode_window
from cache.reader import Cache, open_cache
from cache.record import CachedWindow
from shared.errors import RunError

WINDOWS = records(11, seed=3)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", WINDOWS, identity())
    return tmp_path / "cache"


def expected() -> list[CachedWindow]:
    """The windows as half-step rounding leaves them."""
    encoding = Encoding(vocab_size=50, k=8)
    return [
        decode_window(
            encode_window(window, encoding),
            encoding,
            window_id=window.id,
            document=window.document,
            prompt_tokens=window.prompt_tokens,
        )
        for window in WINDOWS
    ]


def test_windows_come_back_in_corpus_order_across_shards(directory: Path) -> None:
    cache = open_cache(directory)
    assert len(cache) == 11
    assert len(cache.manifest.shards) == 6
    assert all(same(cache[number], window) for number, window in enumerate(expected()))
    np.testing.assert_array_equal(cache.lengths, [len(window.tokens) for window in WINDOWS])
    assert cache.lengths.dtype == np.int32
    assert [f"{number:016x}" for number in cache.window_ids] == [window.id for window in WINDOWS]


@pytest.mark.parametrize(
    ("vocab", "k", "directions", "even"),
    [(50, 8, 0, False), (300, 8, 6, False), (300, 40, 6, False), (300, 64, 0, True)],
)
def test_many_at_once_are_the_same_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vocab: int, k: int, directions: int, even: bool
) -> None:
    """Windows of one position and of many, in any order and company, twice in one batch, in groups or all in one."""
    rng = np.random.default_rng(k)
    shapes = [(int(positions), float(scale)) for positions in (1, 2, 30) for scale in (0.5, 3, 40)]
    windows = [
        record(rng, positions=positions, vocab=vocab, k=k, scale=scale, directions=directions, document=f"{number}",
               sizes_P=np.full(positions, k) if even else None)
        for number, (positions, scale) in enumerate(shapes)
    ]  # fmt: skip
    write_cache(tmp_path / "cache", windows, identity(vocab=vocab, k=k, directions=directions))
    cache = open_cache(tmp_path / "cache")
    alone = [cache[number] for number in range(len(cache))]
    assert cache.read([]) == []
    for at_once in (1, 25, 10**6):
        monkeypatch.setattr(reader_module, "AT_ONCE", at_once)
        for batch in (range(9), rng.permutation(9).tolist(), [4, 4, 0], [7]):
            assert all(same(found, alone[number]) for found, number in zip(cache.read(batch), batch, strict=True))


def test_many_at_once_name_the_one_that_is_damaged(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its bytes, and by what they say where its checksum was made to fit."""
    cache = open_cache(directory)
    shard = cache._shards[2]
    shard.index.checksum[1] ^= 1
    with pytest.raises(RunError, match=f"window {shard.index.id_of(1)}: .* checksum"):
        cache.read(range(11))
    shard.index.checksum[1] ^= 1
    shard.index.entry_count[0] += 1
    with pytest.raises(RunError, match=f"window {shard.index.id_of(0)}: .*head sizes do not add up"):
        cache.read(range(11))
    with pytest.raises(IndexError):
        cache.read([0, 11])


@pytest.mark.parametrize("number", [-1, 11, 10**9])
def test_no_such_window(directory: Path, number: int) -> None:
    with pytest.raises(IndexError):
        open_cache(directory)[number]


def test_eight_threads_read_the_same(directory: Path) -> None:
    cache, order = open_cache(directory), np.random.default_rng(0).integers(0, 11, 800).tolist()
    truth = expected()
    with ThreadPoolExecutor(8) as pool:
        for number, window in zip(order, pool.map(cache.__getitem__, order), strict=True):
            assert same(window, truth[number])


def test_threads_with_fewer_open_files_than_shards(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "MAX_OPEN_FILES", 2)
    test_eight_threads_read_the_same(directory)


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_open_files_are_bounded_and_closed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = open_files()
    monkeypatch.setattr(reader_module, "MAX_OPEN_FILES", 2)
    cache = open_cache(directory)
    assert open_files() == before, "nothing is open before something is read"
    for number in range(11):
        cache[number]
    assert open_files() == before + 2
    for _ in range(20):
        open_cache(directory)[0]
    del cache
    assert open_files() == before


def work(cache: Cache, numbers: list[int], answers: object) -> None:
    """What a DataLoader's worker does."""
    answers.put([(number, cache[number]) for number in numbers])  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_workers_read_the_same(directory: Path, method: str) -> None:
    cache, context = open_cache(directory), multiprocessing.get_context(method)
    cache[0]  # open before the fork: descriptors are shared, positions are not, since pread has none
    answers = context.Queue()
    workers = [context.Process(target=work, args=(cache, list(range(11)), answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [row for _ in workers for row in answers.get(timeout=60)]
    for worker in workers:
        worker.join()
    truth = expected()
    assert len(found) == 22
    assert all(same(window, truth[number]) for number, window in found)


def test_pickled_cache_survives_another_working_directory(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(directory.parent)
    packed = pickle.dumps(open_cache(Path("cache")))
    monkeypatch.chdir("/")
    cache = pickle.loads(packed)
    assert same(cache[10], expected()[10])


def test_sealed_read_only_directory(directory: Path) -> None:
    from cache.verify import verify

    paths = [directory, *directory.rglob("*")]
    before = {path: path.stat().st_mtime_ns for path in paths}
    for path in reversed(paths):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert same(open_cache(directory)[4], expected()[4])
        assert verify(directory, "deep") == []
        assert before == {path: path.stat().st_mtime_ns for path in [directory, *directory.rglob("*")]}
    finally:
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


def test_errors_survive_the_way_out_of_a_worker(directory: Path) -> None:
    from shared.errors import RunError

    cache = open_cache(directory)
    os.truncate(directory / cache.manifest.shards[0].name, 3000)
    with pytest.raises(RunError) as caught:
        cache[0]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
