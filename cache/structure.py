"""A shard's HDF5 structure, checked before anything in it is trusted.

Opening somebody's HDF5 file is dangerous: external storage and links read other files, virtual datasets too, absurd
shapes allocate, vlen and object types execute code paths nobody audits. So: exactly the expected names, hard links only,
fixed types, the expected filters, sizes that the file can really hold; and storage is looked at before a shape is asked
for, since asking a virtual dataset for its shape already opens its sources. Not for the meaning of the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from shared.errors import RunError

ZSTD_FILTER = 32015  # registered HDF5 filter id
MAX_WINDOWS = 1 << 20  # in a shard; with MAX_DOCUMENT_BYTES this bounds the index at 300 MB
MAX_CHUNK_BYTES = 1 << 25  # one window, decoded: 130,000 positions of 64 ids and 64 coordinates
MAX_DOCUMENT_BYTES = 256
MAX_ATTRIBUTE_BYTES = 1 << 15


@dataclass(frozen=True)
class Layout:
    """What a file of one kind holds, and nothing else.

    Attributes:
        format: value of the attribute `format`.
        version: of `version`.
        texts: the other root attributes, fixed-length strings.
        index: contiguous datasets [W] and their types (S: fixed-length text); the first one tells W.
        fields: datasets [W, L], a row a chunk, and their possible types.
    """

    format: str
    version: int
    texts: frozenset[str]
    index: dict[str, str]
    fields: dict[str, tuple[str, ...]]

    @property
    def attributes(self) -> frozenset[str]:
        """Every root attribute."""
        return self.texts | {"format", "version"}


SHARD = Layout(
    format="codestill-shard",
    version=3,
    texts=frozenset({"encoding", "summary", "index_sha256"}),
    index={
        "window_id": "uint64",
        "token_count": "uint32",
        "entry_count": "uint32",
        "prompt_tokens": "uint32",
        "checksum": "uint32",
        "document": "S",
    },
    fields={"records": ("uint8",)},
)
BASIS = Layout("codestill-basis", 3, frozenset(), {"checksum": "uint32"}, {"stream": ("uint8",)})

DAMAGE = (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError)
"""What h5py raises on a damaged or hostile file, depending on which byte is wrong (a test flips every one)."""


def _refuse(path: Path, expected: str, got: str) -> RunError:
    kind = "shard " if path.name[:1].isdigit() else ""
    return RunError(f"{kind}{path.name}", expected=expected, got=got, do="do not use this file; get the shard again")


def require_plain_file(path: Path) -> None:
    """A link could lead outside the cache, and a pipe would never end.

    Raises:
        RunError: `path` is not a file of its own.
    """
    if path.is_symlink() or not path.is_file():
        raise _refuse(path, "a plain file", "none" if not path.exists() else "a link or a special file")


@contextmanager
def open_checked(path: Path, layout: Layout = SHARD) -> Iterator[h5py.File]:
    """Open a shard (or another file of ours) read-only without file locking (locks fail on network disks) after
    checking its whole structure.

    What h5py raises while the body reads becomes a RunError too.
    Raises:
        RunError: not an HDF5 file, another format or version, damaged, or anything in it that a shard never has.
    """
    require_plain_file(path)
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.userblock_size:
                raise _refuse(path, "HDF5 from the first byte", f"{file.userblock_size} bytes of something else")
            _check_attributes(file, layout, path)
            _check_names(file, layout, path)
            _check_datasets(file, layout, path)
            yield file
    except DAMAGE as error:
        raise _refuse(path, "a readable HDF5 structure", str(error) or type(error).__name__) from None


def _check_attributes(file: h5py.File, layout: Layout, path: Path) -> None:
    if len(file.attrs) != len(layout.attributes) or set(file.attrs) != layout.attributes:
        raise _refuse(path, "the attributes " + ", ".join(sorted(layout.attributes)), f"{len(file.attrs)} others")
    if read_text_attribute(file, "format", path) != layout.format:
        raise _refuse(path, f"format {layout.format}", "another format")
    version = file.attrs.get_id("version")
    if version.dtype != np.dtype("<u4") or version.shape != () or int(file.attrs["version"]) != layout.version:
        raise _refuse(path, f"version {layout.version}", "another version (made by another release)")


def _check_names(file: h5py.File, layout: Layout, path: Path) -> None:
    """Exactly our datasets, each a hard link to a dataset whose bytes lie in this file."""
    names = layout.index.keys() | layout.fields.keys()
    if len(file) != len(names) or set(file) != names:
        raise _refuse(path, "exactly the datasets of the format", f"{len(file)} objects of other names")
    for name in sorted(names):
        link = file.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise _refuse(path, f"'{name}' inside the file", f"a {type(link).__name__}")
        if file.get(name, getclass=True) is not h5py.Dataset:
            raise _refuse(path, f"'{name}' to be a dataset", "another object")
    for name in sorted(names):
        _check_storage(file[name], path)


def _check_storage(dataset: h5py.Dataset, path: Path) -> None:
    plist = dataset.id.get_create_plist()
    if plist.get_layout() not in (h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED):
        raise _refuse(path, f"'{dataset.name}' stored here", "a virtual or compact dataset")
    if plist.get_external_count():
        raise _refuse(path, f"'{dataset.name}' stored here", "external storage")
    if len(dataset.attrs):
        raise _refuse(path, f"'{dataset.name}' without attributes", f"{len(dataset.attrs)}")


def _check_datasets(file: h5py.File, layout: Layout, path: Path) -> None:
    shape = file[next(iter(layout.index))].shape
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_WINDOWS:
        raise _refuse(path, f"1 to {MAX_WINDOWS} windows", f"shape {shape}")
    for name, kind in layout.index.items():
        _check_index(file[name], kind, shape[0], path)
    for name, kinds in layout.fields.items():
        _check_field(file[name], kinds, shape[0], path)


def _check_index(dataset: h5py.Dataset, kind: str, windows: int, path: Path) -> None:
    dtype = dataset.dtype
    texts = kind == "S" and dtype.kind == "S" and 1 <= dtype.itemsize <= MAX_DOCUMENT_BYTES
    if not texts and (kind == "S" or dtype != np.dtype(kind).newbyteorder("<")):
        raise _refuse(path, f"'{dataset.name}' of type {kind}", str(dtype))
    plist = dataset.id.get_create_plist()
    if dataset.shape != (windows,) or plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_nfilters():
        raise _refuse(path, f"'{dataset.name}' contiguous, {windows} long", f"shape {dataset.shape}")
    start, stored = dataset.id.get_offset(), dataset.id.get_storage_size()
    if start is None or stored != windows * dtype.itemsize or start + stored > path.stat().st_size:
        raise _refuse(path, f"'{dataset.name}' wholly in the file", f"{stored} bytes stored at {start}")


def _check_field(dataset: h5py.Dataset, kinds: tuple[str, ...], windows: int, path: Path) -> None:
    if dataset.dtype not in [np.dtype(kind).newbyteorder("<") for kind in kinds]:
        raise _refuse(path, f"'{dataset.name}' of type {' or '.join(kinds)}", str(dataset.dtype))
    shape = dataset.shape
    if len(shape) != 2 or shape[0] != windows or not 1 <= shape[1] * dataset.dtype.itemsize <= MAX_CHUNK_BYTES:
        raise _refuse(path, f"'{dataset.name}' of {windows} rows of at most {MAX_CHUNK_BYTES} bytes", f"shape {shape}")
    if dataset.chunks != (1, shape[1]):
        raise _refuse(path, f"'{dataset.name}' with one window a chunk", f"chunks {dataset.chunks}")
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    if filters != [ZSTD_FILTER]:
        raise _refuse(path, f"'{dataset.name}' filtered by zstd", f"filters {filters}")


def read_text_attribute(file: h5py.File, name: str, path: Path) -> str:
    """A fixed-length UTF-8 attribute of the root, at most MAX_ATTRIBUTE_BYTES.

    Raises:
        RunError: of another type, too long, or not UTF-8.
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
        RunError: a chunk is missing, lies outside the file, skipped a filter, or is longer than its content explains.
    """
    windows, end = dataset.shape[0], path.stat().st_size
    longest = dataset.shape[1] * dataset.dtype.itemsize * 257 // 256 + 128  # zstd's bound for what does not compress
    offset, size = np.full(windows, -1, np.int64), np.zeros(windows, np.int64)
    skipped: list[int] = []

    def note(chunk: Any) -> None:
        row = chunk.chunk_offset[0]
        offset[row], size[row] = chunk.byte_offset, chunk.size
        if chunk.filter_mask:
            skipped.append(row)

    dataset.id.chunk_iter(note)
    inside = (offset >= 0) & (size > 0) & (size <= longest) & (offset <= end - size)
    if skipped or not inside.all():
        raise _refuse(path, f"every chunk of '{dataset.name}' whole and inside the file", "missing or misplaced chunks")
    return offset, size
