"""A cache that lies elsewhere, read as if it lay here: shards come when they are needed and leave when the folder is full.

`open_streaming(url, folder, most_bytes=...)[i]` is the CachedWindow that `open_cache(directory)[i]` would be. Every shard is
checked, every byte of it, before a window of it is returned. In an order that stays with few shards at a time
(cache/order.py) each is fetched once an epoch. Processes share the folder; it must lie on a local disk. Stored there: shards,
the windows' ids and lengths, tokenizer and basis; never the URL. Not for a complete local copy (pull.py).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.basis import read_prior
from cache.folder import BoundedFolder
from cache.hub import HubRemote
from cache.manifest import Manifest, ShardEntry
from cache.places import open_remote
from cache.ranged import WINDOW, head_of, windows_of
from cache.reader import MAX_OPEN_FILES, Cache, ShardReader
from cache.record import CachedWindow
from cache.remote import Remote
from cache.remote_manifest import manifest_bytes, parsed
from cache.shard import ShardIndex, read_index
from cache.subset import choose
from cache.transfer import File, Transfer, fetch, is_there, small_files
from shared.errors import RunError
from shared.files import atomic_write

THREADS = 16  # indexes fetched at once: many small answers


def open_streaming(url: str, folder: Path, *, most_bytes: int, shards: Sequence[int] | None = None) -> StreamingCache:
    """Open a cache that lies anywhere, with a local folder of at most `most_bytes` for its shards.

    Args:
        url: any that `pull` takes.
        folder: on a local disk; made if need be; may be shared by processes and caches.
        most_bytes: of all shards in the folder together; at least the largest shard. Indexes, tokenizer and basis come on top.
        shards: numbers of the shards to use; None for all.
    Raises:
        UsageError: no cache there, no such shard, or a folder too small for the largest one.
        RunError: what lies there is damaged or hostile, or does not come.
    """
    remote = open_remote(url)
    whole = parsed(manifest_bytes(remote), remote.name)
    manifest = choose(whole, shards)
    place = Path(folder).absolute()
    bounded = BoundedFolder(place, most_bytes)
    directory = place / whole.cache_id
    directory.mkdir(exist_ok=True)
    for file in small_files(whole):
        _fetch_small(remote, file, directory, bounded)
    tables = _tables(remote, manifest, directory)
    return StreamingCache(remote.pinned if isinstance(remote, HubRemote) else url, manifest, directory, bounded, tables)


def _fetch_small(remote: Remote, file: File, directory: Path, bounded: BoundedFolder) -> None:
    """A file that stays: the tokenizer's, the basis."""
    path = directory / file.name
    path.parent.mkdir(exist_ok=True)
    with bounded.locked(f"{directory.name}~small"):
        if not is_there(path, file):
            part = path.with_name(f"{path.name}.part")
            fetch(remote, file, part, Transfer("stream", file.bytes, progress=False))
            part.replace(path)


def _tables(remote: Remote, manifest: Manifest, directory: Path) -> list[NDArray[Any]]:
    """[W] of WINDOW for every shard: from the folder where an earlier run left them, otherwise by ranges."""
    paths = [directory / f"{entry.name}.windows" for entry in manifest.shards]
    tables = [_table(path, entry) for path, entry in zip(paths, manifest.shards, strict=True)]
    missing = [number for number, table in enumerate(tables) if table is None]
    with ThreadPoolExecutor(THREADS) as pool:
        heads = pool.map(lambda number: head_of(remote, manifest.shards[number]), missing)
        for number, head in zip(missing, heads, strict=True):
            tables[number] = table = windows_of(remote, manifest.shards[number], head)
            atomic_write(paths[number], table.tobytes())
    return [table for table in tables if table is not None]


def _table(path: Path, entry: ShardEntry) -> NDArray[Any] | None:
    """What an earlier run stored; None where it did not."""
    raw = path.read_bytes() if path.is_file() else b""
    return np.frombuffer(raw, WINDOW) if len(raw) == entry.windows * WINDOW.itemsize else None


