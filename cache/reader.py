"""Random access to a cache's windows, checked on the way: `open_cache(directory)[i]` is a CachedWindow.

A window is one frame, read with pread at an offset that the shard's index knows, and decoded with zstandard, outside h5py's
global lock, so threads and DataLoader workers run side by side. Order, shuffling and batches are the student's business, not
ours. Memory: the index (about 60 bytes a window) and the windows asked for, `read(many)` being quicker than one after another;
at most MAX_OPEN_FILES open files.
"""

from __future__ import annotations

import os
import threading
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from numpy.typing import NDArray

from cache.basis import read_prior
from cache.decoding import decode_windows
from cache.encoding import Codes
from cache.frames import decompress
from cache.manifest import Manifest, read_manifest
from cache.prior import Prior
from cache.record import CachedWindow
from cache.shard import ShardIndex, read_index
from shared.errors import RunError

AT_ONCE = 4096  # positions: more save little, and what is decoded must fit into a processor's cache
MAX_OPEN_FILES = 128  # a cache of thousands of shards must fit under the usual limit of 1024 descriptors


# Once a process: glibc keeps freed memory only up to twice the largest block it ever took back and gives the rest to the
# system, so that every window would be paid for in page faults again, which cost more than decoding it.
np.empty(1 << 24, np.uint8)

_thread = threading.local()  # a zstd decompressor serves one thread, and all shards


