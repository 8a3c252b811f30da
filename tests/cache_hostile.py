"""How the attacks on the cache are made and judged. Not a test file."""

from __future__ import annotations

import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cache_records import records
from numpy.typing import NDArray

from cache.encoding import Encoding, encode_window
from cache.frames import compress, new_compressor
from cache.reader import ShardReader
from cache.shard import _index_digest, read_index, shard_bytes
from shared.errors import RunError

ENCODING = Encoding(vocab_size=50, k=8)
SECTIONS = ("heads", "gaps", "ids", "pairs", "rest")


def write_shard(folder: Path) -> Path:
    """A sound shard of three windows."""
    path = folder / "00000-0123456789ab.h5"
    path.write_bytes(shard_bytes(records(3, positions=5), ENCODING, {}))
    return path


def edit(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def replaced(path: Path, name: str, **settings: Any) -> None:
    """Put another dataset in the place of `name`."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **settings)

    edit(path, change)


def resealed(path: Path) -> None:
    """Make the index checksum right again, as an attacker would."""

    def change(file: h5py.File) -> None:
        index = {name: file[name][...] for name in sorted(set(file) - {"records"})}
        texts = {name: bytes(file.attrs[name]).decode() for name in ("encoding", "summary")}
        file.attrs["index_sha256"] = np.bytes_(_index_digest(index, texts))

    edit(path, change)


def refused(path: Path, message: str) -> None:
    """Reading must end in one line that matches, and must not need memory that the file's size does not explain."""
    tracemalloc.start()
    try:
        with pytest.raises(RunError, match=message) as caught:
            reader = ShardReader(read_index(path, ENCODING))
            for window in range(len(reader.index)):
                reader.read(window)
        assert "\n" not in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def with_frame(path: Path, frame: bytes, mask: int = 0) -> None:
    """Replace window 1's frame and make both checksums right again."""

    def change(file: h5py.File) -> None:
        file["records"].id.write_direct_chunk((1, 0), frame, mask)
        file["checksum"][1] = zlib.crc32(frame)

    edit(path, change)
    resealed(path)


def sections_of(encoding: Encoding = ENCODING) -> dict[str, NDArray[np.uint8]]:
    """Window 1's sections, as the writer makes them."""
    codes = encode_window(records(3, positions=5)[1], encoding)
    return dict(zip(SECTIONS, (section.copy() for section in codes.sections), strict=True))


def with_sections(path: Path, sections: dict[str, NDArray[Any]]) -> None:
    """Window 1 with other bytes, in a frame as the writer makes it."""
    with h5py.File(path) as file:
        padded = file["records"].shape[1]
    with_frame(path, compress([part.astype(np.uint8) for part in sections.values()], padded, new_compressor())[0])
