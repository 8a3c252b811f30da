"""manifest.json: what a cache is, who taught it, and the name, size and hash of every file in it.

Written last and atomically: a directory without it is not a cache. Self-describing: students never repeat what it knows.
Its bytes are canonical (one way to write it), and it holds its own digest, so any changed byte is found.
Not for reading windows (cache/reader.py) nor for judging the files it names (cache/verify.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, StringConstraints, ValidationError, model_validator

from cache.encoding import Encoding
from cache.shape import TailShape
from shared.config import StrictModel
from shared.errors import RunError, UsageError
from shared.tokenizer import TokenizerFingerprint

MANIFEST = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
MAX_MANIFEST_BYTES = 1 << 25  # 100,000 shards; JSON of this size needs at most about 700 MB to parse

MOST = 1 << 53  # JSON numbers beyond this are not the same everywhere

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ShardName = Annotated[str, StringConstraints(pattern=r"^[0-9]{5}-[0-9a-f]{12}\.h5$")]
TokenizerFileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]
"""Plain names only: nothing in a manifest can point outside the cache's directory."""


class Teacher(StrictModel):
    """Who taught. `weights` tells two teachers of one name apart."""

    id: str = Field(description="hub id, or the name of a local directory")
    revision: str | None = Field(description="hub commit; null for a local directory")
    weights: str = Field(description="sha256 over the safetensors files' names and hashes, or the hub commit")
    architecture: str = Field(description="model class")
    parameters: int = Field(description="count", ge=1)
    dtype: str = Field(description="of the weights while capturing")
    quantisation: str | None = Field(description="how the weights were quantised; null when they were not")


class Selection(StrictModel):
    """Which tokens entered the head."""

    k: int = Field(description="most ids a position's head may hold", ge=1, le=255)
    top_p: float = Field(description="the head ends where its mass at T = 1 reaches this", gt=0, le=1)


class Identity(StrictModel):
    """Everything that must be equal for two shards to belong to one cache."""

    teacher: Teacher
    tokenizer: TokenizerFingerprint
    corpus: dict[str, JsonValue] = Field(description="where the documents came from; no local paths")
    windows: dict[str, JsonValue] = Field(description="how documents were cut")
    selection: Selection
    encoding: Encoding
    shape: TailShape | None = Field(default=None, description="tail shape; null where only the tail's mass is kept")
    windows_per_shard: int = Field(description="windows in every shard but the last", ge=1)

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Identity:
        directions = self.shape.directions if self.shape else 0
        if (self.selection.k, directions) != (self.encoding.k, self.encoding.directions):
            raise ValueError("selection, shape and encoding of the same k and directions")
        return self

    @model_validator(mode="after")
    def _one_shape(self) -> Identity:
        directions, step = (self.shape.directions, self.shape.step) if self.shape else (0, self.encoding.coord_step)
        if (directions, step) != (self.encoding.directions, self.encoding.coord_step):
            raise ValueError("an encoding with the tail shape's directions and step")
        return self


class ShardEntry(StrictModel):
    """One shard: a file whose name starts with its place in the corpus and holds the start of its hash."""

    name: ShardName
    bytes: int = Field(description="file size", ge=1, le=MOST)
    sha256: Sha256
    windows: int = Field(ge=1, le=MOST, description="count")
    tokens: int = Field(ge=2, le=MOST, description="count")
    positions: int = Field(ge=1, le=MOST, description="count; each is one next-token distribution")
    entries: int = Field(ge=1, le=MOST, description="head entries of all positions")


class FileEntry(StrictModel):
    """One file of the tokenizer folder."""

    name: TokenizerFileName
    bytes: int = Field(ge=0, le=MOST, description="file size")
    sha256: Sha256


class Fidelity(StrictModel):
    """What the record keeps of the teacher at one temperature, measured while the full logits were still there.

    Means over a random sample of positions; `_max` is the worst of them. The rebuilt distribution has the stored head, the
    stored tail mass, and within the tail the stored shape (an even tail where none is kept).
    """

    temperature: float
    positions: int = Field(description="sampled")
    kept_mass: float = Field(description="teacher's mass in the head")
    tail_mass_error: float = Field(description="|rebuilt - true| tail probability, mean")
    tail_mass_error_max: float
    kl: float = Field(description="KL(teacher || rebuilt), nats")
    total_variation: float
    gradient_angle: float = Field(
        description="degrees between the gradients of a student's logits under teacher and rebuilt, mean; the student is the "
        "teacher at twice the temperature"
    )
    gradient_norm_ratio: float = Field(description="length of the rebuilt gradient over that of the true one, mean")
    gradient_rms: float = Field(
        description="root mean square error of the gradient over the vocabulary, relative to the true one's, mean"
    )


