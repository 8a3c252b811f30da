"""Hostile caches, one function each: every one ends in one line of refusal, and nothing outside the cache is opened.

What is made here nobody's capture writes. Flipped and missing bytes are test_cache_damage.py's matter.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
from cache_hostile import ENCODING, edit, refused, replaced, resealed, write_shard

from cache.reader import ShardReader
from cache.shard import read_index
from cache.structure import MAX_CHUNK_BYTES


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A sound shard of three windows, written so that tests may change it in place."""
    return write_shard(tmp_path)


@contextmanager
def never_opened(secret: Path) -> Iterator[None]:
    """Watch a file with inotify: C libraries open files without Python noticing."""
    if not sys.platform.startswith("linux"):
        yield
        return
    libc, opened = ctypes.CDLL(None, use_errno=True), 0x20
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watcher, os.fsencode(secret), opened) >= 0
    try:
        yield
        with pytest.raises(BlockingIOError):  # no event to read
            os.read(watcher, 4096)
    finally:
        os.close(watcher)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.h5"
    with h5py.File(path, "w") as file:
        file["records"] = np.arange(300).astype("u1").reshape(3, 100)
    return path


def test_the_watch_on_files_works(secret: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"), never_opened(secret):
        h5py.File(secret, "r").close()


def test_sound_shard_is_accepted(shard: Path) -> None:
    reader = ShardReader(read_index(shard, ENCODING))
    assert [reader.read(window).document for window in range(3)] == [f"document {number}" for number in range(3)]


def test_external_link(shard: Path, secret: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["records"]
        file["records"] = h5py.ExternalLink(str(secret), "/records")

    edit(shard, change)
    with never_opened(secret):
        refused(shard, "expected 'records' inside the file, got a ExternalLink")


def test_external_link_under_another_name(shard: Path, secret: Path) -> None:
    edit(shard, lambda file: file.__setitem__("coords", h5py.ExternalLink(str(secret), "/records")))
    with never_opened(secret):
        refused(shard, "exactly the datasets")


def test_soft_link(shard: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["records"]
        file["records"] = h5py.SoftLink("/checksum")

    edit(shard, change)
    refused(shard, "expected 'records' inside the file, got a SoftLink")


def test_virtual_dataset(shard: Path, secret: Path) -> None:
    layout = h5py.VirtualLayout((3, 100), "u1")
    layout[:] = h5py.VirtualSource(str(secret), "records", (3, 100))

    def change(file: h5py.File) -> None:
        del file["records"]
        file.create_virtual_dataset("records", layout)

    edit(shard, change)
    with never_opened(secret):
        refused(shard, "expected '/records' stored here, got a virtual")


def test_virtual_dataset_without_end(shard: Path, secret: Path) -> None:
    """Its very shape is only known after its sources were opened."""
    with h5py.File(secret, "a") as file:
        file.create_dataset("long", (3,), "<u8", maxshape=(None,), data=np.arange(3))
    layout = h5py.VirtualLayout((3,), "<u8", maxshape=(None,))
    source = h5py.VirtualSource(str(secret), "long", (3,), maxshape=(None,))
    layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]

    def change(file: h5py.File) -> None:
        del file["window_id"]
        file.create_virtual_dataset("window_id", layout)

    edit(shard, change)
    with never_opened(secret):
        refused(shard, "expected '/window_id' stored here, got a virtual")


def test_external_storage(shard: Path, secret: Path) -> None:
    replaced(shard, "checksum", shape=(3,), dtype="<u4", external=[(str(secret), 0, 12)])
    with never_opened(secret):
        refused(shard, "expected '/checksum' stored here, got external storage")


def test_unknown_filter(shard: Path) -> None:
    replaced(shard, "records", shape=(3, 100), chunks=(1, 100), dtype="u1", compression="gzip")
    refused(shard, "filtered by zstd, got filters")


def test_no_filter(shard: Path) -> None:
    replaced(shard, "records", data=np.zeros((3, 100), "u1"), chunks=(1, 100))
    refused(shard, r"filtered by zstd, got filters \[\]")


def test_one_filter_more(shard: Path) -> None:
    zstd = hdf5plugin.Zstd(clevel=1)
    replaced(shard, "records", data=np.zeros((3, 100), "u1"), chunks=(1, 100), shuffle=True, **zstd)
    refused(shard, r"filtered by zstd, got filters \[2, 32015\]")


def test_extra_dataset(shard: Path) -> None:
    edit(shard, lambda file: file.__setitem__("extra", np.zeros(3)))
    refused(shard, "expected exactly the datasets of the format")


def test_missing_dataset(shard: Path) -> None:
    edit(shard, lambda file: file.__delitem__("records"))
    refused(shard, "expected exactly the datasets of the format")


def test_group_in_the_place_of_a_dataset(shard: Path) -> None:
    def change(file: h5py.File) -> None:
        del file["records"]
        file.create_group("records")

    edit(shard, change)
    refused(shard, "expected 'records' to be a dataset")


def test_strings_of_any_length(shard: Path) -> None:
    replaced(shard, "document", data=["a", "b", "c"], dtype=h5py.string_dtype())
    refused(shard, "'/document' of type S, got object")


def test_object_references(shard: Path) -> None:
    replaced(shard, "window_id", shape=(3,), dtype=h5py.ref_dtype)
    refused(shard, "'/window_id' of type uint64, got object")


def test_arrays_of_any_length(shard: Path) -> None:
    zstd = hdf5plugin.Zstd(clevel=1)
    replaced(shard, "records", shape=(3, 5), chunks=(1, 5), dtype=h5py.vlen_dtype("u1"), **zstd)
    refused(shard, "'/records' of type uint8")


def test_big_endian_numbers(shard: Path) -> None:
    replaced(shard, "token_count", data=np.array([6, 6, 6], ">u4"))
    refused(shard, "'/token_count' of type uint32, got >u4")


def test_attribute_of_any_length(shard: Path) -> None:
    edit(shard, lambda file: file.attrs.__setitem__("summary", "{}"))
    refused(shard, "attribute 'summary' as a fixed-length string")


def test_huge_attribute(shard: Path) -> None:
    edit(shard, lambda file: file.attrs.__setitem__("summary", np.bytes_(b" " * 60_000)))
    refused(shard, "attribute 'summary' as a fixed-length string")


def test_more_attributes(shard: Path) -> None:
    edit(shard, lambda file: file.attrs.__setitem__("more", 1))
    refused(shard, "expected the attributes")


def test_attributes_on_a_dataset(shard: Path) -> None:
    edit(shard, lambda file: file["records"].attrs.__setitem__("more", 1))
    refused(shard, "'/records' without attributes")


def test_summary_that_is_nested_without_end(shard: Path) -> None:
    edit(shard, lambda file: file.attrs.__setitem__("summary", np.bytes_(b"[" * 30_000)))
    resealed(shard)
    refused(shard, "expected a summary in JSON")


def test_summary_that_is_no_object(shard: Path) -> None:
    edit(shard, lambda file: file.attrs.__setitem__("summary", np.bytes_(b"3")))
    resealed(shard)
    refused(shard, "expected a summary in JSON")


def test_other_nodes_in_the_encoding(shard: Path) -> None:
    text = ENCODING.model_dump_json().replace("0.25", "0.26")
    edit(shard, lambda file: file.attrs.__setitem__("encoding", np.bytes_(text.encode())))
    resealed(shard)
    refused(shard, "expected a valid encoding attribute")


@pytest.mark.parametrize("version", [0, 1, 2, 4])
def test_other_version(shard: Path, version: int) -> None:
    edit(shard, lambda file: file.attrs.__setitem__("version", np.uint32(version)))
    refused(shard, r"expected version 3, got another version \(made by another release\)")


def test_absurd_number_of_windows(shard: Path) -> None:
    replaced(shard, "window_id", shape=(1 << 40,), dtype="<u8", chunks=(1 << 20,))
    refused(shard, "expected 1 to 1048576 windows")


def test_a_million_windows_that_are_not_there(shard: Path) -> None:
    for name in ("window_id", "token_count"):
        replaced(shard, name, shape=(1 << 20,), dtype="<u8" if name == "window_id" else "<u4")
    refused(shard, "wholly in the file")


def test_absurd_window(shard: Path) -> None:
    zstd = hdf5plugin.Zstd(clevel=1)
    replaced(shard, "records", shape=(3, 1 << 30), chunks=(1, 1 << 30), dtype="u1", **zstd)
    refused(shard, f"rows of at most {MAX_CHUNK_BYTES} bytes")


@pytest.mark.parametrize("length", [20, 1 << 20])
def test_windows_longer_or_shorter_than_their_counts_allow(shard: Path, length: int) -> None:
    zstd = hdf5plugin.Zstd(clevel=1)
    replaced(shard, "records", data=np.ones((3, length), "u1"), chunks=(1, length), **zstd)
    refused(shard, "expected window lengths that fit its arrays")


def test_more_entries_than_k_allows(shard: Path) -> None:
    edit(shard, lambda file: file["entry_count"].__setitem__(0, 5 * 8 + 1))
    resealed(shard)
    refused(shard, "expected window lengths that fit its arrays")


def test_link_in_the_place_of_a_shard(shard: Path, tmp_path: Path) -> None:
    (tmp_path / "link.h5").symlink_to(shard)
    refused(tmp_path / "link.h5", "expected a plain file, got a link or a special file")


def test_pipe_in_the_place_of_a_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    refused(tmp_path / "pipe.h5", "expected a plain file, got a link or a special file")


def test_text_in_the_place_of_a_shard(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("not HDF5\n" * 1000)
    refused(tmp_path / "text.h5", "expected a readable HDF5 structure")


def test_shard_behind_a_user_block(shard: Path) -> None:
    """HDF5 also looks for its signature at 512, 1024, ...: room for another file in front."""
    shard.write_bytes(bytes(512) + shard.read_bytes())
    refused(shard, "expected HDF5 from the first byte, got 512 bytes of something else")
