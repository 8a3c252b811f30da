"""Many encoded windows as one plain HDF5 file, and the index of such a file. FORMAT.md is the specification.

Not for decoding windows (cache/reader.py) and not for names and atomic renames (cache/writer.py). A shard is built in
memory and handed over as bytes, so that its name can hold its hash and a crash leaves nothing behind. Reading trusts
nothing: cache/structure.py walks the file before a single array is allocated.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray

from cache.encoding import Codes, Encoding, encode_window
from cache.frames import compress, new_compressor
from cache.prior import Prior
from cache.record import CachedWindow
from cache.structure import (
    MAX_ATTRIBUTE_BYTES,
    MAX_CHUNK_BYTES,
    MAX_DOCUMENT_BYTES,
    MAX_WINDOWS,
    SHARD,
    ZSTD_FILTER,
    chunk_table,
    open_checked,
    read_text_attribute,
)
from shared.errors import RunError, UsageError

INDEX_TYPES = {
    "window_id": "<u8",
    "token_count": "<u4",
    "entry_count": "<u4",
    "prompt_tokens": "<u4",
    "checksum": "<u4",
}
"""One number a window each; `document` (fixed-length UTF-8) is the sixth index array."""

RECORDS = "records"  # the dataset of the windows themselves


@dataclass(frozen=True)
class ShardIndex:
    """What is known of a shard without decoding anything: W windows, and where each of their frames lies."""

    path: Path
    encoding: Encoding
    summary: dict[str, Any]
    window_id: NDArray[np.uint64]
    token_count: NDArray[np.uint32]
    entry_count: NDArray[np.uint32]
    prompt_tokens: NDArray[np.uint32]
    checksum: NDArray[np.uint32]
    document: NDArray[np.bytes_]
    padded: int  # bytes of a chunk
    offset: NDArray[np.int64]  # byte offset of each window's frame
    size: NDArray[np.int64]  # bytes of each window's frame

    def __len__(self) -> int:
        return len(self.window_id)

    def id_of(self, window: int) -> str:
        """The window's id as 16 hex characters."""
        return f"{int(self.window_id[window]):016x}"


