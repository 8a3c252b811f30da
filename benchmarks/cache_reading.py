"""How quickly one thread reads a cache, what a random window costs against a sequential one, and where the bytes lie.

    python benchmarks/cache_reading.py                    a synthetic cache, k = 64, vocabulary 49,152, 512-token windows
    python benchmarks/cache_reading.py --cache DIR        a real one

Reads batches through `open_cache(DIR).read`, as a student's DataLoader does, so checksums, range checks and dequantisation
are in the figure. Seconds are CPU seconds of the one thread, best of five passes with the file in the page cache: what is
measured is decoding, not the disk. Beside them stands what reading, checking and decompressing the same bytes cost alone.
Not for training speed (benchmarks/stage2_step.py).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cache.encoding import Encoding, encode_window
from cache.frames import compress, decompress, new_compressor
from cache.manifest import Identity, Selection, Teacher
from cache.reader import Cache, open_cache
from cache.record import CachedWindow
from cache.tail import NODES
from cache.writer import PROGRESS_FOLDER, writing
from shared.tokenizer import TokenizerFingerprint

VOCAB, K, TOKENS = 49_152, 64, 512
BATCH = 8  # windows, as a student asks for them
SECTIONS = (
    "head sizes, ranks of tokens",
    "values",
    "ids, first bytes",
    "tail mass, coordinates: high parts",
    "noise of all",
)


def synthetic(directory: Path, windows: int, shards: int = 1) -> Path:
    """A cache of `windows` windows in equal shards: 64 ids a position, next tokens drawn from what it says."""
    teacher = Teacher(
        id="synthetic", revision=None, weights="", architecture="", parameters=1, dtype="", quantisation=None
    )
    print_ = TokenizerFingerprint(
        size=VOCAB, vocab_sha256="", bos=None, eos=None, pad=None, unk=None, special={}, probe_sha256=""
    )
    plan = Identity(
        teacher=teacher,
        tokenizer=print_,
        corpus={},
        windows={},
        selection=Selection(k=K, top_p=1.0),
        encoding=Encoding(vocab_size=VOCAB, k=K),
        windows_per_shard=windows // shards,
    )
    rng = np.random.default_rng(0)
    with writing(directory, plan) as writer:
        for shard, numbers in enumerate(np.split(np.arange(windows), shards)):
            writer.seal(shard, [_window(rng, int(number)) for number in numbers], {})
        folder = directory / PROGRESS_FOLDER / "tokenizer"
        folder.mkdir()
        writer.finish(folder, counts={}, fidelity=(), teacher_loss=0.0, made_with={})
    return directory


def _window(rng: np.random.Generator, number: int) -> CachedWindow:
    positions = TOKENS - 1
    ids_PK = np.argsort(rng.random((positions, 4 * K)), axis=1)[:, :K] * rng.integers(
        1, VOCAB // (4 * K), (positions, 1)
    )
    values_PK = -np.cumsum(rng.exponential(0.12, (positions, K)), axis=1)
    one_P1 = -rng.uniform(1, 4, (positions, 1))
    values_PK += np.log1p(-np.exp(one_P1)) - np.log(np.exp(values_PK).sum(axis=1, keepdims=True))
    tail_PN = np.log(VOCAB - K) * (1 - np.array(NODES)) + np.array(NODES) * one_P1
    rank_P = (np.exp(values_PK).cumsum(axis=1) < rng.random((positions, 1))).sum(
        axis=1
    )  # K: the next token is in the tail
    row_P, place_P = np.arange(positions), rank_P.clip(max=K - 1)
    next_P = np.where(rank_P < K, ids_PK[row_P, place_P], rng.integers(0, VOCAB, positions))
    gold_P = np.where(rank_P < K, values_PK[row_P, place_P], rng.uniform(-12, -9, positions))
    return CachedWindow(
        id=f"{number:016x}",
        document=f"document {number}",
        prompt_tokens=0,
        tokens=np.concatenate([[0], next_P]).astype(np.int32),
        head_sizes_P=np.full(positions, K, np.int32),
        head_ids_E=ids_PK.ravel().astype(np.int32),
        head_logprobs_E=values_PK.ravel().astype(np.float32),
        tail_PN=tail_PN.astype(np.float32),
        gold_P=gold_P.astype(np.float32),
        coords_PR=np.zeros((positions, 0), np.float32),
    )


def rate(cache: Cache, order: list[int], batch: int = BATCH, passes: int = 5) -> float:
    """Tokens a CPU second of one thread, best of `passes`; `batch` windows a call."""
    tokens, best = int(cache.lengths[order].sum()), 0.0
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    for _ in range(passes):
        start = time.thread_time()
        for numbers in batches:
            cache.read(numbers)
        best = max(best, tokens / (time.thread_time() - start))
    return best


def floors(cache: Cache, passes: int = 5) -> dict[str, float]:
    """Microseconds a window (CPU, best of `passes`) of what no reader of these bytes can leave out, each alone."""
    shards, zstd = cache._shards, zstandard.ZstdDecompressor()
    places = [(shard, number) for shard in shards for number in range(len(shard.index))]
    frames = [(shard._frame(number), shard.index.padded) for shard, number in places]

    def pread() -> None:
        for shard, number in places:
            assert shard._file is not None, "opened by the frames above"
            os.pread(shard._file.number, int(shard.index.size[number]), int(shard.index.offset[number]))

    def crc() -> None:
        for frame, _ in frames:
            zlib.crc32(frame)

    def decode() -> None:
        for frame, padded in frames:
            decompress(frame, padded, zstd)

    found = {}
    for name, work in {"pread alone": pread, "CRC-32 alone": crc, "zstd alone": decode}.items():
        spent = []
        for _ in range(passes):
            start = time.thread_time()
            work()
            spent.append(time.thread_time() - start)
        found[name] = 1e6 * min(spent) / len(places)
    return found


def bytes_by_part(cache: Cache) -> dict[str, float]:
    """Bytes a token of every section of a window, as its blocks take them; the rest is index, HDF5's own structure, padding."""
    tokens, encoding, compressor = int(cache.lengths.sum()), cache.manifest.identity.encoding, new_compressor()
    found = np.zeros(len(SECTIONS))
    for shard in cache._shards:
        for number in range(len(shard.index)):
            sections = encode_window(
                shard.read(number), encoding, shard._prior
            ).sections  # a fixed point: the same bytes
            found += compress(sections, shard.index.padded, compressor)[1][: len(SECTIONS)]
    parts = {name: float(count) / tokens for name, count in zip(SECTIONS, found, strict=True)}
    shards, shape = cache.manifest.total("bytes") / tokens, cache.manifest.identity.shape
    parts["index and overhead"] = shards - sum(parts.values())
    parts["basis (once a cache)"] = shape.bytes / tokens if shape else 0.0
    return {**parts, "together": sum(parts.values())}


