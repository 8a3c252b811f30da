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

from cache.encoding import encode_window
from cache.reader import open_cache
from cache.shard import read_index

FIELDS = ["tokens", "head_sizes", "head_ids", "head_values", "tail", "gold", "coords"]
ALWAYS = FIELDS[:-1]


# The independent reader begins


def independent_window(directory: Path, number: int) -> dict[str, Any]:
    manifest = json.loads((directory / "manifest.json").read_text())
    enc = manifest["identity"]["encoding"]
    nodes, one = np.array(enc["nodes"]), enc["nodes"].index(1.0)
    for shard in manifest["shards"]:
        if number < shard["windows"]:
            break
        number -= shard["windows"]
    with h5py.File(directory / shard["name"]) as file:
        found = {name: file[name][number] for name in ("window_id", "document", "prompt_tokens")}
        n, entries = int(file["token_count"][number]), int(file["entry_count"][number])
        size = {"tokens": n, "head_ids": entries, "head_values": entries, "tail": len(nodes) * (n - 1)}
        size["coords"] = enc["directions"] * (n - 1)
        codes = {name: file[name][number][: size.get(name, n - 1)] for name in FIELDS if name in file}
    wide = {name: array.astype(int) for name, array in codes.items()}
    ends = np.cumsum(wide["head_sizes"])[:-1]
    values = [np.cumsum(part) for part in np.split(wide["head_values"], ends)]
    gold = wide["gold"].copy()
    for t, ids in enumerate(np.split(wide["head_ids"], ends)):
        if gold[t] == 0:
            gold[t] = values[t][list(ids).index(wide["tokens"][t + 1])]
    tail = wide["tail"].reshape(len(nodes), n - 1).T
    f0 = np.log(np.maximum(enc["vocab_size"] - wide["head_sizes"], 1))[:, None]
    f1 = -tail[:, [one]] * enc["mass_step"]
    f = f0 + nodes * (f1 - f0) + np.where(nodes < 1, -1, 1) * tail * enc["gap_step"]
    f[:, [one]] = f1
    f[tail[:, one] == 65535] = -np.inf
    found |= {"codes": codes, "tail": f, "gold": -gold * enc["value_step"]}
    if enc["directions"]:
        coords = wide["coords"].reshape(enc["directions"], n - 1).T
        found["coords"] = np.where(coords % 2, -(coords + 1) // 2, coords // 2) * enc["coord_step"]
    return found | {"logprobs": -np.concatenate(values) * enc["value_step"]}


# The independent reader ends


def test_the_independent_reader_is_short_and_imports_nothing_of_ours() -> None:
    text = (
        Path(__file__)
        .read_text()
        .split("# The independent reader begins\n")[1]
        .split("# The independent reader ends")[0]
    )
    assert len([line for line in text.splitlines() if line.strip()]) <= 40
    assert "cache." not in text


SHAPES = [
    {},
    {"positions": 1},
    {"vocab": 9, "k": 9},
    {"vocab": 66_000, "k": 3, "positions": 4},
    {"vocab": 400, "k": 300, "positions": 7},
    {"scale": 30.0},
    {"directions": 5},
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_readers_see_the_same(tmp_path: Path, shape: dict[str, Any]) -> None:
    plan = identity(vocab=shape.get("vocab", 50), k=min(shape.get("k", 8), 255), directions=shape.get("directions", 0))
    windows = records(5, seed=1, **({**shape, "k": plan.encoding.k}))
    write_cache(tmp_path / "cache", windows, plan)
    cache = open_cache(tmp_path / "cache")
    for number, written in enumerate(windows):
        ours, theirs = cache[number], independent_window(tmp_path / "cache", number)
        for name, codes in encode_window(written, plan.encoding).items():
            np.testing.assert_array_equal(theirs["codes"][name], codes)
            assert theirs["codes"][name].dtype == codes.dtype
        assert (f"{theirs['window_id']:016x}", theirs["document"].decode()) == (ours.id, ours.document)
        assert theirs["prompt_tokens"] == ours.prompt_tokens
        for name, array in {
            "tokens": ours.tokens,
            "head_sizes": ours.head_sizes_P,
            "head_ids": ours.head_ids_E,
        }.items():
            np.testing.assert_array_equal(theirs["codes"][name], array)
        if plan.encoding.directions:
            np.testing.assert_allclose(theirs["coords"], ours.coords_PR, rtol=1e-6)
        np.testing.assert_array_equal(np.float32(theirs["logprobs"]), ours.head_logprobs_E)
        np.testing.assert_array_equal(np.float32(theirs["gold"]), ours.gold_P)
        np.testing.assert_allclose(np.float32(theirs["tail"]), ours.tail_PN, rtol=1e-6, atol=1e-6)


def test_manifest_bytes_and_digest(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", records(5))
    raw = (tmp_path / "cache" / "manifest.json").read_text()
    data = json.loads(raw)
    assert raw == json.dumps(data, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"
    digest = data.pop("digest")
    text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"
    assert digest == hashlib.sha256(text.encode()).hexdigest()
    assert (data["format"], data["version"]) == ("codestill-cache", 1)
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
        assert (file.attrs["version"], file.attrs["version"].dtype) == (1, np.dtype("<u4"))
        index = {
            "window_id": "<u8",
            "token_count": "<u4",
            "entry_count": "<u4",
            "prompt_tokens": "<u4",
            "checksum": "<u4",
        }
        assert {name: file[name].dtype for name in index} == {name: np.dtype(kind) for name, kind in index.items()}
        assert file["document"].dtype.kind == "S"
        assert set(file) == {*index, "document", *ALWAYS}
        types = dict.fromkeys(ALWAYS, np.dtype("<u2")) | {"head_sizes": np.dtype("u1")}
        assert {name: file[name].dtype for name in ALWAYS} == types
        for name in ALWAYS:
            assert file[name].chunks == (1, file[name].shape[1])
            plist = file[name].id.get_create_plist()
            assert [plist.get_filter(place)[0] for place in range(plist.get_nfilters())] == [2, 32015]


def test_file_begins_as_hdf5_with_superblock_3(shard: Path) -> None:
    """Superblock 3 and the object headers that come with it carry checksums, on which the damage tests rest."""
    assert shard.read_bytes()[:9] == b"\x89HDF\r\n\x1a\n\x03"


def test_both_checksums_of_a_shard(shard: Path) -> None:
    with h5py.File(shard) as file:
        for row in range(2):
            crc = 0
            for name in ALWAYS:
                crc = zlib.crc32(file[name].id.read_direct_chunk((row, 0))[1], crc)
            assert crc == file["checksum"][row]
        digest = hashlib.sha256()
        for name in ("encoding", "summary"):
            digest.update(bytes(file.attrs[name]) + b"\0")
        for name in sorted(set(file) - set(ALWAYS)):
            digest.update(name.encode() + b"\0" + file[name][...].tobytes())
        assert file.attrs["index_sha256"] == digest.hexdigest().encode()


def test_frames_are_zstd_with_size_and_checksum(shard: Path) -> None:
    import zstandard

    index, raw = read_index(shard), shard.read_bytes()
    for name in ALWAYS:
        offset, size = int(index.offset[name][0]), int(index.size[name][0])
        frame = zstandard.get_frame_parameters(raw[offset : offset + size])
        assert frame.has_checksum
        width = 1 if name == "head_sizes" else 2
        assert frame.content_size == index.padded[name] * width


def test_padding_is_zero(shard: Path) -> None:
    with h5py.File(shard) as file:
        shorter = int(np.argmin(file["token_count"][...]))
        count = int(file["token_count"][shorter])
        assert count < file["tokens"].shape[1], "this sample has a shorter window"
        assert not file["tokens"][shorter][count:].any()


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
    "fact", ["32015", "index_sha256", "65535", "codestill-shard", "codestill-cache", "2^20", "2^25", "2^15"]
)
def test_the_page_states_what_the_code_does(fact: str) -> None:
    from cache import structure
    from cache.encoding import NO_TAIL

    page = (Path(structure.__file__).parent / "FORMAT.md").read_text()
    assert fact in page
    assert (structure.MAX_WINDOWS, structure.MAX_CHUNK_BYTES, structure.MAX_ATTRIBUTE_BYTES) == (2**20, 2**25, 2**15)
    assert (structure.ZSTD_FILTER, NO_TAIL) == (32015, 65535)