class StreamingCache(Cache):
    """A remote cache as a sequence of windows, in corpus order; see Cache. Picklable, safe in threads and after a fork."""

    def __init__(
        self, url: str, manifest: Manifest, directory: Path, folder: BoundedFolder, tables: list[NDArray[Any]]
    ) -> None:
        # Not Cache's own: that opens every shard.
        self.directory, self.manifest = directory, manifest
        self._prior = read_prior(directory, manifest.identity.shape, manifest.vocab_size)
        self._url, self._folder, self._tables = url, folder, tables
        self._ends = np.cumsum([len(table) for table in tables])
        self.lengths = np.concatenate([table["tokens"] for table in tables]).astype(np.int32)
        self.window_ids = np.concatenate([table["id"] for table in tables])
        self._begin()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_readers", "_remote", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def _begin(self) -> None:
        self._readers: dict[int, ShardReader] = {}  # of shards whose file is open, last used last
        self._remote: tuple[int, Remote] | None = None  # and the process that opened it: a connection survives no fork
        self._lock = threading.Lock()  # of these two

    def __getitem__(self, window: int) -> CachedWindow:
        """Decode window number `window`, fetching its shard if need be.

        Raises:
            IndexError: no such window.
            RunError: damaged bytes, or a shard that does not come.
        """
        if not 0 <= window < len(self):
            raise IndexError(window)
        shard = int(np.searchsorted(self._ends, window, side="right"))
        row = window - (int(self._ends[shard - 1]) if shard else 0)
        reader = self._in_use(shard)
        return self._first_read(shard, row) if reader is None else reader.read(row)

    def read(self, windows: Sequence[int]) -> list[CachedWindow]:
        """`self[window]` for each of `windows`."""
        return [self[window] for window in windows]

    def _in_use(self, shard: int) -> ShardReader | None:
        """The reader of a shard whose file is open."""
        with self._lock:
            reader = self._readers.get(shard)
            if reader is not None and shard != next(reversed(self._readers)):
                self._readers[shard] = self._readers.pop(shard)
                self._folder.touch(self._path(shard))
            return reader

    def _path(self, shard: int) -> Path:
        return self.directory / self.manifest.shards[shard].name

    def _first_read(self, shard: int, row: int) -> CachedWindow:
        """The first window of a shard is read while the shard is held: from then on its file is open."""
        entry, path = self.manifest.shards[shard], self._path(shard)
        file = File(entry.name, entry.bytes, entry.sha256)
        with self._lock:
            self._let_go()
            with self._folder.holding(path, entry.bytes, lambda part: self._fetch(file, part)):
                reader = ShardReader(read_index(path, self.manifest.identity.encoding), self._prior)
                self._require_announced(shard, reader.index)
                window = reader.read(row)
            self._readers[shard] = reader
        return window

    def _let_go(self) -> None:
        """Close what has left the folder, so that its space comes back, and what is too much."""
        gone = [shard for shard in self._readers if not self._path(shard).exists()]
        for shard in {*gone, *list(self._readers)[: 1 - MAX_OPEN_FILES]}:
            del self._readers[shard]

    def _fetch(self, file: File, part: Path) -> None:
        if self._remote is None or self._remote[0] != os.getpid():
            self._remote = (os.getpid(), open_remote(self._url))
        fetch(self._remote[1], file, part, Transfer("stream", file.bytes, progress=False))

    def _require_announced(self, shard: int, index: ShardIndex) -> None:
        """The index that came by ranges must be the one of the shard that came whole."""
        table = self._tables[shard]
        same = np.array_equal(table["id"], index.window_id) and np.array_equal(table["tokens"], index.token_count)
        if not same:
            do = f"delete {self.directory} and run again"
            raise RunError(f"shard {index.path.name}", expected="the windows its index announced", got="others", do=do)