def shard_bytes(
    windows: Sequence[CachedWindow], encoding: Encoding, summary: dict[str, Any], prior: Prior | None = None
) -> bytes:
    """The whole HDF5 file that holds `windows`, the same bytes for the same input.

    Args:
        windows: at least one.
        encoding: the cache's encoding.
        summary: JSON values about these windows that the capture wants to find again after a crash.
        prior: what the cache's basis tells, where it has one.
    Raises:
        RunError: a record that no teacher in order produces (see encode_window).
        UsageError: more windows, or longer ones, than any reader accepts.
    """
    assert windows, "a shard holds at least one window"
    _require_size("windows a shard", len(windows), MAX_WINDOWS, "set a smaller windows_per_shard")
    rows = [encode_window(window, encoding, prior) for window in windows]
    frames, padded = _frames(rows)
    index = _index_arrays(windows, frames)
    texts = {"encoding": encoding.model_dump_json(), "summary": json.dumps(summary, sort_keys=True, allow_nan=False)}
    assert max(map(len, texts.values())) <= MAX_ATTRIBUTE_BYTES, "a summary is a few numbers"
    with h5py.File("shard", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        file.attrs["format"] = np.bytes_(SHARD.format)
        file.attrs["version"] = np.uint32(SHARD.version)
        for name, text in texts.items():
            file.attrs[name] = np.bytes_(text.encode())
        file.attrs["index_sha256"] = np.bytes_(_index_digest(index, texts))
        for name, array in index.items():
            file.create_dataset(name, data=array, track_times=False)
        write_frames(file, RECORDS, padded, frames)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def _require_size(what: str, got: int, most: int, do: str) -> None:
    if got > most:
        raise UsageError(what, expected=f"at most {most}", got=str(got), do=do)


def _frames(rows: Sequence[Codes]) -> tuple[list[bytes], int]:
    compressor, padded = new_compressor(), max(sum(map(len, row.sections)) for row in rows)
    _require_size("bytes of a window", padded, MAX_CHUNK_BYTES, "set a smaller max_length or k")
    return [compress(row.sections, padded, compressor)[0] for row in rows], padded


def _index_arrays(windows: Sequence[CachedWindow], frames: Sequence[bytes]) -> dict[str, NDArray[Any]]:
    numbers = {
        "window_id": [int(window.id, 16) for window in windows],
        "token_count": [len(window.tokens) for window in windows],
        "entry_count": [len(window.head_ids_E) for window in windows],
        "prompt_tokens": [window.prompt_tokens for window in windows],
        "checksum": [zlib.crc32(frame) for frame in frames],
    }
    index: dict[str, NDArray[Any]] = {name: np.array(values, INDEX_TYPES[name]) for name, values in numbers.items()}
    names = [_cut(window.document) for window in windows]
    index["document"] = np.array(names, f"S{max(1, *map(len, names))}")
    return index


def _cut(name: str) -> bytes:
    return name.encode(errors="replace")[:MAX_DOCUMENT_BYTES].decode(errors="ignore").encode()


def _index_digest(index: dict[str, NDArray[Any]], texts: dict[str, str]) -> str:
    digest = hashlib.sha256()
    for name in sorted(texts):
        digest.update(texts[name].encode() + b"\0")
    for name in sorted(index):
        digest.update(name.encode() + b"\0" + index[name].tobytes())
    return digest.hexdigest()


def write_frames(file: h5py.File, name: str, padded: int, frames: Sequence[bytes]) -> None:
    """A dataset of bytes from ready-made chunks."""
    dataset = file.create_dataset(
        name,
        shape=(len(frames), padded),
        chunks=(1, padded),
        dtype=np.uint8,
        track_times=False,
        **hdf5plugin.Zstd(clevel=1),
    )
    for row, frame in enumerate(frames):
        dataset.id.write_direct_chunk((row, 0), frame)


def read_index(path: Path, encoding: Encoding | None = None) -> ShardIndex:
    """Open a shard, check its structure, and read its index; no window is decoded.

    Args:
        path: the shard.
        encoding: what the manifest says; None while no manifest exists yet (a capture that goes on).
    Raises:
        RunError: not a shard of this version, damaged, hostile, or encoded otherwise than the manifest says.
    """
    with open_checked(path) as file:
        texts = {name: read_text_attribute(file, name, path) for name in ("encoding", "summary")}
        own = _own_encoding(texts["encoding"], path)
        if encoding is not None and own != encoding:
            raise _unfit(path, "the manifest's encoding", "another one")
        index = {name: file[name][...] for name in (*INDEX_TYPES, "document")}
        if _index_digest(index, texts) != read_text_attribute(file, "index_sha256", path):
            raise _unfit(path, "an index that fits its checksum", "a damaged one")
        offset, size = chunk_table(file[RECORDS], path)
        padded = int(file[RECORDS].shape[1])
    _check_counts(index, padded, own, path)
    summary = _summary(texts["summary"], path)
    return ShardIndex(path, own, summary, **index, padded=padded, offset=offset, size=size)


def _unfit(path: Path, expected: str, got: str) -> RunError:
    return RunError(f"shard {path.name}", expected=expected, got=got, do="get the shard again")


def _own_encoding(text: str, path: Path) -> Encoding:
    try:
        return Encoding.model_validate_json(text)
    except ValueError as error:
        raise _unfit(path, "a valid encoding attribute", str(error)) from None


def _summary(text: str, path: Path) -> dict[str, Any]:
    try:
        summary = json.loads(text)
    except (ValueError, RecursionError):
        summary = None
    if not isinstance(summary, dict):
        raise _unfit(path, "a summary in JSON", "something else")
    return summary


def _check_counts(index: dict[str, NDArray[Any]], padded: int, encoding: Encoding, path: Path) -> None:
    positions = index["token_count"].astype(np.int64) - 1
    entries = index["entry_count"].astype(np.int64)
    widest = min(encoding.k, encoding.vocab_size)
    wrong = positions.min() < 1 or bool((index["prompt_tokens"] > index["token_count"]).any())
    wrong |= bool(((entries < positions) | (entries > positions * widest)).any())
    least, most = encoding.limits(positions, entries)
    if wrong or not int(least.max()) <= padded <= int(most.max()):
        raise _unfit(path, "window lengths that fit its arrays", "others")


assert hdf5plugin.Zstd().filter_id == ZSTD_FILTER
