"""FORMAT.md is enough: a reader written from it alone, with none of our code, sees what ours sees. And its facts, pinned."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin  # noqa: F401 (registers zstd with HDF5)
import numpy as np
import pytest
from cache_records import identity, records, write_cache

from cache import structure
from cache.basis import read_basis
from cache.reader import open_cache
from cache.shard import read_index

PAGE = (Path(structure.__file__).parent / "FORMAT.md").read_text()


# The independent reader begins


def signed(codes: Any) -> Any:
    return np.where(codes % 2, -(codes + 1) // 2, codes // 2)


def taker(raw: Any) -> Any:
    def take(count: int, bits: int = 8) -> Any:
        part = np.frombuffer(file.read(-(-count * bits // 8)), np.uint8)
        if bits == 1:
            return np.unpackbits(part)[:count].astype(int)
        return np.concatenate([part >> shift & 2**bits - 1 for shift in range(8 - bits, -1, -bits)])[:count].astype(int)

    file = io.BytesIO(raw.tobytes())
    return take


def whole(take: Any, codes: Any, top: int = 255) -> Any:
    codes[codes == top] += take(2 * (codes == top).sum()).reshape(-1, 2) @ [1, 256]
    return codes


def independent_window(directory: Path, number: int, page: str) -> dict[str, Any]:
    identity = json.loads((directory / "manifest.json").read_text())["identity"]
    enc, table = (
        identity["encoding"],
        [np.array(row.split()[1:], float) for row in page.split("C_i5\n")[1].split("\n")[:7]],
    )
    k, vocab, r, base = enc["k"], enc["vocab_size"], enc["directions"], 64 if identity["shape"] else 0
    order, weights, shares, scale = np.arange(vocab), np.zeros((0, 0)), np.zeros((1, vocab)), np.ones(1)
    if identity["shape"]:
        order, weights, shares, scale = independent_basis(directory, r, vocab)
    place, number = divmod(number, identity["windows_per_shard"])
    with h5py.File(sorted(directory.glob("*.h5"))[place]) as file:
        found = {name: file[name][number] for name in ("window_id", "document", "prompt_tokens")}
        p, e, take = (
            int(file["token_count"][number]) - 1,
            int(file["entry_count"][number]),
            taker(file["records"][number]),
        )
    sizes, ranks = np.divmod(take(p), k + 1) if k < 16 else take(2 * p).reshape(2, p)
    missed, starts, sizes = np.flatnonzero(ranks == 0), np.cumsum(sizes + 1) - sizes - 1, sizes + 1
    gaps, ids, columns, bits = (
        take(e - p),
        take(1 + len(missed) + e),
        r + 8 + (k >= 16),
        np.array([5, 4] + [0] * (r + 6) + [4] * (k >= 16)),
    )
    bits[2 : r + 2] = (np.arange(r) < np.array([*enc["wide"], 0])[:, None]).sum(0)
    high, large, numbers = take(columns * p, 4), np.flatnonzero(ids >= base), np.zeros((columns, p), int)
    for width in (8, 4, 2, 1):
        cut = np.flatnonzero(bits & width)
        numbers[cut] += take(len(cut) * p, width).reshape(-1, p) << (bits[cut] & -2 * width)[:, None]
    y = next(y for y in range(8, 32) if base + (vocab - 1 - base >> y) <= 255)
    ids[large] = base + (ids[large] - base << y) + take(len(large))
    ids[large] += 2 ** np.arange(8, y) @ take(len(large) * (y - 8), 1).reshape(y - 8, len(large))
    gold, half, high = take(len(missed)), (columns + 1) // 2, signed(whole(take, high, 15)).reshape(columns, p)
    order_C = [*range(half), *range(columns - 1, half - 1, -1)]
    numbers[order_C] += high << bits[order_C, None]
    steps, first, ids = np.zeros(e, int), np.isin(np.arange(e), starts), order[ids]
    steps[~first], gold, head = whole(take, gaps), whole(take, gold), np.zeros(e, int)
    head[first], head[~first] = np.split(ids[1 + len(missed) :], [p])
    found["tokens"] = np.concatenate([ids[:1], head[starts + np.maximum(ranks, 1) - 1]])
    found["tokens"][1 + missed], odds = ids[1 : 1 + len(missed)], numbers[0] * enc["odds_step"]
    below = [np.cumsum(part) * enc["value_step"] for part in np.split(steps, starts[1:])]
    empty, f0 = numbers[0] == -32768, np.log(np.maximum(vocab - sizes, 1))
    mass, f1 = np.where(empty, 0, -np.log1p(np.exp(odds))), -np.log1p(np.exp(-odds.clip(-700)))
    best = -numbers[-1] * enc["value_step"] if k >= 16 else mass - [np.log(np.exp(-c).sum()) for c in below]
    logprobs = np.concatenate([top - c for top, c in zip(best, below, strict=True)])
    found["gold"] = logprobs[starts + np.maximum(ranks, 1) - 1]
    found["gold"][missed] = logprobs[starts[missed] + sizes[missed] - 1] - gold * enc["value_step"]
    nodes, gaps = [1.45, 1.15, 0.85, 0.7, 0.55, 0.4, 0.25], np.zeros((7, p))
    for i, residual in enumerate(np.vstack([numbers[1:2], numbers[r + 2 : r + 8]]) * enc["gap_step"]):
        gaps[i] = residual + table[i][0] + table[i][1] * (f1 - f0) + table[i][2:] @ gaps[:i]
    f = {x: f0 + x * (f1 - f0) + np.sign(x - 1) * gap for x, gap in zip(nodes, gaps, strict=True)} | {1.0: f1}
    found["tail"] = np.where(empty[:, None], -np.inf, np.stack([f[node] for node in enc["nodes"]], 1))
    known = np.concatenate([shares[1:, found["tokens"][:-1]], shares[1:, head[starts]]])
    found["coords"] = (numbers[2 : r + 2] * enc["coord_step"] + weights @ known / 128 / scale[1:, None]).T
    return found | {"sizes": sizes, "ids": head, "logprobs": logprobs, "basis": shares * scale[:, None]}


def independent_basis(directory: Path, r: int, vocab: int) -> tuple[Any, Any, Any, Any]:
    with h5py.File(directory / "basis.h5") as file:
        take = taker(file["stream"][:])
    classes, scale = take(vocab), take(4 * r + 4).astype("u1").view("<f4")
    weights, counts = signed(whole(take, take(2 * r * r))).reshape(r, 2 * r), np.unique(-classes, return_counts=True)[1]
    centres, order = signed(whole(take, take((r + 1) * len(counts)))), np.argsort(-classes, kind="stable")
    groups = np.repeat(take(centres.size).reshape(r + 1, -1), counts, axis=1)
    entries = np.repeat(centres.reshape(r + 1, -1) / 8, counts, axis=1)
    for group in np.unique(groups[groups > 0]):
        bits, low = 1 if group <= 12 else 2 if group <= 14 else 4, max(0, (group - 17) // 2) if group > 14 else 0
        high, count = take((groups == group).sum(), bits), (groups == group).sum()
        if bits < 4:
            high[high == 2**bits - 1] += whole(take, take((high == 2**bits - 1).sum(), 4), 15)
        else:
            whole(take, high, 15)
        entries[groups == group] += signed(high) * 2**low + 2 ** np.arange(low) @ take(low * count, 1).reshape(
            low, count
        )
    return order, weights, entries[:, np.argsort(order)] * 4 * 2.0 ** (classes / -2), scale


# The independent reader ends


def test_the_independent_reader_is_short_and_imports_nothing_of_ours() -> None:
    text = (
        Path(__file__)
        .read_text()
        .split("# The independent reader begins\n")[1]
        .split("# The independent reader ends")[0]
    )
    lines = [len([line for line in part.splitlines() if line.strip()]) for part in text.split("def independent_basis")]
    assert lines[0] <= 70 and lines[1] <= 24
    assert "cache." not in text


SHAPES = [
    {},
    {"positions": 1},
    {"vocab": 9, "k": 9},
    {"vocab": 66_000, "k": 3, "positions": 4},
    {"vocab": 400, "k": 255, "positions": 7},
    {"vocab": 9, "k": 20, "positions": 7},
    {"vocab": 70_000, "k": 16, "positions": 4, "directions": 2},
    {"scale": 30.0},
    {"directions": 1},
    {"directions": 5},
    {"directions": 8, "vocab": 300},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_readers_see_the_same(tmp_path: Path, shape: dict[str, Any]) -> None:
    plan = identity(vocab=shape.get("vocab", 50), k=min(shape.get("k", 8), 255), directions=shape.get("directions", 0))
    windows = records(5, seed=1, **({**shape, "k": plan.encoding.k}))
    write_cache(tmp_path / "cache", windows, plan)
    cache = open_cache(tmp_path / "cache")
    for number in range(len(windows)):
        ours, theirs = cache[number], independent_window(tmp_path / "cache", number, PAGE)
        assert (f"{theirs['window_id']:016x}", theirs["document"].decode()) == (ours.id, ours.document)
        assert theirs["prompt_tokens"] == ours.prompt_tokens
        for name, array in {"tokens": ours.tokens, "sizes": ours.head_sizes_P, "ids": ours.head_ids_E}.items():
            np.testing.assert_array_equal(theirs[name], array)
        if plan.shape:
            basis = read_basis(cache.directory, plan.shape, plan.encoding.vocab_size)
            assert basis.weights_R2R.any()
            np.testing.assert_allclose(theirs["basis"], np.vstack([basis.mean_V, basis.basis()]), rtol=1e-6)
            np.testing.assert_allclose(theirs["coords"], ours.coords_PR, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(theirs["logprobs"], ours.head_logprobs_E, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(theirs["gold"], ours.gold_P, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(np.float32(theirs["tail"]), ours.tail_PN, rtol=1e-6, atol=1e-5)


def test_manifest_bytes_and_digest(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", records(5))
    raw = (tmp_path / "cache" / "manifest.json").read_text()
    data = json.loads(raw)
    assert raw == json.dumps(data, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"
    digest = data.pop("digest")
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert (data["format"], data["version"]) == ("codestill-cache", 3)
    for shard in data["shards"]:
        content = (tmp_path / "cache" / shard["name"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        assert shard["name"][6:18] == shard["sha256"][:12]
    for entry in data["tokenizer_files"]:
        content = (tmp_path / "cache" / "tokenizer" / entry["name"]).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    manifest = write_cache(tmp_path / "cache", records(2, seed=4), identity())
    return tmp_path / "cache" / manifest.shards[0].name


def test_names_types_shapes_and_filters_of_a_shard(shard: Path) -> None:
    with h5py.File(shard) as file:
        assert set(file.attrs) == {"format", "version", "encoding", "summary", "index_sha256"}
        assert file.attrs["format"] == b"codestill-shard"
        assert (file.attrs["version"], file.attrs["version"].dtype) == (3, np.dtype("<u4"))
        index = {
            "window_id": "<u8",
            "token_count": "<u4",
            "entry_count": "<u4",
            "prompt_tokens": "<u4",
            "checksum": "<u4",
        }
        assert {name: file[name].dtype for name in index} == {name: np.dtype(kind) for name, kind in index.items()}
        assert file["document"].dtype.kind == "S"
        assert set(file) == {*index, "document", "records"}
        records = file["records"]
        assert (records.dtype, records.chunks) == (np.dtype("u1"), (1, records.shape[1]))
        plist = records.id.get_create_plist()
        assert [plist.get_filter(place)[0] for place in range(plist.get_nfilters())] == [32015]


def test_file_begins_as_hdf5_with_superblock_3(shard: Path) -> None:
    """Superblock 3 and the object headers that come with it carry checksums, on which the damage tests rest."""
    assert shard.read_bytes()[:9] == b"\x89HDF\r\n\x1a\n\x03"


def test_both_checksums_of_a_shard(shard: Path) -> None:
    with h5py.File(shard) as file:
        for row in range(2):
            assert zlib.crc32(file["records"].id.read_direct_chunk((row, 0))[1]) == file["checksum"][row]
        digest = hashlib.sha256()
        for name in ("encoding", "summary"):
            digest.update(bytes(file.attrs[name]) + b"\0")
        for name in sorted(set(file) - {"records"}):
            digest.update(name.encode() + b"\0" + file[name][...].tobytes())
        assert file.attrs["index_sha256"] == digest.hexdigest().encode()


def test_frames_are_zstd_with_size(shard: Path) -> None:
    import zstandard

    index, raw = read_index(shard), shard.read_bytes()
    offset, size = int(index.offset[0]), int(index.size[0])
    frame = zstandard.get_frame_parameters(raw[offset : offset + size])
    assert (frame.content_size, frame.has_checksum) == (index.padded, False)


def test_padding_is_zero(shard: Path) -> None:
    from cache.encoding import encode_window

    lengths = [sum(map(len, encode_window(window, identity().encoding).sections)) for window in records(2, seed=4)]
    with h5py.File(shard) as file:
        assert file["records"].shape == (2, max(lengths))
        assert min(lengths) < max(lengths), "this sample has a shorter window"
        assert not file["records"][int(np.argmin(lengths))][min(lengths) :].any()


def test_window_id(shard: Path) -> None:
    window = records(2, seed=4)[0]
    raw = window.tokens.astype("<u4").tobytes() + np.uint32(window.prompt_tokens).tobytes()
    with h5py.File(shard) as file:
        assert int(file["window_id"][0]) == int.from_bytes(hashlib.sha256(raw).digest()[:8], "big")


def test_long_document_names_are_cut_at_a_character() -> None:
    from dataclasses import replace

    from cache.encoding import Encoding
    from cache.shard import shard_bytes

    window = replace(records(1)[0], document="é" * 127 + "x€" * 9)
    raw = shard_bytes([window], Encoding(vocab_size=50, k=8), {})
    with h5py.File(io.BytesIO(raw)) as file:
        assert file["document"][0].decode() == "é" * 127 + "x"


@pytest.mark.parametrize(
    "fact", ["32015", "index_sha256", "-32768", "codestill-shard", "codestill-cache", "2^20", "2^25", "2^15"]
)
def test_the_page_states_what_the_code_does(fact: str) -> None:
    from cache.tail_codes import NO_TAIL

    assert fact in PAGE
    assert (structure.MAX_WINDOWS, structure.MAX_CHUNK_BYTES, structure.MAX_ATTRIBUTE_BYTES) == (2**20, 2**25, 2**15)
    assert (structure.ZSTD_FILTER, NO_TAIL) == (32015, -32768)
