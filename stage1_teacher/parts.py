"""Which shards of a corpus one machine captures, and where it writes them: `--part 3/16`.

Parts are counted from 1, shards from 0: part i of n holds the shards s with s % n = i - 1, each under the number it has in
the whole cache. Every part cuts the whole corpus, so all agree on what a shard holds without talking to each other.
Not for joining parts: `python -m cache merge`.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cache.manifest import Manifest
from shared.errors import UsageError

MOST = 99_999  # parts; no cache has more shards
_TEXT = re.compile(r"([0-9]{1,5})/([0-9]{1,5})")
_FOLDER = re.compile(r".*-part-([0-9]{3,5})-of-([0-9]{3,5})")


@dataclass(frozen=True, slots=True)
class Part:
    """Part `number` of `of`, counted from 1."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """'3/16' as typed.

        Raises:
            UsageError: anything else, or a part that there is not.
        """
        match = _TEXT.fullmatch(text.strip())
        part = cls(int(match[1]), int(match[2])) if match else None
        if part is None or not 1 <= part.number <= part.of <= MOST:
            expected = f"I/N, part I of N counted from 1, N at most {MOST}"
            raise UsageError(f"--part {text}", expected=expected, got=text, do="write for example --part 3/16")
        return part

    @classmethod
    def named_by(cls, directory: Path) -> Part | None:
        """The part whose directory this is, by its name; None for a whole cache's."""
        match = _FOLDER.fullmatch(directory.name)
        return cls(int(match[1]), int(match[2])) if match else None

    @classmethod
    def of_rank(cls, environ: Mapping[str, str]) -> Part | None:
        """The part that torchrun's RANK and WORLD_SIZE mean; None where there is one process alone."""
        size = int(environ.get("WORLD_SIZE", "1"))
        return cls(int(environ["RANK"]) + 1, size) if size > 1 and "RANK" in environ else None

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def share(self) -> slice:
        """Its shards among all of them."""
        return slice(self.number - 1, None, self.of)

    def directory(self, cache: Path) -> Path:
        """Where it writes, when the whole cache is `cache`: beside it, and sorted by part."""
        return cache.with_name(f"{cache.name}-part-{self.number:03d}-of-{self.of:03d}")

    def owns(self, shard: int) -> bool:
        """Whether it captures shard `shard`."""
        return shard % self.of == self.number - 1

    def require_shards(self, shards: int) -> None:
        """No part of a corpus with `shards` shards may be empty.

        Raises:
            UsageError: there are more parts than shards.
        """
        require_enough(f"--part {self}", self.of, shards)

    def require_own(self, manifest: Manifest, directory: Path) -> None:
        """A cache that is already finished in `directory` must be this part, not another nor the whole.

        Raises:
            UsageError: it holds other shards.
        """
        whole = -(-manifest.counts["windows"] // manifest.identity.windows_per_shard)
        wanted, found = list(range(whole)[self.share]), [int(shard.name[:5]) for shard in manifest.shards]
        if found != wanted:
            expected = f"the {len(wanted)} shards of {'the whole corpus' if self == WHOLE else f'part {self}'}"
            got = f"{len(found)} others, from shard {found[0]} on"
            raise UsageError(f"cache directory {directory}", expected=expected, got=got, do="use another directory")


WHOLE = Part(1, 1)


def require_enough(what: str, parts: int, shards: int) -> None:
    """No part of a corpus with `shards` shards may be empty.

    Raises:
        UsageError: there are more parts than shards, as `what` asked.
    """
    if parts > shards:
        do = "use fewer parts, or set a smaller windows_per_shard"
        raise UsageError(what, expected=f"at most {shards} parts", got=f"{parts}", do=do)


def work_beside(cache: Path) -> Path:
    """Where a capture of all parts by one command keeps its lock, logs and shape (machines.py)."""
    return cache.with_name(f"{cache.name}-machines")


def parts_beside(cache: Path) -> list[Path]:
    """The directories of parts that stand beside `cache`, whatever they were split into."""
    found = sorted(cache.parent.glob(f"{glob.escape(cache.name)}-part-*-of-*"))
    return [path for path in found if (part := Part.named_by(path)) and part.directory(cache) == path and path.is_dir()]
