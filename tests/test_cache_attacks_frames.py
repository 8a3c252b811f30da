"""Hostile frames inside a sound shard, one function each. Structure is test_cache_attacks.py's matter."""

from __future__ import annotations

from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import zstandard
from cache_hostile import (
    ENCODING,
    edit,
    refused,
    replaced,
    resealed,
    sections_of,
    with_frame,
    with_sections,
    write_shard,
)
from cache_records import basis_of, records

from cache.columns import encode_columns
from cache.decoding import decode_window
from cache.encoding import Codes, Encoding, encode_window
from cache.packing import full, unpack
from cache.reader import ShardReader
from cache.shard import read_index
from cache.tail_codes import NO_TAIL


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A sound shard of three windows, written so that tests may change it in place."""
    return write_shard(tmp_path)


def length_of(shard: Path) -> int:
    return read_index(shard, ENCODING).padded


def test_zstd_bomb(shard: Path) -> None:
    with_frame(shard, zstandard.ZstdCompressor().compress(bytes(1 << 28))[:100])
    refused(
        shard,
        f"window [0-9a-f]{{16}}: expected undamaged bytes, got zstd frame of 268435456 bytes where the chunk has {length_of(shard)}",
    )


def test_frame_that_lies_about_its_size(shard: Path) -> None:
    frame = bytearray(zstandard.ZstdCompressor().compress(bytes(250)))
    assert frame[5] == 250, "the content size of a small frame is one byte"
    frame[5] = length_of(shard)
    with_frame(shard, bytes(frame))
    refused(shard, "zstd frame damaged")


def test_frame_without_a_size(shard: Path) -> None:
    with_frame(shard, zstandard.ZstdCompressor(write_content_size=False).compress(bytes(length_of(shard))))
    refused(shard, "got zstd frame of")


def test_two_frames_in_one_chunk(shard: Path) -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(length_of(shard)))
    with_frame(shard, frame + frame)
    refused(shard, "zstd frame damaged")


def test_frame_that_skipped_its_filters(shard: Path) -> None:
    with_frame(shard, bytes(length_of(shard)), mask=1)
    refused(shard, "expected every chunk of '/records' whole")


def test_chunk_far_longer_than_its_content(shard: Path) -> None:
    with_frame(shard, bytes(1000))
    refused(shard, "expected every chunk of '/records' whole")


def test_missing_chunk(shard: Path) -> None:
    zstd, length = hdf5plugin.Zstd(clevel=1), length_of(shard)
    replaced(shard, "records", shape=(3, length), chunks=(1, length), dtype="u1", **zstd)
    refused(shard, "expected every chunk of '/records' whole|Error iterating over|no chunk")


def test_sound_sections_are_read(shard: Path) -> None:
    with_sections(shard, sections_of())
    assert ShardReader(read_index(shard, ENCODING)).read(1).document == "document 1"


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("heads", 0, 255, "head sizes outside 1..8"),
        ("heads", 0, 8, "a token at a rank its head does not have"),  # a head of one id, rank 8
        ("ids", 0, 1, "token id outside the vocabulary of 50"),  # 256 and more
    ],
)
def test_numbers_outside_their_range(shard: Path, name: str, place: int, value: int, message: str) -> None:
    sections = sections_of()
    sections[name][place] = value
    with_sections(shard, sections)
    refused(shard, message)


def test_head_sizes_that_do_not_add_up(shard: Path) -> None:
    sections = sections_of()
    size, rank = divmod(int(sections["heads"][0]), 9)
    sections["heads"][0] = (7 if size < 7 else 6) * 9 + rank
    with_sections(shard, sections)
    refused(shard, "head sizes do not add up|at a rank its head")


def test_a_missed_token_that_its_head_holds(shard: Path) -> None:
    sections = sections_of()
    hit = np.flatnonzero(sections["heads"] % 9)[0] if (sections["heads"] % 9).any() else None
    assert hit is None, "in this sample no next token is in its head"
    window = ShardReader(read_index(shard, ENCODING)).read(1)
    lows = bytes((window.tokens[:6] & 255).tolist())  # of ids: token 0, five missed ones, then heads
    low = sections["rest"].astype(np.uint8).tobytes().index(lows)
    sections["rest"][low + 1] = window.head_ids_E[0]
    with_sections(shard, sections)
    refused(shard, "a token said to be outside the head that is in it")


def test_bytes_behind_the_end(shard: Path) -> None:
    sections = sections_of()
    assert sum(map(len, sections.values())) < length_of(shard), "another window is longer"
    with_sections(shard, sections | {"more": np.ones(1)})
    refused(shard, "bytes behind its end")


def test_fewer_bytes_than_the_numbers_ask_for(shard: Path) -> None:
    """Full symbols without leftovers."""
    sections = sections_of()
    sections["pairs"][:] = 255
    with_sections(shard, sections)
    refused(shard, "fewer bytes than its own numbers ask for")


def test_log_probabilities_below_the_smallest(shard: Path) -> None:
    """Gaps are bytes and leftovers, so only many large ones reach it; here in memory, where there is room for them."""
    encoding = Encoding(vocab_size=300, k=255)
    window = records(1, positions=1, vocab=300, k=255, sizes_P=np.array([255]))[0]
    codes = encode_window(window, encoding)
    heads, gaps, ids, pairs, rest = codes.sections
    raw = (heads, np.full_like(gaps, 255), ids, pairs, np.concatenate([rest, np.full(2 * len(gaps), 255, np.uint8)]))
    with pytest.raises(ValueError, match="log-probabilities below the smallest"):
        decode_window(Codes(1, 255, raw), encoding, window_id="", document="", prompt_tokens=0)


def test_rising_log_probabilities_cannot_be_written_down(shard: Path) -> None:
    """Values are stored as unsigned distances downwards: whatever the bytes are, what is read falls."""
    sections = sections_of()
    sections["gaps"][:] = np.random.default_rng(0).integers(0, 255, len(sections["gaps"]))
    with_sections(shard, sections)
    read = ShardReader(read_index(shard, ENCODING)).read(1)
    steps_E = np.diff(read.head_logprobs_E)
    starts_P = np.cumsum(read.head_sizes_P)[:-1]
    assert np.delete(steps_E, starts_P - 1).max() <= 0
    assert read.head_logprobs_E.max() <= 0
    assert np.isfinite(read.head_logprobs_E).all()


def test_a_best_entry_above_certainty_is_refused() -> None:
    encoding = Encoding(vocab_size=50, k=16)
    window = records(1, positions=1, k=16)[0]
    heads, gaps, ids, pairs, rest = encode_window(window, encoding).sections
    order = [0, 1, 2, 3, 4, 8, 7, 6, 5]  # nine columns, the best entry's is the last one
    symbols = np.concatenate([pairs >> 4, pairs & 15])[:9]
    symbols[order.index(8)] = 1  # signed: -1
    pairs = (symbols[:5] << 4 | np.append(symbols[5:], 0)).astype(np.uint8)
    with pytest.raises(ValueError, match="a probability above 1"):
        decode_window(
            Codes(1, len(window.head_ids_E), (heads, gaps, ids, pairs, rest)), encoding,
            window_id="", document="", prompt_tokens=0,
        )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_no_number_can_be_written_down_that_is_not_one(seed: int) -> None:
    """Residuals build on each other: whatever the bytes are, f is finite, or -inf at every node at once; so are coordinates."""
    encoding = Encoding(vocab_size=50, k=8, directions=5, wide=(3, 1))
    prior, rng, layout = basis_of(50, 5).prior, np.random.default_rng(seed), encoding.columns
    window = records(1, positions=5, directions=5)[0]
    heads, gaps, ids, pairs, rest = encode_window(window, encoding, prior).sections
    old_over = full(unpack(pairs, 4, 5 * len(layout.low_C)), 4)
    values_CP = rng.integers(-32_768, 32_768, (len(layout.low_C), 5)).astype(np.int32)
    values_CP[0, 2] = NO_TAIL
    pairs, low, over = encode_columns(values_CP, layout)
    kept = rest[len(low) : len(rest) - 2 * old_over]
    rest = np.concatenate([low, kept, over.astype("<u2").view(np.uint8)])
    codes = Codes(5, len(window.head_ids_E), (heads, gaps, ids, pairs, rest))
    found = decode_window(codes, encoding, prior, window_id="", document="", prompt_tokens=0)
    assert not np.isnan(found.tail_PN).any() and not np.isposinf(found.tail_PN).any()
    assert np.isneginf(found.tail_PN).all(axis=1).tolist() == [False, False, True, False, False]
    assert np.isneginf(found.tail_PN).any(axis=1).tolist() == [False, False, True, False, False]
    assert np.isfinite(found.coords_PR).all() and np.isfinite(found.head_logprobs_E).all()
    expected_PR = prior.coordinates(window.tokens[:-1], found.head_ids_E[np.cumsum([0, *found.head_sizes_P[:-1]])])
    np.testing.assert_allclose(found.coords_PR - expected_PR, values_CP[2:7].T * encoding.coord_step, rtol=1e-3)


def test_frames_of_another_window(shard: Path) -> None:
    """Whole frames in the wrong place: the window's own checksum tells."""

    def change(file: h5py.File) -> None:
        frames = [file["records"].id.read_direct_chunk((row, 0))[1] for row in (0, 1)]
        for row, frame in zip((1, 0), frames, strict=True):
            file["records"].id.write_direct_chunk((row, 0), frame)

    edit(shard, change)
    refused(shard, "window [0-9a-f]{16}: expected undamaged bytes, got a checksum that does not fit")
    resealed(shard)
    refused(shard, "got a checksum that does not fit")
