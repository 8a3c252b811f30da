"""Caches on the Hugging Face hub: huggingface_hub's own code against a stub of the hub's HTTP API on loopback."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from cache_records import files_of, records
from cache_sharing import Server, capture, flip, shared_cache
from hub_stub import TOKEN, HubAnswer, call_with_hub, hub_serving

from cache.card import card_text
from cache.hub import parse
from cache.manifest import Manifest, Teacher, read_manifest
from shared.errors import UsageError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_cache(tmp_path_factory.mktemp("hub") / "cache", 6)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    with hub_serving(tmp_path) as server:
        yield server


def call(hub: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call_with_hub(hub, "cache", *arguments)


def test_push_commits_the_manifest_last_with_a_card(hub: Any, cache: Path) -> None:
    done = call(hub, "push", str(cache), "hf://datasets/org/name")
    assert done.returncode == 0, done.stderr
    before, after = hub.commits[-2], hub.commits[-1]
    assert set(after) - set(before) == {"README.md", "manifest.json"}
    assert {name: raw for name, raw in after.items() if name not in ("README.md", ".gitattributes")} == files_of(cache)
    card = after["README.md"].decode()
    assert read_manifest(cache).cache_id in card
    assert f"commit {len(hub.commits) - 1:040x}" in done.stderr
    assert TOKEN not in done.stderr + done.stdout + card


def test_pull_takes_one_commit_and_checks_it(hub: Any, cache: Path, tmp_path: Path) -> None:
    hub.commits.append(files_of(cache))
    hub.commits.append({"README.md": b"what somebody pushed since"})
    done = call(hub, "pull", f"hf://datasets/org/name@{1:040x}", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr
    assert f"pull: hf://datasets/org/name@{1:040x}, commit {1:040x}" in done.stderr
    assert files_of(tmp_path / "copy") == files_of(cache)
    read = [path for path, _ in hub.seen if "/resolve/" in path]
    assert all(f"/resolve/{1:040x}/" in path for path in read)
    assert {headers.get("Authorization", headers.get("authorization")) for headers in hub.headers} == {
        f"Bearer {TOKEN}"
    }
    assert TOKEN not in done.stderr + done.stdout
    assert not any(TOKEN.encode() in raw for raw in files_of(tmp_path / "copy").values())


def test_pull_of_damaged_files_is_refused(hub: Any, cache: Path, tmp_path: Path) -> None:
    hub.commits.append(files_of(cache))
    name = read_manifest(cache).shards[1].name
    hub.bad_days[name] = ["flipped"] * 9
    done = call(hub, "pull", "hf://datasets/org/name", str(tmp_path / "copy"))
    assert done.returncode == 1
    assert f"{name}: expected sha256" in done.stderr
    assert not (tmp_path / "copy" / "manifest.json").exists()
    hub.bad_days.clear()
    sound = hub.commits[-1][name]
    hub.commits[-1][name] = sound + b"x"
    done = call(hub, "pull", "hf://datasets/org/name", str(tmp_path / "copy"))
    assert f"{name}: expected {len(sound)} bytes, got {len(sound) + 1}; have it pushed again" in done.stderr
    hub.commits[-1][name] = sound
    assert call(hub, "pull", "hf://datasets/org/name", str(tmp_path / "copy")).returncode == 0
    assert files_of(tmp_path / "copy") == files_of(cache)


def test_push_over_something_else(hub: Any, cache: Path, tmp_path: Path) -> None:
    hub.commits.append({"thesis.tex": b"x"})
    done = call(hub, "push", str(cache), "hf://datasets/org/name")
    assert done.returncode == 2
    assert "expected an empty data set, got thesis.tex; push to a data set of its own" in done.stderr
    capture(tmp_path / "other", records(4, seed=9, directions=2))
    hub.commits.append(files_of(tmp_path / "other"))
    for path in list(hub.commits[-1]):
        if path.endswith(".h5") and path != "basis.h5":
            del hub.commits[-1][path]
    done = call(hub, "push", str(cache), "hf://datasets/org/name@v1")
    assert done.returncode == 2
    assert "push to another revision (@name) or data set" in done.stderr


def test_push_of_a_damaged_cache_asks_the_hub_nothing(hub: Any, tmp_path: Path) -> None:
    shared_cache(tmp_path / "bad", 4)
    flip(tmp_path / "bad" / read_manifest(tmp_path / "bad").shards[0].name)
    done = call(hub, "push", str(tmp_path / "bad"), "hf://datasets/org/name")
    assert done.returncode == 1
    assert "nothing was sent" in done.stderr
    assert hub.seen == []


def test_a_hub_that_hangs_up(hub: Any, cache: Path, tmp_path: Path) -> None:
    hub.RequestHandlerClass = type("Silent", (HubAnswer,), {"do_POST": lambda self: None})
    done = call(hub, "push", str(cache), "hf://datasets/org/name")
    assert done.returncode == 1
    assert "error: hf://datasets/org/name: expected an answer of the hub, got RemoteProtocolError; run" in done.stderr


def test_no_such_data_set_or_revision(hub: Any, tmp_path: Path) -> None:
    for url, what in (("hf://datasets/org/other", "a data set"), ("hf://datasets/org/name@v9", "a revision")):
        done = call(hub, "pull", url, str(tmp_path / "copy"))
        assert done.returncode == 2
        assert f"{url}: expected {what} on the hub, got none; check the name" in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("hf://datasets/org/name", ("org/name", None)),
        ("hf://datasets/org/name/", ("org/name", None)),
        ("hf://datasets/o-r.g/na_me@refs%2Fpr%2F1", ("o-r.g/na_me", "refs/pr/1")),
        ("hf://datasets/org/name@v1.0", ("org/name", "v1.0")),
    ],
)
def test_urls(url: str, found: tuple[str, str | None]) -> None:
    assert parse(url) == found


@pytest.mark.parametrize(
    "url", ["hf://org/name", "hf://datasets/name", "hf://datasets/org/name/shard", "hf://datasets/a b/c"]
)
def test_urls_of_another_form(url: str) -> None:
    with pytest.raises(UsageError, match="expected hf://datasets/org/name or hf://datasets/org/name@revision"):
        parse(url)


# The card


def changed(manifest: Manifest, **identity: Any) -> Manifest:
    return manifest.model_copy(update={"identity": manifest.identity.model_copy(update=identity)})


def test_the_card_says_what_a_stranger_wants_to_know(cache: Path) -> None:
    manifest = read_manifest(cache)
    teacher = manifest.teacher.model_copy(update={"id": "bigcode/teacher", "revision": "abc"})
    manifest = changed(manifest, teacher=teacher, corpus={"recipe": "mbpp", "licence_name": "CC-BY-4.0"})
    manifest = manifest.model_copy(update={"counts": {"documents": 9, "licence_MIT": 3, "licence_Apache-2.0": 5}})
    card = card_text(manifest, "hf://datasets/org/name", teacher_licence="openrail")
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "other"
    for fact in (
        "huggingface.co/bigcode/teacher",
        "openrail",
        "CC-BY-4.0; documents by licence: Apache-2.0 5, MIT 3",
        "python -m cache pull hf://datasets/org/name",
        manifest.cache_id,
    ):
        assert fact in card
    assert f"{manifest.size / manifest.total('tokens'):.1f} bytes a token" in card
    rows = [line for line in card.splitlines() if line.startswith(("| 1 |", "| 2 |"))]
    assert [f"{report.kl:.4f}" in row for report, row in zip(manifest.fidelity, rows, strict=True)] == [True, True]


def test_a_hostile_manifest_writes_no_markup_into_the_card(cache: Path) -> None:
    evil: Teacher = read_manifest(cache).teacher.model_copy(update={"id": "x|</td><script>\n# head\n[a](b)"})
    card = card_text(changed(read_manifest(cache), teacher=evil), "hf://datasets/org/name")
    assert "<script" not in card.replace("\\<script", "")
    assert "\n# head" not in card
    assert "not known here: see the model page" in card


@pytest.mark.requires_hub
def test_the_real_hub_there_and_back(cache: Path, tmp_path: Path) -> None:
    """Needs HF_TOKEN with write access and CODESTILL_TEST_REPO=org/name, a data set that may be overwritten."""
    from cache.pull import pull
    from cache.push import push

    url = f"hf://datasets/{os.environ['CODESTILL_TEST_REPO']}"
    push(cache, url)
    pull(url, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(cache)
