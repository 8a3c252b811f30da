"""A shard's HDF5 structure, checked before anything in it is trusted.

Opening somebody's HDF5 file is dangerous: external storage and links read other files, virtual datasets too, absurd
shapes allocate, vlen and object types execute code paths nobody audits. So: exactly the expected names, hard links only,
fixed types, the expected filters, sizes that the file can really hold. Not for the meaning of the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from shared.errors import RunError

ZSTD_FILTER = 32015  # registered HDF5 filter id
MAX_WINDOWS = 1 << 24
MAX_CHUNK_BYTES = 1 << 28
MAX_ATTRIBUTE_BYTES = 1 << 16

INDEX_NAMES = {
    "window_id": "uint64",
    "token_count": "uint32",
    "entry_count": "uint32",
    "prompt_tokens": "uint32",
    "checksum": "uint32",
    "document": "S",
}
FIELD_NAMES = {
    "tokens": ("uint16", "uint32"),
    "head_sizes": ("uint8", "uint16"),
    "head_ids": ("uint16", "uint32"),
    "head_values": ("uint16",),
    "tail": ("uint16",),
    "gold": ("uint16",),
}
ATTRIBUTES = {"format", "version", "encoding", "summary", "index_sha256"}
FORMAT, VERSION = "codestill-shard", 1


def _refuse(path: Path, expected: str, got: str) -> RunError:
    return RunError(f"shard {path.name}", expected=expected, got=got, do="do not use this file; get the shard again")


@contextmanager
def open_checked(path: Path) -> Iterator[h5py.File]:
    """Open a shard read-only without file locking (locks fail on network disks) after checking its whole structure.

    Raises:
        RunError: not an HDF5 file, another format or version, or anything in it that a shard never has.
    """
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        raise _refuse(path, "an HDF5 file", str(error)) from None
    with file:
        try:
            _check_root(file, path)
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # what h5py raises on damage
            raise _refuse(path, "a readable HDF5 structure", str(error)) from None
        yield file


def _check_root(file: h5py.File, path: Path) -> None:
    if set(file.attrs) != ATTRIBUTES:
        raise _refuse(path, "the attributes " + ", ".join(sorted(ATTRIBUTES)), ", ".join(sorted(file.attrs)) or "none")
    if read_text_attribute(file, "format", path) != FORMAT:
        raise _refuse(path, f"format {FORMAT}", "another format")
    version = file.attrs.get_id("version")
    if version.dtype != np.dtype("<u4") or version.shape != () or int(file.attrs["version"]) != VERSION:
        raise _refuse(path, f"version {VERSION}", "another version (made by another release)")
    names = set(file)
    if names != set(INDEX_NAMES) | set(FIELD_NAMES):
        odd = names ^ (set(INDEX_NAMES) | set(FIELD_NAMES))
        raise _refuse(path, "exactly the datasets of the format", f"a difference in {', '.join(sorted(odd))[:200]}")
    for name in sorted(names):
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise _refuse(path, f"'{name}' inside the file", f"a {type(link).__name__}")
        if file.get(name, getclass=True) is not h5py.Dataset:
            raise _refuse(path, f"'{name}' to be a dataset", "another object")
    windows = file["window_id"].shape
    if len(windows) != 1 or not 1 <= windows[0] <= MAX_WINDOWS:
        raise _refuse(path, f"1 to {MAX_WINDOWS} windows", f"shape {windows}")
    for name, kind in INDEX_NAMES.items():
        _check_index(file[name], kind, windows[0], path)
    for name, kinds in FIELD_NAMES.items():
        _check_field(file[name], kinds, windows[0], path)


def _check_storage(dataset: h5py.Dataset, path: Path) -> None:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() == h5py.h5d.VIRTUAL or dataset.is_virtual:
        raise _refuse(path, f"'{dataset.name}' stored here", "a virtual dataset")
    if plist.get_external_count():
        raise _refuse(path, f"'{dataset.name}' stored here", "external storage")
    if len(dataset.attrs):
        raise _refuse(path, f"'{dataset.name}' without attributes", f"{len(dataset.attrs)}")


def _check_index(dataset: h5py.Dataset, kind: str, windows: int, path: Path) -> None:
    _check_storage(dataset, path)
    dtype = dataset.dtype
    right = (
        dtype.kind == "S" and 1 <= dtype.itemsize <= 256 if kind == "S" else dtype == np.dtype(kind).newbyteorder("<")
    )
    if not right or dtype.hasobject:
        raise _refuse(path, f"'{dataset.name}' of type {kind}", str(dtype))
    plist = dataset.id.get_create_plist()
    if dataset.shape != (windows,) or plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
        raise _refuse(path, f"'{dataset.name}' contiguous, {windows} long", f"shape {dataset.shape}")
    if dataset.id.get_storage_size() != windows * dtype.itemsize:
        raise _refuse(path, f"'{dataset.name}' fully stored", f"{dataset.id.get_storage_size()} bytes")


def _check_field(dataset: h5py.Dataset, kinds: tuple[str, ...], windows: int, path: Path) -> None:
    _check_storage(dataset, path)
    if dataset.dtype not in [np.dtype(kind).newbyteorder("<") for kind in kinds]:
        raise _refuse(path, f"'{dataset.name}' of type {' or '.join(kinds)}", str(dataset.dtype))
    shape = dataset.shape
    if len(shape) != 2 or shape[0] != windows or not 1 <= shape[1] * dataset.dtype.itemsize <= MAX_CHUNK_BYTES:
        raise _refuse(path, f"'{dataset.name}' of {windows} rows of at most {MAX_CHUNK_BYTES} bytes", f"shape {shape}")
    if dataset.chunks != (1, shape[1]):
        raise _refuse(path, f"'{dataset.name}' with one window a chunk", f"chunks {dataset.chunks}")
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    if filters != [h5py.h5z.FILTER_SHUFFLE, ZSTD_FILTER]:
        raise _refuse(path, f"'{dataset.name}' filtered by shuffle and zstd", f"filters {filters}")


def read_text_attribute(file: h5py.File, name: str, path: Path) -> str:
    """A fixed-length UTF-8 attribute of the root, at most 64 KiB.

    Raises:
        RunError: absent, of another type, too long, or not UTF-8.
    """
    attribute = file.attrs.get_id(name)
    if attribute.dtype.kind != "S" or attribute.shape != () or attribute.dtype.itemsize > MAX_ATTRIBUTE_BYTES:
        raise _refuse(path, f"attribute '{name}' as a fixed-length string", str(attribute.dtype))
    try:
        return bytes(file.attrs[name]).decode()
    except UnicodeDecodeError:
        raise _refuse(path, f"attribute '{name}' in UTF-8", "other bytes") from None


def chunk_table(dataset: h5py.Dataset, path: Path) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Byte offset and size in the file of every window's frame, int64 [W] each.

    Raises:
        RunError: a chunk is missing, lies outside the file, or skipped a filter.
    """
    windows = dataset.shape[0]
    offset, size = np.full(windows, -1, np.int64), np.zeros(windows, np.int64)
    skipped: list[int] = []

    def note(chunk: Any) -> None:
        row = chunk.chunk_offset[0]
        offset[row], size[row] = chunk.byte_offset, chunk.size
        if chunk.filter_mask:
            skipped.append(row)

    dataset.id.chunk_iter(note)
    if skipped or (offset < 0).any() or (size <= 0).any() or (offset + size).max() > path.stat().st_size:
        raise _refuse(path, f"every chunk of '{dataset.name}' whole and inside the file", "missing or misplaced chunks")
    return offset, size
