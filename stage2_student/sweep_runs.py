"""The runs of a sweep: each a train config with a folder of its own, named by what it is; and the sweep's ledger.

    OUT/<12 hex>/           the run's folder, as `train` leaves it
    OUT/configs/<12 hex>.yaml   its resolved config; `train` takes it too
    OUT/logs/<12 hex>.log   what it said
    OUT/ledger.jsonl        what a later sweep in the same folder must know: trials drawn, rungs reached, runs let on, ends

Not for which runs there are (sweep_config.py, search.py) and not for running them (sweep.py).
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from cache.manifest import Manifest, canonical, read_manifest
from cache.places import open_remote
from cache.remote_manifest import manifest_bytes, parsed
from cache.subset import choose
from shared.files import append_jsonl, atomic_write, repair_jsonl
from shared.jobs import Job
from stage2_student.config import TrainConfig
from stage2_student.run_folder import RUN
from stage2_student.sweep_config import Base, Overrides, label, resolve

METRICS = "metrics.jsonl"  # watch.METRICS, without transformers
Status = Literal["new", "begun", "finished", "stopped", "failed"]
"""Stopped: paused by halving. Failed: its process ended before the run did, in this sweep; another sweep repeats it."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run.

    Attributes:
        id: 12 hex characters of its settings and its caches' content; the name of its folder.
        overrides: what the sweep says about it.
        config: resolved, `out` its folder.
    """

    id: str
    overrides: Overrides
    config: TrainConfig

    @property
    def folder(self) -> Path:
        return self.config.out

    @property
    def label(self) -> str:
        return label(self.overrides)

    @property
    def log(self) -> Path:
        return self.folder.parent / "logs" / f"{self.id}.log"

    def state(self) -> Status:
        """What its folder says."""
        return {"finished": "finished", None: "new"}.get(self.record().get("status"), "begun")  # type: ignore[return-value]

    def record(self) -> dict[str, Any]:
        """run.json; empty where there is none yet."""
        path = self.folder / RUN
        found: dict[str, Any] = json.loads(path.read_bytes()) if path.is_file() else {}
        return found

    def rows(self, split: str = "validation") -> list[dict[str, Any]]:
        """Its rows of metrics.jsonl, oldest first; a row that is being written does not count yet."""
        path = self.folder / METRICS
        whole = path.read_bytes().rpartition(b"\n")[0] if path.is_file() else b""
        return [row for row in map(json.loads, whole.splitlines()) if row["split"] == split]

    def last_line(self) -> str:
        """The last thing it said."""
        said = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.is_file() else []
        return next((line.strip() for line in reversed(said) if line.strip()), "nothing was said")

    def job(self) -> Job:
        """The process that trains it. Its resolved config is written anew: the sweep's folder may have moved."""
        path = self.folder.parent / "configs" / f"{self.id}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        said = self.config.model_dump(mode="json", exclude_unset=True)  # defaults stay what nobody said
        atomic_write(path, yaml.safe_dump(said, sort_keys=False, allow_unicode=True))
        return Job(self.id, (sys.executable, "-m", "stage2_student", "train", str(path)), self.log, Path.cwd())


def make_run(base: Base, overrides: Overrides, out: Path) -> Run:
    """A checked run.

    Raises:
        UsageError: its config is wrong, or its cache is not there.
        RunError: a cache's manifest is damaged.
    """
    config = resolve(base, overrides, out)
    name = identity(config)
    return Run(name, overrides, config.model_copy(update={"out": out / name}))


def identity(config: TrainConfig) -> str:
    """12 hex characters of what a resumed run must share: every setting that changes what is learnt, and the caches' content.

    Where the caches lie, which device, how many workers: not in it, so a sweep's folder may be moved.
    """
    validation = config.validation
    scored_on = cache_of(validation.cache).cache_id if validation.cache is not None else validation.fraction
    taught_by = cache_of(config.cache, config.shards).cache_id
    whole = canonical({"settings": config.settings(), "cache": taught_by, "validation": scored_on})
    return hashlib.sha256(whole.encode()).hexdigest()[:12]


@cache
def cache_of(place: Path | str, shards: tuple[int, ...] | None = None) -> Manifest:
    """The manifest of a cache anywhere; read once a process."""
    if isinstance(place, Path):
        return choose(read_manifest(place), shards)
    remote = open_remote(place)
    return choose(parsed(manifest_bytes(remote), remote.name), shards)


class Ledger:
    """The sweep's own memory: rows that are flushed as they come; the last one may be torn by a crash."""

    def __init__(self, out: Path) -> None:
        self._path = out / "ledger.jsonl"

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows so far."""
        whole = self._path.read_bytes().rpartition(b"\n")[0] if self._path.is_file() else b""
        return [json.loads(row) for row in whole.splitlines()]

    def repair(self) -> None:
        """Cut off what a crash left torn; for whoever holds the sweep's lock."""
        repair_jsonl(self._path)

    def note(self, row: dict[str, Any]) -> None:
        """Add a row."""
        append_jsonl(self._path, [row])
