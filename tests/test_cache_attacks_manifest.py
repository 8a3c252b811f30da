"""Hostile manifests, one function each: every one ends in one line of refusal before a single shard is opened.

Hostile shards are test_cache_attacks.py's matter.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cache_records import identity, records, write_cache

from cache.inspect import facts, screen
from cache.manifest import MANIFEST, canonical, digest_of, read_manifest
from cache.reader import open_cache
from cache.verify import verify
from shared.errors import RunError, UsageError


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", records(3), identity())
    return tmp_path / "cache"


def manifest_with(cache: Path, change: Callable[[dict[str, Any]], object], *, sealed: bool = True) -> None:
    """Change the manifest and, where its new content allows, make its digest right again."""
    data = json.loads((cache / MANIFEST).read_text())
    change(data)
    if sealed:
        del data["digest"]
        data["digest"] = hashlib.sha256(json_text(data).encode()).hexdigest()
    (cache / MANIFEST).write_text(json_text(data))


def json_text(data: Any) -> str:
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def manifest_refused(cache: Path, message: str) -> None:
    with pytest.raises(RunError, match=message) as caught:
        open_cache(cache)
    assert "\n" not in str(caught.value)
    assert verify(cache)[0].kind == "manifest"


def test_sealing_a_manifest_again_is_what_the_writer_does(cache: Path) -> None:
    before = (cache / MANIFEST).read_bytes()
    manifest_with(cache, lambda data: None)
    assert (cache / MANIFEST).read_bytes() == before
    assert json.loads(before)["digest"] == digest_of(read_manifest(cache))


@pytest.mark.parametrize(
    "name",
    ["../outside/00000-0123456789ab.h5", "/etc/passwd", "00000-0123456789ab.h5\n", "sub/00000-0123456789ab.h5", ""],
)
def test_shard_name_that_leads_elsewhere(cache: Path, name: str) -> None:
    manifest_with(cache, lambda data: data["shards"][0].__setitem__("name", name))
    manifest_refused(cache, r"manifest.json: expected String should match pattern .*, got key shards\.0\.name")


@pytest.mark.parametrize("name", ["../manifest.json", "/etc/passwd", "..", ".hidden", "a/b", "a\\b", "x\x00y"])
def test_tokenizer_file_name_that_leads_elsewhere(cache: Path, name: str) -> None:
    manifest_with(cache, lambda data: data["tokenizer_files"][0].__setitem__("name", name))
    manifest_refused(cache, r"got key tokenizer_files\.0\.name")


def test_unknown_key(cache: Path) -> None:
    manifest_with(cache, lambda data: data.__setitem__("run", "rm"))
    manifest_refused(cache, "expected Extra inputs are not permitted, got key run")


def test_duplicate_key(cache: Path) -> None:
    text = (cache / MANIFEST).read_text()
    (cache / MANIFEST).write_text(text.replace('"version": 3', '"version": 3,\n  "version": 3', 1))
    manifest_refused(cache, "got key 'version' stands twice")


@pytest.mark.parametrize("version", [0, 1, 2, 4, "3", None, [3]])
def test_manifest_of_another_version(cache: Path, version: Any) -> None:
    manifest_with(cache, lambda data: data.__setitem__("version", version))
    manifest_refused(cache, "expected version 3, got .*; use a matching codestill release")


def test_manifest_of_another_format(cache: Path) -> None:
    manifest_with(cache, lambda data: data.__setitem__("format", "numpy"))
    manifest_refused(cache, "expected format codestill-cache")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("key", ["teacher_loss", "free"])
def test_numbers_that_are_none(cache: Path, value: str, key: str) -> None:
    text = (cache / MANIFEST).read_text()
    old, new = ('"teacher_loss": 1.5', f'"teacher_loss": {value}') if key == "teacher_loss" else (
        '"max_length": 16', f'"max_length": {value}')  # fmt: skip
    assert old in text
    (cache / MANIFEST).write_text(text.replace(old, new))
    manifest_refused(cache, "manifest.json: expected")


def test_numbers_without_end(cache: Path) -> None:
    text = (cache / MANIFEST).read_text()
    (cache / MANIFEST).write_text(text.replace('"max_length": 16', '"max_length": ' + "9" * 5000))
    manifest_refused(cache, "manifest.json: expected JSON")


def test_counts_beyond_every_disk(cache: Path) -> None:
    manifest_with(cache, lambda data: data["shards"][0].__setitem__("tokens", 10**4000))
    manifest_refused(cache, r"got key shards\.0\.tokens")


@pytest.mark.parametrize("depth", [300, 900, 3000, 200_000])
def test_manifest_nested_without_end(cache: Path, depth: int) -> None:
    text = (cache / MANIFEST).read_text()
    (cache / MANIFEST).write_text(text.replace('"max_length": 16', '"max_length": ' + "[" * depth + "]" * depth))
    manifest_refused(cache, "manifest.json: expected")


def test_huge_manifest(cache: Path) -> None:
    os.truncate(cache / MANIFEST, 1 << 40)  # sparse: it needs no disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest_refused(cache, "expected at most 33554432 bytes, got 1099511627776")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "kilobytes: it was not read"


def test_manifest_that_is_a_link(cache: Path, tmp_path: Path) -> None:
    (cache / MANIFEST).rename(tmp_path / "elsewhere.json")
    (cache / MANIFEST).symlink_to(tmp_path / "elsewhere.json")
    manifest_refused(cache, "expected a plain file, got a link")


def test_manifest_that_is_a_pipe(cache: Path) -> None:
    (cache / MANIFEST).unlink()
    os.mkfifo(cache / MANIFEST)
    with pytest.raises(UsageError, match=r"expected a cache with manifest\.json"):
        open_cache(cache)


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"null", b"[]", b"{}", b"\x00" * 100, b'"codestill-cache"'])
def test_manifest_that_is_something_else(cache: Path, raw: bytes) -> None:
    (cache / MANIFEST).write_bytes(raw)
    manifest_refused(cache, "manifest.json: expected")


def test_manifest_written_in_another_way(cache: Path) -> None:
    """Equal content in other bytes would make two digests for one cache."""
    data = json.loads((cache / MANIFEST).read_text())
    (cache / MANIFEST).write_text(json.dumps(data, sort_keys=True))
    manifest_refused(cache, "expected the bytes its digest was made of, got changed ones")


def test_manifest_with_a_digest_of_something_else(cache: Path) -> None:
    manifest_with(cache, lambda data: data.__setitem__("teacher_loss", 0.5), sealed=False)
    manifest_refused(cache, "expected the bytes its digest was made of, got changed ones")


def test_shard_named_by_another_hash(cache: Path) -> None:
    manifest_with(cache, lambda data: data["shards"][0].__setitem__("sha256", "0" * 64))
    manifest_refused(cache, "expected shards in order, each named by its hash")


def test_shards_out_of_order(cache: Path) -> None:
    manifest_with(cache, lambda data: data["shards"].reverse())
    manifest_refused(cache, "expected shards in order, each named by its hash")


def test_shard_named_twice(cache: Path) -> None:
    manifest_with(cache, lambda data: data["shards"].insert(0, data["shards"][0]))
    manifest_refused(cache, "expected shards in order, each named by its hash")


def test_tokenizer_file_named_twice(cache: Path) -> None:
    manifest_with(cache, lambda data: data["tokenizer_files"].insert(0, data["tokenizer_files"][0]))
    manifest_refused(cache, "expected tokenizer files in order, each once")


def test_manifest_without_shards(cache: Path) -> None:
    manifest_with(cache, lambda data: data.__setitem__("shards", []))
    manifest_refused(cache, "got key shards")


def test_shard_of_another_encoding(cache: Path) -> None:
    manifest_with(cache, lambda data: data["identity"]["encoding"].__setitem__("value_step", 0.5))
    with pytest.raises(RunError, match="expected the manifest's encoding, got another one"):
        open_cache(cache)


def test_shard_of_another_cache(cache: Path, tmp_path: Path) -> None:
    """Sound, of the same length and encoding, and renamed: only its hash tells, and its counts."""
    manifest = write_cache(tmp_path / "other", records(3, seed=9), identity())
    (tmp_path / "other" / manifest.shards[0].name).replace(cache / read_manifest(cache).shards[0].name)
    assert {problem.kind for problem in verify(cache)} <= {"size", "hash"} and verify(cache)


def test_words_that_command_a_terminal(cache: Path) -> None:
    manifest_with(cache, lambda data: data["identity"]["teacher"].__setitem__("id", "\x1b[2J\x1b]0;owned\x07"))
    manifest = read_manifest(cache)
    assert canonical(manifest.model_dump(mode="json")).isascii()
    assert "\x1b" not in screen(facts(cache, manifest))
    assert "\\x1b[2J" in screen(facts(cache, manifest))


def test_text_that_is_no_unicode(cache: Path) -> None:
    text = (cache / MANIFEST).read_text()
    (cache / MANIFEST).write_text(text.replace('"id": "table"', '"id": "\\ud800"'))
    manifest_refused(cache, "manifest.json: expected")
