"""Which windows a student sees and when: the same order for every worker, rank and resumed run; nothing skipped is read."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from student_cache import Crash, crash_after, make_cache, make_config, make_windows
from torch.utils.data import BatchSampler, DataLoader

from cache.manifest import read_manifest
from cache.order import epoch_order
from cache.reader import Cache, open_cache
from shared.errors import RunError
from stage2_student import __main__ as command_line
from stage2_student.batch import CachedWindows, Collate, split_by_hash
from stage2_student.config import TrainConfig
from stage2_student.data import EpochOrder, shards_of
from stage2_student.train import train
from stage2_student.trainer import DistillationTrainer

BATCH = 4


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """44 windows in 9 shards, and a validation cache."""
    folder = tmp_path_factory.mktemp("caches")
    make_cache(folder / "cache", make_windows(44, seed=3), windows_per_shard=5)
    make_cache(folder / "validation", make_windows(8, seed=4))
    return folder


def order_of(cache: Cache, epoch: int, live_shards: int, seed: int = 0) -> list[str]:
    """Window ids in the order that cache/order.py gives."""
    shard_N = shards_of(CachedWindows(cache))
    order = epoch_order(shard_N, seed=seed, epoch=epoch, live_shards=live_shards)
    return [f"{int(number):016x}" for number in cache.window_ids[order]]


def test_shard_numbers_follow_the_windows_of_a_side(caches: Path) -> None:
    cache = open_cache(caches / "cache")
    kept, _ = split_by_hash(cache, 0.3)
    assert shards_of(CachedWindows(cache, kept)).tolist() == [int(number) // 5 for number in kept]


@pytest.mark.parametrize(("workers", "method"), [(0, None), (1, "fork"), (2, "fork"), (2, "spawn")])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_any_number_of_workers_gives_the_same_order(caches: Path, workers: int, method: str | None) -> None:
    cache = open_cache(caches / "cache")
    cache[0]  # open before the fork
    data = CachedWindows(cache)
    order = EpochOrder(shards_of(data), seed=0, live_shards=3)
    loader: DataLoader[Any] = DataLoader(
        data, BATCH, sampler=order, num_workers=workers, multiprocessing_context=method, collate_fn=Collate(False, 0)
    )
    for epoch in (1,) if method == "spawn" else (0, 1):  # each pass starts processes that import torch
        order.set_epoch(epoch)
        assert [name for batch in loader for name in batch["window_ids"]] == order_of(cache, epoch, 3)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_any_number_of_ranks_gives_the_same_order(ranks: int) -> None:
    """Each rank computes the order by itself; what they take at one step, side by side, is the one global order."""
    shard_N = np.repeat(np.arange(8), 16)
    truth = epoch_order(shard_N, seed=5, epoch=2, live_shards=3).tolist()
    per_rank = []
    for rank in range(ranks):
        torch.manual_seed(rank)
        order = EpochOrder(shard_N, seed=5, live_shards=3)
        order.set_epoch(2)
        per_rank.append(list(BatchSamplerShard(BatchSampler(order, BATCH, False), ranks, rank)))
    found = [number for step in zip(*per_rank, strict=True) for batch in step for number in batch]
    assert found == truth


def watch_windows(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """(ids that were trained on, ids that were read from the cache), as they come."""
    trained: list[str] = []
    read: list[str] = []
    real_terms, real_read = DistillationTrainer.terms, Cache.read

    def terms(self: Any, batch: dict[str, Any], *, scoring: bool) -> Any:
        if not scoring:
            trained.extend(batch["window_ids"])
        return real_terms(self, batch, scoring=scoring)

    def get(self: Cache, numbers: list[int]) -> Any:
        windows = real_read(self, numbers)
        if self.directory.name == "cache":
            read.extend(window.id for window in windows)
        return windows

    monkeypatch.setattr(DistillationTrainer, "terms", terms)
    monkeypatch.setattr(Cache, "read", get)
    return trained, read


@pytest.mark.parametrize("live_shards", [2, 64])
def test_training_follows_the_order_of_its_seed(
    config: Callable[..., TrainConfig], caches: Path, monkeypatch: pytest.MonkeyPatch, live_shards: int
) -> None:
    trained, _ = watch_windows(monkeypatch)
    train(config(epochs=2, seed=3, shuffle_shards=live_shards))
    cache = open_cache(caches / "cache")
    assert trained == order_of(cache, 0, live_shards, 3) + order_of(cache, 1, live_shards, 3)


@pytest.mark.parametrize(("rows", "done"), [(4, 4), (5, 8)])
def test_a_killed_run_goes_on_with_the_next_window_and_reads_none_before(
    config: Callable[..., TrainConfig], caches: Path, monkeypatch: pytest.MonkeyPatch, rows: int, done: int
) -> None:
    """Checkpoints at steps 4 and 8 of 12; an epoch has 6 of at most 8 windows. Killed in the first epoch and in the second."""
    settings = config(epochs=2, save_every=4, eval_every=100, shuffle_shards=2)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, rows)
        train(settings)
    assert [path.name for path in (settings.out / "checkpoints").iterdir()] == [f"checkpoint-{done}"]
    trained, read = watch_windows(monkeypatch)
    train(settings)
    cache = open_cache(caches / "cache")
    whole = order_of(cache, 0, 2) + order_of(cache, 1, 2)
    consumed = 44 * (done // 6) + 8 * (done % 6)
    assert trained == whole[consumed:]
    assert read == trained, "what the checkpoint had seen is not decoded again"


# Errors on their way out of the processes that read


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_chunk_is_one_line_whoever_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    folder = make_cache(tmp_path / "cache", make_windows(44, seed=3), windows_per_shard=5)
    cache = open_cache(folder)
    index, shard = cache._shards[4].index, folder / read_manifest(folder).shards[4].name
    raw = bytearray(shard.read_bytes())
    raw[int(index.offset[2]) + 10] ^= 1
    shard.write_bytes(raw)
    make_config(tmp_path, tmp_path, {"validation": {"fraction": 0.1}, "workers": workers})
    monkeypatch.setattr(sys, "argv", ["stage2-student", "train", str(tmp_path / "train.yaml")])
    with pytest.raises(SystemExit) as caught:
        command_line.main()
    assert caught.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", "Traceback", "  "))]
    assert lines == [
        f"error: shard {shard.name}, window {index.id_of(2)}: expected undamaged bytes, got a checksum that does not fit; "
        f"run `python -m cache verify {folder}` and get the shards it names again"
    ]


def test_a_killed_reading_process_is_one_sentence_and_the_run_goes_on(
    config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, parent = config(workers=1, save_every=2, out=str(tmp_path / "a")), os.getpid()
    real = Collate.__call__

    def killed(self: Collate, windows: Any) -> Any:
        if os.getpid() != parent and list(settings.out.glob("checkpoints/checkpoint-[468]")):
            os.kill(os.getpid(), signal.SIGKILL)  # what the kernel does when memory runs out
        return real(self, windows)

    with monkeypatch.context() as patch, pytest.raises(RunError) as caught:
        patch.setattr(Collate, "__call__", killed)
        train(settings)
    assert str(caught.value).startswith("reading the cache: expected its processes to live, got DataLoader worker (pid")
    assert str(caught.value).endswith(
        "set fewer workers (0 reads in the training process) and run the same command again, it goes on"
    )
    assert train(settings)["status"] == "finished"
