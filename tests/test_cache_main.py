"""`python -m cache` as people and scripts call it: keys, exit codes, one line for an error, and never torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cache_records import files_of, identity, records, write_cache

from cache.manifest import read_manifest
from cache.writer import writing

ROOT = Path(__file__).resolve().parent.parent


def call(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "cache", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment,
        check=False,
    )


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    write_cache(tmp_path / "cache", records(5), identity())
    return tmp_path / "cache"


def test_inspect_json_has_what_scripts_rely_on(cache: Path) -> None:
    done = call("inspect", str(cache), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found, manifest = json.loads(done.stdout), read_manifest(cache)
    promised = {"windows", "tokens", "bytes", "bytes_per_token", "k", "top_p", "vocab_size", "teacher", "tokenizer"}
    assert promised | {"shards", "fidelity"} <= set(found)
    windows = records(5)
    assert found["windows"] == 5
    assert found["tokens"] == sum(len(window.tokens) for window in windows)
    assert found["ids_per_position"] == pytest.approx(
        sum(len(window.head_ids_E) for window in windows) / sum(len(window.gold_P) for window in windows)
    )
    sizes = {name: len(raw) for name, raw in files_of(cache).items()}
    assert found["bytes"] == sum(size for name, size in sizes.items() if name.endswith(".h5"))
    assert found["tokenizer_bytes"] == sum(size for name, size in sizes.items() if name.startswith("tokenizer/"))
    assert found["bytes_per_token"] == found["bytes"] / found["tokens"]
    assert found["cache_id"] == manifest.cache_id
    assert [shard["name"] for shard in found["shards"]] == [shard.name for shard in manifest.shards]


def test_inspect_for_people_fits_a_screen(cache: Path) -> None:
    done = call("inspect", "cache", cwd=cache.parent)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 200
    assert any(line.startswith("windows ") and "5 of at most 16 tokens" in line for line in lines)


@pytest.mark.parametrize("level", ["size", "hash", "deep"])
def test_verify_sound(cache: Path, level: str) -> None:
    done = call("verify", str(cache), "--level", level, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {"ok": True, "level": level, "problems": []}


def test_verify_damaged(cache: Path) -> None:
    name = read_manifest(cache).shards[1].name
    with (cache / name).open("r+b") as file:
        file.seek(3000)
        byte = file.read(1)
        file.seek(3000)
        file.write(bytes([byte[0] ^ 1]))
    done = call("verify", str(cache), "--json")
    assert (done.returncode, done.stderr) == (1, "")
    found = json.loads(done.stdout)
    assert found["ok"] is False
    assert [(set(row), row["shard"], row["kind"]) for row in found["problems"]] == [
        ({"shard", "kind", "detail"}, name, "hash")
    ]
    people = call("verify", str(cache))
    assert people.returncode == 1
    assert people.stdout.splitlines()[0].startswith(f"{name}: hash: expected sha256 ")
    assert people.stdout.splitlines()[1] == f"{cache}: 1 problems (hash)"


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_no_such_directory(tmp_path: Path, verb: str) -> None:
    done = call(verb, str(tmp_path / "nowhere"))
    line = (
        f"error: {tmp_path / 'nowhere'}: expected a cache with manifest.json, got no such directory; check the path\n"
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.parametrize("verb", ["inspect", "verify"])
def test_unfinished_capture(tmp_path: Path, verb: str) -> None:
    with writing(tmp_path / "cache", identity()) as writer:
        writer.seal(0, records(2), {})
    done = call(verb, str(tmp_path / "cache"))
    got = "got a capture that has not finished (run the same capture command again)"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {tmp_path / 'cache'}: expected a cache with manifest.json, {got}; check the path\n"


def test_inspect_of_a_damaged_manifest_is_one_line(cache: Path) -> None:
    (cache / "manifest.json").write_text("{")
    done = call("inspect", str(cache))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith(f"error: {cache / 'manifest.json'}: expected JSON without duplicate keys, got ")
    assert call("verify", str(cache)).returncode == 1


def test_neither_torch_nor_transformers_is_ever_imported(cache: Path) -> None:
    code = (
        "import sys; sys.argv = ['cache', *sys.argv[1:]]\n"
        "from cache.__main__ import app\n"
        "for arguments in (['inspect', sys.argv[1], '--json'], ['verify', sys.argv[1], '--level', 'deep', '--json']):\n"
        "    app(arguments, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'matplotlib', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache)], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