def measure(directory: Path) -> dict[str, float]:
    """All figures of one cache."""
    cache = open_cache(directory)
    order = list(range(len(cache)))
    start = time.perf_counter()
    open_cache(directory)
    opened = time.perf_counter() - start
    shuffled = [int(number) for number in np.random.default_rng(1).permutation(len(cache))]
    rate(cache, shuffled, passes=10)  # until the allocator has learnt these sizes: the first passes fault every page in
    sequential, random = rate(cache, order), rate(cache, shuffled)
    return {
        "windows": len(cache),
        "tokens": int(cache.lengths.sum()),
        "open, ms": 1000 * opened,
        "sequential, tokens/s": sequential,
        "random, tokens/s": random,
        "sequential / random": sequential / random,
        "random, one window a call, tokens/s": rate(cache, shuffled, batch=1),
        "sequential, us a window": 1e6 * float(cache.lengths.mean()) / sequential,
        **{f"of these, {name}": value for name, value in floors(cache).items()},
        **{f"bytes a token, {name}": value for name, value in bytes_by_part(cache).items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, help="a finished cache; without it a synthetic one is made and removed")
    parser.add_argument("--windows", type=int, default=200, help="of the synthetic cache")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(options.cache or synthetic(Path(scratch) / "cache", options.windows))
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<52}{value:>14,.2f}" if value % 1 else f"{name:<52}{value:>14,.0f}")


if __name__ == "__main__":
    main()
