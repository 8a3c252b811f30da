"""Writing a cache: shard after shard, each whole or absent, and the manifest last.

A crash anywhere loses at most the shard that was in memory; the same capture run again goes on behind the last sealed one
and ends with the same bytes. Work in progress lives in DIR/.capture, which is gone once the manifest stands.
Not for what goes into a window: stage 1 decides that.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.lock import only_one, touch
from cache.manifest import (
    MANIFEST,
    TOKENIZER_FOLDER,
    FileEntry,
    Identity,
    Manifest,
    ShardEntry,
    canonical,
    manifest_text,
    read_manifest,
)
from cache.record import CachedWindow
from cache.shard import ShardIndex, read_index, shard_bytes
from shared.errors import RunError, UsageError
from shared.files import atomic_write, require_fresh_directory, sha256_file, sync_directory

PROGRESS_FOLDER = ".capture"
PLAN, LOCK = "plan.json", "lock"
SHARD_NAME = re.compile(r"^([0-9]{5})-([0-9a-f]{12})\.h5$")


class CacheWriter:
    """The open end of a cache that is being captured. Made by `writing`."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        self.directory, self.identity = directory, identity
        self.sealed: dict[int, Path] = {}
        for path in sorted(directory.iterdir()):
            if match := SHARD_NAME.match(path.name):
                self.sealed[int(match[1])] = _whole(path, match[2])

    def index(self, number: int) -> ShardIndex:
        """The index of an already sealed shard."""
        return read_index(self.sealed[number], self.identity.encoding)

    def seal(self, number: int, windows: Sequence[CachedWindow], summary: dict[str, Any]) -> None:
        """Write shard `number` under its final name, atomically.

        Args:
            number: place in the corpus: windows [number * windows_per_shard, ...).
            windows: its windows, in corpus order.
            summary: what `finish` needs of them (JSON values).
        Raises:
            OSError: the disk is full; nothing is left of this shard.
        """
        raw = shard_bytes(windows, self.identity.encoding, summary)
        path = self.directory / f"{number:05d}-{hashlib.sha256(raw).hexdigest()[:12]}.h5"
        atomic_write(path, raw)
        self.sealed[number] = path
        touch(self.directory / PROGRESS_FOLDER / LOCK)

    def finish(self, tokenizer: Path, **report: Any) -> Manifest:
        """Move the tokenizer in, write the manifest, and remove the traces of the work.

        Args:
            tokenizer: a folder inside DIR/.capture with the teacher's tokenizer files.
            report: the manifest's counts, fidelity, teacher_loss and made_with.
        """
        final = self.directory / TOKENIZER_FOLDER
        shutil.rmtree(final, ignore_errors=True)
        tokenizer.rename(final)
        sync_directory(self.directory)
        shards = tuple(_entry(self.index(number)) for number in sorted(self.sealed))
        files = tuple(_file_entry(path) for path in sorted(final.iterdir()))
        manifest = Manifest(identity=self.identity, shards=shards, tokenizer_files=files, **report)
        atomic_write(self.directory / MANIFEST, manifest_text(manifest))
        return manifest


def _whole(path: Path, start_of_hash: str) -> Path:
    if not sha256_file(path).startswith(start_of_hash):
        raise RunError(
            f"shard {path.name}", expected="the hash in its name", got="another", do="delete it and run again"
        )
    return path


def _entry(index: ShardIndex) -> ShardEntry:
    return ShardEntry(
        name=index.path.name,
        bytes=index.path.stat().st_size,
        sha256=sha256_file(index.path),
        windows=len(index),
        tokens=int(index.token_count.sum()),
        positions=int(index.token_count.sum()) - len(index),
        entries=int(index.entry_count.sum()),
    )


def _file_entry(path: Path) -> FileEntry:
    return FileEntry(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path))


def finished(directory: Path, identity: Identity) -> Manifest | None:
    """The manifest, if this very capture has already ended here; None if there is none yet.

    Raises:
        UsageError: another cache stands here; names the first differing fact.
    """
    if not (directory / MANIFEST).is_file():
        return None
    manifest = read_manifest(directory)
    _require_same_plan(directory, manifest.identity.model_dump(mode="json"), identity)
    shutil.rmtree(directory / PROGRESS_FOLDER, ignore_errors=True)  # a crash between manifest and clean-up
    return manifest


@contextmanager
def writing(directory: Path, identity: Identity) -> Iterator[CacheWriter]:
    """Begin a cache in `directory`, or go on with the one whose capture was interrupted there.

    Raises:
        UsageError: the directory holds something else, another capture's shards, or a capture at work.
        RunError: a sealed shard is damaged.
    """
    present = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    ours = [name for name in present if SHARD_NAME.match(name)]
    require_fresh_directory(directory, allowed=[*ours, PROGRESS_FOLDER, TOKENIZER_FOLDER], what="cache directory")
    progress = directory / PROGRESS_FOLDER
    progress.mkdir(exist_ok=True)
    with only_one(progress / LOCK):
        _keep_plan(directory, identity, bool(ours))
        for path in directory.glob("*.tmp"):
            path.unlink()  # a shard that a crash left half-written
        yield CacheWriter(directory, identity)
    if (directory / MANIFEST).is_file():
        shutil.rmtree(progress)


def _keep_plan(directory: Path, identity: Identity, begun: bool) -> None:
    plan = directory / PROGRESS_FOLDER / PLAN
    if not begun:  # nothing is sealed yet, so a plan that failed may still be changed
        atomic_write(plan, canonical(identity.model_dump(mode="json")))
    elif not plan.is_file():
        what = f"cache directory {directory}"
        raise UsageError(what, expected=f"a {PLAN} beside the shards", got="none", do="use a new directory")
    else:
        _require_same_plan(directory, _read_plan(plan), identity)


def _read_plan(plan: Path) -> Any:
    return Identity.model_validate_json(plan.read_bytes()).model_dump(mode="json")


def _require_same_plan(directory: Path, there: Any, identity: Identity) -> None:
    differing = differences(there, identity.model_dump(mode="json"))
    if differing:
        key, was, now = differing[0]
        more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
        what = f"cache directory {directory}, {key}{more}"
        raise UsageError(what, expected=str(was), got=str(now), do="use the same settings, or another directory")


def differences(first: Any, second: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted key, first's value, second's value) wherever two JSON values differ."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return [] if first == second else [(key or "value", first, second)]
    names = sorted(set(first) | set(second))
    return [
        row
        for name in names
        for row in differences(first.get(name), second.get(name), f"{key}.{name}" if key else name)
    ]