class _OpenFile:
    """A descriptor that closes when nobody reads from it any more, so that a reader may be released under a thread."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class ShardReader:
    """One shard's windows. Safe in threads, after fork (pread has no position), and when pickled into another process.

    Args:
        index: the shard's.
        prior: what the cache's basis tells, where it has one.
    """

    def __init__(self, index: ShardIndex, prior: Prior | None = None) -> None:
        self.index, self._prior = index, prior
        self._file: _OpenFile | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "prior": self._prior}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def release(self) -> None:
        """Let go of the file; the next read opens it again."""
        self._file = None

    def read(self, window: int) -> CachedWindow:
        """Decode one window.

        Raises:
            RunError: its bytes are damaged or cannot be read; names shard, window and remedy. Nothing of it is returned.
        """
        return self.fetch(window).decoded()

    def fetch(self, window: int) -> Stored:
        """One window's bytes, as they were written.

        Raises:
            RunError: they are not, or cannot be read.
        """
        try:
            return self._unpacked(window, self._frame(window))
        except (ValueError, OSError) as error:
            raise self.damaged(window, error) from None

    def damaged(self, window: int, error: Exception) -> RunError:
        """What a user is told."""
        return RunError(
            f"shard {self.index.path.name}, window {self.index.id_of(window)}",
            expected="undamaged bytes",
            got=str(error),
            do=f"run `python -m cache verify {self.index.path.parent}` and get the shards it names again",
        )

    def _frame(self, window: int) -> bytes:
        index = self.index
        file = self._file = self._file or _OpenFile(index.path)
        frame = os.pread(file.number, int(index.size[window]), int(index.offset[window]))
        if zlib.crc32(frame) != int(index.checksum[window]):
            raise ValueError("a checksum that does not fit")
        return frame

    def _unpacked(self, window: int, frame: bytes) -> Stored:
        index = self.index
        if not hasattr(_thread, "zstd"):
            _thread.zstd = zstandard.ZstdDecompressor()
        raw = decompress(frame, index.padded, _thread.zstd)
        codes = Codes(int(index.token_count[window]) - 1, int(index.entry_count[window]), (raw,))
        document = index.document[window].decode(errors="replace")
        return Stored(self, window, codes, (index.id_of(window), document, int(index.prompt_tokens[window])))

    def decode(self, windows: Sequence[Stored]) -> list[CachedWindow]:
        """Windows of this cache, of this shard or others.

        Raises:
            ValueError: one of them is none.
        """
        codes, labels = [stored.codes for stored in windows], [stored.label for stored in windows]
        return decode_windows(codes, self.index.encoding, self._prior, labels)


@dataclass(frozen=True, slots=True)
class Stored:
    """A window's bytes, undamaged, not yet decoded.

    Attributes:
        reader, window: where it lies.
        codes: the bytes.
        label: id, document, prompt tokens.
    """

    reader: ShardReader
    window: int
    codes: Codes
    label: tuple[str, str, int]

    def decoded(self) -> CachedWindow:
        """The window; see ShardReader.read for errors."""
        try:
            return self.reader.decode([self])[0]
        except ValueError as error:
            raise self.reader.damaged(self.window, error) from None


class Cache:
    """A cache directory as a sequence of windows, in corpus order.

    Attributes:
        directory: where it lies.
        manifest: what it is.
        lengths: int32 [W], tokens of each window.
        window_ids: uint64 [W].
    """

    def __init__(self, directory: Path, manifest: Manifest) -> None:
        self.directory, self.manifest = directory, manifest
        indexes = [_index(directory, manifest, number) for number in range(len(manifest.shards))]
        prior = read_prior(directory, manifest.identity.shape, manifest.vocab_size)
        self._shards = [ShardReader(index, prior) for index in indexes]
        self._ends = np.cumsum([len(index) for index in indexes]).tolist()
        self._open: dict[int, None] = {}  # shards with an open file, longest open first
        self.lengths: NDArray[np.int32] = np.concatenate([index.token_count for index in indexes]).astype(np.int32)
        self.window_ids: NDArray[np.uint64] = np.concatenate([index.window_id for index in indexes])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, window: int) -> CachedWindow:
        """Decode window number `window`, 0 <= window < len(self).

        Raises:
            IndexError: no such window.
            RunError: damaged bytes.
        """
        return self._stored(window).decoded()

    def read(self, windows: Sequence[int]) -> list[CachedWindow]:
        """`self[window]` for each of `windows`, to the last bit, in about half the time: many are decoded at once.

        Raises:
            IndexError, RunError: as for a single one.
        """
        found: list[CachedWindow] = []
        waiting: list[Stored] = []
        positions = 0
        for window in windows:
            waiting.append(self._stored(window))
            positions += waiting[-1].codes.positions
            if positions >= AT_ONCE:
                found += _decoded(waiting)
                waiting, positions = [], 0
        return found + _decoded(waiting)

    def _stored(self, window: int) -> Stored:
        if not 0 <= window < len(self):
            raise IndexError(window)
        shard = bisect_right(self._ends, window)
        if shard not in self._open:
            self._open[shard] = None
            for oldest in list(self._open)[:-MAX_OPEN_FILES]:
                self._open.pop(oldest, None)
                self._shards[oldest].release()
        return self._shards[shard].fetch(window - (self._ends[shard - 1] if shard else 0))


def _decoded(windows: list[Stored]) -> list[CachedWindow]:
    """All at once; where one of them is damaged, one after another, so that its own error is raised."""
    try:
        return windows[0].reader.decode(windows) if windows else []
    except ValueError:
        return [window.decoded() for window in windows]


def _index(directory: Path, manifest: Manifest, number: int) -> ShardIndex:
    entry = manifest.shards[number]
    path = directory / entry.name
    remedy = f"run `python -m cache verify {directory}` and get the shards it names again"
    if not path.is_file():
        raise RunError(f"shard {entry.name}", expected="a file beside the manifest", got="none", do=remedy)
    if path.stat().st_size != entry.bytes:
        got = f"{path.stat().st_size}"
        raise RunError(f"shard {entry.name}", expected=f"{entry.bytes} bytes", got=got, do=remedy)
    index = read_index(path, manifest.identity.encoding)
    found = (len(index), int(index.token_count.sum()), int(index.entry_count.sum(dtype=np.int64)))
    if found != (entry.windows, entry.tokens, entry.entries):
        expected = f"{entry.windows} windows, {entry.tokens} tokens, {entry.entries} head entries"
        got = f"{found[0]}, {found[1]}, {found[2]}"
        raise RunError(f"shard {entry.name}", expected=expected, got=got, do=remedy)
    return index


def open_cache(directory: Path) -> Cache:
    """Open a finished cache.

    Raises:
        UsageError: not a cache.
        RunError: manifest or a shard's structure is damaged.
    """
    directory = Path(directory).absolute()  # a worker may start in another working directory
    return Cache(directory, read_manifest(directory))
