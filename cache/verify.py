"""Is every byte of a cache what the capture wrote? Three depths, and a list of problems.

`size` looks at names and sizes, `hash` reads every byte, `deep` also decodes every window and checks what the numbers mean.
A pure comparison: only the command line judges. Not for repairing.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from cache.basis import read_basis, read_prior
from cache.manifest import MANIFEST, TOKENIZER_FOLDER, Manifest, read_manifest
from cache.reader import ShardReader
from cache.record import CachedWindow
from cache.shape import BASIS
from cache.shard import read_index
from shared.errors import RunError, printable
from shared.files import sha256_file
from shared.windows import window_id

Level = Literal["size", "hash", "deep"]
THREADS = 4  # files hashed at once


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with a cache."""

    shard: str
    kind: str
    detail: str


def verify(directory: Path, level: Level = "hash", *, progress: bool = False) -> list[Problem]:
    """Compare a cache with its manifest.

    Args:
        directory: the cache.
        level: how deep.
        progress: show a bar on stderr.
    Returns:
        the problems, none when all is well.
    Raises:
        UsageError: there is no cache at `directory`.
    """
    try:
        manifest = read_manifest(directory)
    except RunError as error:
        return [Problem(MANIFEST, "manifest", str(error))]
    problems = list(_files(directory, manifest))
    bad = {problem.shard for problem in problems}
    names = [shard.name for shard in manifest.shards if shard.name not in bad]
    if level != "size":
        problems += _hashes(directory, manifest, bad, progress)
    if level == "deep":
        problems += _basis(directory, manifest)
        for name in tqdm(names, desc="decode", unit="shard", disable=not progress):
            problems += _contents(directory / name, manifest)
    return problems


def _expected(manifest: Manifest) -> list[tuple[str, int, str]]:
    """(relative name, bytes, sha256) of every file the manifest names."""
    shards = [(shard.name, shard.bytes, shard.sha256) for shard in manifest.shards]
    if (shape := manifest.identity.shape) is not None:
        shards.append((BASIS, shape.bytes, shape.sha256))
    return shards + [(f"{TOKENIZER_FOLDER}/{file.name}", file.bytes, file.sha256) for file in manifest.tokenizer_files]


def _files(directory: Path, manifest: Manifest) -> Iterator[Problem]:
    expected = {name: size for name, size, _ in _expected(manifest)}
    present = {path.relative_to(directory).as_posix(): path for path in _walk(directory)}
    for name, size in expected.items():
        path = present.get(name)
        if path is None:
            yield Problem(name, "missing", "no such file")
        elif path.is_symlink() or not path.is_file():
            yield Problem(name, "missing", "not a plain file")
        elif path.stat().st_size != size:
            yield Problem(name, "size", f"expected {size} bytes, got {path.stat().st_size}")
    for name in sorted(present.keys() - expected.keys() - {MANIFEST}):
        yield Problem(printable(name), "unknown", "a file the manifest does not name")


def _walk(directory: Path) -> Iterator[Path]:
    """Everything below but plain folders; links are named, never followed."""
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _hashes(directory: Path, manifest: Manifest, bad: set[str], progress: bool) -> Iterator[Problem]:
    files = [row for row in _expected(manifest) if row[0] not in bad]
    with ThreadPoolExecutor(THREADS) as pool:  # hashing needs no interpreter lock
        found = pool.map(lambda row: _hash(directory / row[0]), files)
        bar = tqdm(found, desc="hash", unit="file", total=len(files), disable=not progress)
        for (name, _, sha256), got in zip(files, bar, strict=True):
            if isinstance(got, OSError):  # a dying disk
                yield Problem(name, "unreadable", str(got.strerror))
            elif got != sha256:
                yield Problem(name, "hash", f"expected sha256 {sha256[:12]}..., got {got[:12]}...")


def _hash(path: Path) -> str | OSError:
    try:
        return sha256_file(path)
    except OSError as error:
        return error


def _basis(directory: Path, manifest: Manifest) -> Iterator[Problem]:
    if manifest.identity.shape is not None:
        try:
            read_basis(directory, manifest.identity.shape, manifest.vocab_size)
        except RunError as error:
            yield Problem(BASIS, "structure", str(error))


def _contents(path: Path, manifest: Manifest) -> Iterator[Problem]:
    try:
        prior = read_prior(path.parent, manifest.identity.shape, manifest.vocab_size)
        reader = ShardReader(read_index(path, manifest.identity.encoding), prior)
    except RunError as error:
        yield Problem(path.name, "structure", str(error))
        return
    entry = next(shard for shard in manifest.shards if shard.name == path.name)
    windows, tokens, entries = (
        len(reader.index),
        int(reader.index.token_count.sum()),
        int(reader.index.entry_count.sum()),
    )
    if (windows, tokens, tokens - windows, entries) != (entry.windows, entry.tokens, entry.positions, entry.entries):
        yield Problem(path.name, "counts", f"manifest says {entry.windows} windows, {entry.tokens} tokens")
    for number in range(len(reader.index)):
        try:
            window = reader.read(number)
        except RunError as error:
            yield Problem(path.name, "window", str(error))
        else:
            yield from (
                Problem(path.name, "meaning", f"window {window.id}: {what}") for what in _nonsense(window, manifest)
            )


def _nonsense(window: CachedWindow, manifest: Manifest) -> Iterator[str]:
    """What no capture writes, though the format could hold it."""
    if window_id(window.tokens, window.prompt_tokens) != window.id:
        yield "its tokens do not hash to its id"
    row_E = np.repeat(np.arange(len(window.head_sizes_P)), window.head_sizes_P)
    pairs_E = row_E.astype(np.int64) * manifest.vocab_size + window.head_ids_E
    if len(np.unique(pairs_E)) != len(pairs_E):
        yield "an id stands twice in one head"
