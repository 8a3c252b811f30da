"""How far a capture is, from another terminal: plain files, nothing written, nothing asked of the capture.

The capture leaves its counts in DIR/.capture/progress.json; sealed shards and the lock's heartbeat speak for themselves.
Not for what is in a finished cache: `python -m cache inspect`.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cache.lock import Holder, holder_of
from cache.manifest import MANIFEST, read_manifest
from cache.writer import LOCK, PROGRESS_FOLDER, SHARD_NAME
from shared.errors import UsageError
from stage1_teacher.parts import Part, parts_beside, work_beside

FILE = "progress.json"
PERIOD = 2.0  # seconds between two writes while a shard is read


@dataclass(frozen=True)
class Plan:
    """What there is to capture; None where a stream does not tell.

    Attributes:
        part: "3/16"; None for the whole corpus.
        shards, windows, tokens: of this part.
    """

    part: str | None
    shards: int | None
    windows: int | None
    tokens: int | None


class Progress:
    """The capture's side: keeps progress.json true. Counts come from the reading and the sealing thread.

    Args:
        work: the capture's folder for work in progress.
        windows, tokens: in shards that earlier runs sealed.
    """

    def __init__(self, work: Path, plan: Plan, windows: int, tokens: int) -> None:
        self._path, self._plan, self._guard = work / FILE, plan, threading.Lock()
        self._windows, self._tokens, self._earlier = windows, tokens, tokens
        self._read = 0  # tokens of this run, sealed or not
        self._began = self._written = time.monotonic()
        self._write()

    def sealed(self, windows: int, tokens: int) -> None:
        """A shard of so many windows and tokens is on the disk."""
        with self._guard:
            self._windows += windows
            self._tokens += tokens
            self._write()

    def read(self, tokens: int) -> None:
        """The teacher has read so many tokens more."""
        with self._guard:
            self._read += tokens
            if time.monotonic() - self._written >= PERIOD:
                self._write()

    def _write(self) -> None:
        """Whole or not at all for a reader; not flushed to the disk, since after a power cut nobody needs it."""
        self._written = time.monotonic()
        facts = {
            **asdict(self._plan),
            "sealed_windows": self._windows,
            "sealed_tokens": self._tokens,
            "earlier_tokens": self._earlier,
            "read_tokens": self._read,
            "seconds": self._written - self._began,
            "time": time.time(),
        }
        draft = self._path.with_suffix(".tmp")
        draft.write_text(json.dumps(facts))
        draft.replace(self._path)


def read_status(directory: Path) -> dict[str, Any]:
    """How far the capture in `directory` is; where only its parts are there yet, beside it, how far they are together.

    Returns:
        directory; state ("at work", "stopped", "finished"); part; shards, windows, tokens sealed, and each of the three with
        `_in_all`; read_tokens by the run at work or the last one; tokens_per_second of that run; seconds_left; holder (host,
        pid, seconds since its last heartbeat) where a process holds the lock. None where nobody knows. Of parts together: the
        sums, state "captured" where all have ended, and `parts`, the same of each.
    Raises:
        UsageError: no capture there.
        RunError: a damaged manifest.
    """
    if (directory / MANIFEST).is_file():
        return _finished(directory)
    work = directory / PROGRESS_FOLDER
    beside, together = parts_beside(directory), work_beside(directory) / PROGRESS_FOLDER
    if not work.is_dir() and (beside or together.is_dir()):
        return _joint(directory, [read_status(path) for path in beside if _begun(path)], holder_of(together / LOCK))
    if not work.is_dir():
        got = "a directory without one" if directory.is_dir() else "no such directory"
        do = "check the path; a capture makes its directory once the teacher is open and the tail's shape is fitted"
        raise UsageError(str(directory), expected="a capture", got=got, do=do)
    facts, holder = _progress(work), holder_of(work / LOCK)
    alive = holder is not None and holder.alive
    if not alive and (directory / MANIFEST).is_file():  # it ended while we looked
        return _finished(directory)
    rate, left = _pace(facts, alive)
    return {
        "directory": str(directory),
        "state": "at work" if alive else "stopped",
        "part": facts.get("part") or _part(directory),
        "shards": sealed_in(directory)[0],
        "shards_in_all": facts.get("shards"),
        "windows": facts.get("sealed_windows", 0),
        "windows_in_all": facts.get("windows"),
        "tokens": facts.get("sealed_tokens", 0),
        "tokens_in_all": facts.get("tokens"),
        "read_tokens": facts.get("read_tokens", 0),
        "tokens_per_second": rate,
        "seconds_left": left,
        "holder": _facts_of(holder) if alive and holder else None,
    }


def sealed_in(directory: Path) -> tuple[int, int | None]:
    """(Shards sealed, shards in all where that is known); none where the capture had not come to its directory yet."""
    names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
    return sum(SHARD_NAME.fullmatch(name) is not None for name in names), _progress(directory / PROGRESS_FOLDER).get(
        "shards"
    )


def tokens_read(directory: Path) -> int:
    """Tokens of the capture in `directory` that need not be read again, and those that were read since; 0 before it began."""
    if (directory / MANIFEST).is_file():
        return read_manifest(directory).total("tokens")
    facts = _progress(directory / PROGRESS_FOLDER)
    return int(facts.get("earlier_tokens", 0) + facts.get("read_tokens", 0))


def _begun(directory: Path) -> bool:
    return (directory / MANIFEST).is_file() or (directory / PROGRESS_FOLDER).is_dir()


def _joint(directory: Path, parts: list[dict[str, Any]], holder: Holder | None) -> dict[str, Any]:
    """Parts together. Those that have not begun tell no totals, so then nobody knows these; `holder` captures all of them."""
    of = max((int(part["part"].split("/")[1]) for part in parts), default=0)
    states = {part["state"] for part in parts}
    waiting = not parts or len(parts) < of
    rates = [part["tokens_per_second"] for part in parts if part["state"] == "at work" and part["tokens_per_second"]]
    found: dict[str, Any] = {
        "directory": str(directory),
        "part": None,
        "holder": _facts_of(holder) if holder is not None and holder.alive else None,
        "parts": parts,
        "parts_in_all": of,
    }
    found["state"] = "at work" if found["holder"] or "at work" in states else "stopped"
    if states == {"finished"} and not waiting and not found["holder"]:
        found["state"] = "captured"
    for name in ("shards", "windows", "tokens"):
        totals = [part[f"{name}_in_all"] for part in parts]
        found[name] = sum(part[name] for part in parts)
        found[f"{name}_in_all"] = None if waiting or None in totals else sum(totals)
    found["read_tokens"] = sum(part["read_tokens"] for part in parts)
    found["tokens_per_second"] = sum(rates) or None
    found["seconds_left"] = max((part["seconds_left"] or 0.0 for part in parts), default=0.0)
    if waiting or any(part["seconds_left"] is None for part in parts):
        found["seconds_left"] = None
    return found


def _finished(directory: Path) -> dict[str, Any]:
    manifest = read_manifest(directory)
    counts = {"shards": len(manifest.shards), "windows": manifest.total("windows"), "tokens": manifest.total("tokens")}
    return {
        "directory": str(directory),
        "state": "finished",
        "part": _part(directory),
        **counts,
        **{f"{name}_in_all": count for name, count in counts.items()},
        "read_tokens": 0,
        "tokens_per_second": None,
        "seconds_left": 0.0,
        "holder": None,
    }


def _part(directory: Path) -> str | None:
    part = Part.named_by(directory.resolve())
    return None if part is None else str(part)


def _progress(work: Path) -> dict[str, Any]:
    """What the capture last wrote; nothing where it has not come so far, or a power cut tore it."""
    try:
        facts = json.loads((work / FILE).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _pace(facts: dict[str, Any], alive: bool) -> tuple[float | None, float | None]:
    """(tokens/s of the last run, seconds that are left at this pace); None where it has not begun, or has stopped."""
    if not facts.get("read_tokens") or not facts.get("seconds"):
        return None, None
    rate = facts["read_tokens"] / facts["seconds"]
    if facts["tokens"] is None or not alive:
        return rate, None
    waiting = facts["tokens"] - facts["earlier_tokens"] - facts["read_tokens"]
    return rate, max(0.0, waiting / rate - max(0.0, time.time() - facts["time"]))


def _facts_of(holder: Holder) -> dict[str, Any]:
    return {"host": holder.host, "pid": holder.pid, "heartbeat_seconds_ago": holder.silent}


def screen(found: dict[str, Any]) -> str:
    """The same for a reader, three lines; and one for each part."""
    part = f", part {found['part']}" if found["part"] else ""
    counts = "; ".join(_count(found, name) for name in ("shards", "windows", "tokens"))
    return (
        f"{found['directory']}: {found['state']}{_who(found)}{part}\nsealed: {counts}\n{_rest(found)}{_parts_of(found)}"
    )


def _parts_of(found: dict[str, Any]) -> str:
    rows = [(part, _count(part, "shards"), _count(part, "tokens")) for part in found.get("parts", [])]
    return "".join(
        f"\n  {part['part']}: {part['state']}{_who(part)}, {shards}, {tokens}" for part, shards, tokens in rows
    )


def _who(found: dict[str, Any]) -> str:
    holder = found["holder"]
    if holder is None:
        return ""
    return f" (process {holder['pid']} on {holder['host']}, heartbeat {holder['heartbeat_seconds_ago']:.0f} s ago)"


def _count(found: dict[str, Any], name: str) -> str:
    total = found[f"{name}_in_all"]
    return f"{found[name]:,} {name}" if total is None else f"{found[name]:,} of {total:,} {name}"


def _rest(found: dict[str, Any]) -> str:
    if found["state"] == "finished":
        return f"next: python -m cache inspect {found['directory']}"
    if found["state"] == "captured":
        directory, of = found["directory"], found["parts_in_all"]
        return f"next: python -m cache merge {directory}-part-*-of-{of:03d} --out {directory}"
    if found["state"] == "stopped":
        return "run the same capture command again: it goes on behind the sealed shards"
    if found["tokens_per_second"] is None:
        return "no token read yet"
    left = "" if found["seconds_left"] is None else f"; about {_duration(found['seconds_left'])} left"
    return f"{found['tokens_per_second']:,.0f} tokens/s{left}"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{seconds:.0f} s"
