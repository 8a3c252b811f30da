"""Cached windows as batches. Not for reading bytes (test_cache_*.py)."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from student_cache import make_cache, make_windows
from torch.utils.data import DataLoader

from cache.reader import open_cache
from cache.record import CachedWindow
from shared.errors import RunError
from stage2_student.batch import CachedWindows, Collate, record_of, require_whole, split_by_hash


@pytest.mark.parametrize("mask_prompt", [False, True])
def test_every_counted_position_keeps_its_own_record(mask_prompt: bool) -> None:
    windows = make_windows(5, seed=1)
    batch = Collate(mask_prompt, pad_id=0)(windows)
    expected = [
        (w, t) for w in windows for t in range(len(w.tokens) - 1) if not mask_prompt or t + 1 >= w.prompt_tokens
    ]
    assert len(batch["targets"]) == len(expected)
    length = batch["input_ids"].shape[1]
    for n, (window, t) in enumerate(expected):
        row, column = divmod(int(batch["counted"][n]), length)
        assert (windows[row].id, column) == (window.id, t)
        assert batch["input_ids"][row, : t + 1].tolist() == window.tokens[: t + 1].tolist()
        assert batch["targets"][n] == window.tokens[t + 1]
        start, size = int(window.head_sizes_P[:t].sum()), int(window.head_sizes_P[t])
        assert batch["head_sizes"][n] == size
        assert batch["head_ids"][n, :size].tolist() == window.head_ids_E[start : start + size].tolist()
        np.testing.assert_array_equal(batch["head_logprobs"][n, :size], window.head_logprobs_E[start : start + size])
        assert (batch["head_logprobs"][n, size:] == -torch.inf).all()
        np.testing.assert_array_equal(batch["tail"][n], window.tail_PN[t])
    assert batch["attention_mask"].sum() == sum(len(window.tokens) - 1 for window in windows)
    assert batch["window_ids"] == [window.id for window in windows]


def test_a_window_that_is_all_prompt_counts_nothing() -> None:
    (window,) = make_windows(1)
    whole = CachedWindow(**{name: getattr(window, name) for name in CachedWindow.__slots__} | {"prompt_tokens": 99})
    batch = Collate(True, 0)([whole])
    assert record_of(batch).targets_N.shape == (0,)
    assert record_of(batch).head_ids_NK.shape == (0, 1)


@pytest.fixture
def cache_folder(tmp_path: Path) -> Path:
    return make_cache(tmp_path / "cache", make_windows(30, seed=2))


def test_split_is_by_id_and_close_to_the_fraction(cache_folder: Path) -> None:
    cache = open_cache(cache_folder)
    training, validation = split_by_hash(cache, 0.3)
    assert sorted([*training, *validation]) == list(range(30))
    assert 3 <= len(validation) <= 15
    held = {cache[int(i)].id for i in validation}
    assert all(int(name, 16) < 0.3 * 2**64 for name in held)
    more = set(split_by_hash(cache, 0.5)[1])
    assert set(validation) <= more  # a larger share only adds


def test_dataset_survives_pickling_and_workers(cache_folder: Path) -> None:
    data = CachedWindows(open_cache(cache_folder), np.array([3, 1, 4]))
    again = pickle.loads(pickle.dumps(data))
    assert [again[i].id for i in range(3)] == [data[i].id for i in range(3)]
    loader = DataLoader(data, batch_size=2, num_workers=1, collate_fn=Collate(False, 0))
    seen = [name for batch in loader for name in batch["window_ids"]]
    assert seen == [data[i].id for i in range(3)]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_window_stops_with_the_caches_own_sentence(cache_folder: Path, workers: int) -> None:
    cache = open_cache(cache_folder)
    shard = next(cache_folder.glob("*.h5"))
    index = cache._shards[0].index
    raw = bytearray(shard.read_bytes())
    raw[int(index.offset[7]) + 10] ^= 1
    shard.write_bytes(raw)
    loader = DataLoader(CachedWindows(cache), batch_size=10, num_workers=workers, collate_fn=Collate(False, 0))
    first = next(iter(loader))
    with pytest.raises(RunError) as caught:
        require_whole(first)
    assert str(caught.value).startswith(f"shard {shard.name}, window {index.id_of(7)}: expected")
    assert "Traceback" not in str(caught.value)