class Manifest(StrictModel):
    """The whole of manifest.json but for its digest."""

    format: Literal["codestill-cache"] = "codestill-cache"
    version: Literal[3] = 3
    identity: Identity
    counts: dict[str, int] = Field(description="documents read, windows, and documents dropped by reason")
    shards: tuple[ShardEntry, ...] = Field(min_length=1)
    tokenizer_files: tuple[FileEntry, ...]
    fidelity: tuple[Fidelity, ...]
    teacher_loss: float = Field(description="teacher's own mean loss on this text, nats a token")
    made_with: dict[str, str] = Field(description="library versions")

    @property
    def vocab_size(self) -> int:
        """Entries of the teacher's head, padding included."""
        return self.identity.encoding.vocab_size

    @property
    def teacher(self) -> Teacher:
        """Who taught."""
        return self.identity.teacher

    @property
    def tokenizer(self) -> TokenizerFingerprint:
        """What the text was cut with."""
        return self.identity.tokenizer

    @property
    def k(self) -> int:
        """Most ids a head may hold."""
        return self.identity.selection.k

    @property
    def cache_id(self) -> str:
        """16 hex characters that name this content."""
        return digest_of(self)[:16]

    @property
    def size(self) -> int:
        """Bytes of all that a student reads: the shards, and the tail shape's basis where there is one."""
        return self.total("bytes") + (self.identity.shape.bytes if self.identity.shape else 0)

    def total(self, field: str) -> int:
        """Sum of a shard entry's field over all shards."""
        return sum(int(getattr(shard, field)) for shard in self.shards)


def canonical(value: Any) -> str:
    """JSON with sorted keys and two spaces: the only way a manifest is written."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"


def digest_of(manifest: Manifest) -> str:
    """sha256 of the canonical manifest without its digest."""
    return hashlib.sha256(canonical(manifest.model_dump(mode="json")).encode()).hexdigest()


def manifest_text(manifest: Manifest) -> str:
    """The bytes of manifest.json."""
    return canonical({**manifest.model_dump(mode="json"), "digest": digest_of(manifest)})


def read_manifest(directory: Path) -> Manifest:
    """Open a cache directory's manifest.

    Raises:
        UsageError: no such directory, or no manifest in it (not a cache, or a capture that has not finished).
        RunError: damaged, of another version, or with anything in it that a manifest never has.
    """
    path = directory / MANIFEST
    if not path.is_file():
        raise UsageError(
            f"{directory}", expected=f"a cache with {MANIFEST}", got=_instead(directory), do="check the path"
        )
    if path.is_symlink():
        raise _damaged(path, "a plain file", "a link")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise _damaged(path, f"at most {MAX_MANIFEST_BYTES} bytes", str(path.stat().st_size))
    raw = path.read_bytes()
    try:
        data = json.loads(raw, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        return _checked(data, raw, path)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "JSON without duplicate keys", str(error)[:200]) from None


def _checked(data: Any, raw: bytes, path: Path) -> Manifest:
    if not isinstance(data, dict) or data.get("format") != "codestill-cache":
        raise _damaged(path, "format codestill-cache", "another format")
    if data.get("version") != 3:
        raise RunError(
            str(path), expected="version 3", got=repr(data.get("version"))[:40], do="use a matching codestill release"
        )
    digest = data.pop("digest", None)
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(path, first["msg"], f"key {'.'.join(map(str, first['loc']))}") from None
    if digest != digest_of(manifest) or manifest_text(manifest).encode() != raw:
        raise _damaged(path, "the bytes its digest was made of", "changed ones")
    names = [shard.name for shard in manifest.shards]
    if names != sorted(set(names)) or any(shard.sha256[:12] != shard.name[6:18] for shard in manifest.shards):
        raise _damaged(path, "shards in order, each named by its hash", "others")
    files = [file.name for file in manifest.tokenizer_files]
    if files != sorted(set(files)):
        raise _damaged(path, "tokenizer files in order, each once", "others")
    return manifest


def _no_duplicates(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key '{key}' stands twice")
        found[key] = value
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _damaged(path: Path, expected: str, got: str) -> RunError:
    return RunError(str(path), expected=expected, got=got, do="get the cache again; nothing of it was used")


def _instead(directory: Path) -> str:
    if not directory.is_dir():
        return "no such directory"
    if (directory / ".capture").is_dir():
        return "a capture that has not finished (run the same capture command again)"
    return "a directory without one"
