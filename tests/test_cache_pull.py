"""Pulling a cache: from folders and web servers, through every bad day a network has; nothing unchecked, never half a cache."""

from __future__ import annotations

import base64
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cache_records import files_of, records
from cache_sharing import Server, capture, flip, serving, shared_cache

from cache import transfer
from cache.lock import only_one
from cache.manifest import MANIFEST, read_manifest
from cache.pull import LOCK, PULL_FOLDER, pull
from cache.remote import masked
from cache.remote_http import HttpRemote
from cache.verify import verify
from shared.errors import CodestillError, RunError, UsageError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shared_cache(tmp_path_factory.mktemp("pull") / "cache")


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    with serving(cache) as running:
        yield running


def shard(cache: Path, number: int = 2) -> str:
    return read_manifest(cache).shards[number].name


def bytes_of(cache: Path) -> int:
    return sum(map(len, files_of(cache).values()))


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_from_a_folder(cache: Path, tmp_path: Path, form: str) -> None:
    assert pull(form.format(cache), tmp_path / "new" / "copy") == read_manifest(cache)
    assert files_of(tmp_path / "new" / "copy") == files_of(cache)
    assert not (tmp_path / "new" / "copy" / PULL_FOLDER).exists()


def test_from_a_web_server_each_byte_once(cache: Path, server: Server, tmp_path: Path) -> None:
    pull(f"{server.url}/", tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(cache)
    assert server.sent == bytes_of(cache)
    assert verify(tmp_path / "copy", "hash") == []


def test_again_fetches_nothing_but_the_manifest(cache: Path, server: Server, tmp_path: Path) -> None:
    pull(server.url, tmp_path / "copy")
    server.seen.clear()
    pull(server.url, tmp_path / "copy")
    assert server.seen == [("/manifest.json", "bytes=0-")]
    assert files_of(tmp_path / "copy") == files_of(cache)


def test_a_damaged_copy_is_mended(cache: Path, server: Server, tmp_path: Path) -> None:
    pull(server.url, tmp_path / "copy")
    flip(tmp_path / "copy" / shard(cache, 1))
    (tmp_path / "copy" / shard(cache, 3)).unlink()
    (tmp_path / "copy" / MANIFEST).write_text("{}")
    server.seen.clear()
    pull(server.url, tmp_path / "copy")
    assert {path for path, _ in server.seen} == {"/manifest.json", f"/{shard(cache, 1)}", f"/{shard(cache, 3)}"}
    assert files_of(tmp_path / "copy") == files_of(cache)


BAD_DAYS = [
    ["500"],
    ["503", "429", "dropped", "500"],
    ["dropped"] * 9,
    ["without ranges"],
    ["dropped", "without ranges"],
]


@pytest.mark.parametrize("days", BAD_DAYS, ids="-".join)
@pytest.mark.parametrize("name", ["shard", MANIFEST])
def test_trouble_that_passes(cache: Path, server: Server, tmp_path: Path, days: list[str], name: str) -> None:
    name = shard(cache) if name == "shard" else name
    if name == MANIFEST and len(days) > transfer.TRIES:
        days = days[: transfer.TRIES - 2]  # a manifest is small, and begins anew each time
    server.bad_days[name] = list(days)
    pull(server.url, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(cache)
    assert server.bad_days[name] == []


def test_a_dropped_connection_goes_on_where_it_broke(cache: Path, server: Server, tmp_path: Path) -> None:
    server.bad_days[shard(cache)] = ["dropped", "500", "dropped"]
    pull(server.url, tmp_path / "copy")
    size = len(files_of(cache)[shard(cache)])
    starts = [int(str(span)[6:-1]) for path, span in server.seen if path == f"/{shard(cache)}"]
    assert starts == [0, size // 2, size // 2, size // 2 + (size - size // 2) // 2]
    assert server.sent == bytes_of(cache)


def fails(server: Server, directory: Path, kind: type[CodestillError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        pull(server.url, directory)
    assert "\n" not in str(caught.value)
    assert not (directory / MANIFEST).exists()


@pytest.mark.parametrize(
    ("day", "message"),
    [
        ("404", "expected it to be there, got none; check the URL; the push may not have ended$"),
        ("403", "expected access, got 403 Forbidden; log in, or check the credentials$"),
        ("418", "expected the file, got 418 I'm a Teapot; check the URL$"),
        ("500", "expected an answer, got 500 Internal Server Error, 6 times in a row; run the same command again to go on$"),
        ("more", r"expected \d+ bytes, got more; another cache was pushed over this one"),
        ("flipped", "expected sha256 [0-9a-f]{12}[.]{3}, got another; the copy there is damaged; have it pushed again$"),
        ("another range", "expected bytes from 0 on, got Content-Range bytes 1-"),
        ("ftp://127.0.0.1/x", "expected https all the way, got a redirect to ftp://"),
    ],
)  # fmt: skip
def test_trouble_that_stays(cache: Path, server: Server, tmp_path: Path, day: str, message: str) -> None:
    server.bad_days[shard(cache)] = [day] * 20
    fails(server, tmp_path / "copy", RunError, message)
    server.bad_days.clear()
    pull(server.url, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(cache)


def test_a_file_that_is_shorter_there(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "PAUSE", 0.0)
    broken = shutil.copytree(cache, tmp_path / "broken")
    path = broken / shard(cache)
    path.write_bytes(path.read_bytes()[:-5])
    with serving(broken) as server:
        fails(server, tmp_path / "copy", RunError, "expected the manifest's size, got a shorter file;")
    with pytest.raises(RunError, match="expected an answer, got an answer that ends too early, 6 times in a row"):
        pull(str(broken), tmp_path / "other")


def test_an_endless_answer_is_cut_off(cache: Path, tmp_path: Path) -> None:
    big = shutil.copytree(cache, tmp_path / "big")
    with (big / shard(cache)).open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(RunError, match="got more"):
        pull(str(big), tmp_path / "copy")
    assert bytes_of(tmp_path / "copy") < 2 * bytes_of(cache)


def test_no_cache_there(server: Server, tmp_path: Path) -> None:
    (server.folder.parent / "empty").mkdir(exist_ok=True)
    what = f"^{server.url}/none: expected a cache with manifest.json, got none; check the URL"
    with pytest.raises(UsageError, match=what):
        pull(f"{server.url}/none", tmp_path / "copy")
    with pytest.raises(UsageError, match=r"expected a cache with manifest.json, got none"):
        pull(str(tmp_path / "nothing"), tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_hostile_manifest_is_refused_before_anything_else_is_fetched(cache: Path, tmp_path: Path) -> None:
    text = (cache / MANIFEST).read_text()
    attacks = {
        "shards.0.name": text.replace(shard(cache, 0), "../../evil-000000000000.h5"),
        "the bytes its digest was made of": text.replace('"documents": 40', '"documents": 41'),
        "JSON without duplicate keys": text.replace('"k": 8', '"k": 8, "k": 8'),
        "expected version": text.replace('"version": 3', '"version": 999'),
        "at most 33554432 bytes": text + " " * (1 << 25),
    }
    for number, (message, attack) in enumerate(attacks.items()):
        place = tmp_path / f"place{number}"
        place.mkdir()
        (place / MANIFEST).write_text(attack)
        with serving(place) as server:
            with pytest.raises(RunError, match=message) as caught:
                pull(server.url, tmp_path / "copy")
            assert str(caught.value).startswith(f"{server.url}/manifest.json: ")
            assert [path for path, _ in server.seen] == ["/manifest.json"]
    assert not (tmp_path / "copy").exists()


def test_folders_that_hold_something_else(cache: Path, tmp_path: Path) -> None:
    capture(tmp_path / "other", records(4, seed=9, directions=2))
    with pytest.raises(UsageError, match=r"^pull into .*other: expected an empty or new directory, got 00000-"):
        pull(str(cache), tmp_path / "other")
    for path in (tmp_path / "other").glob("0*.h5"):
        path.unlink()
    expected = f"expected cache {read_manifest(cache).cache_id}, got cache {read_manifest(tmp_path / 'other').cache_id}"
    with pytest.raises(UsageError, match=expected):
        pull(str(cache), tmp_path / "other")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "tokenizer").symlink_to(tmp_path / "other")
    with pytest.raises(UsageError, match="expected folders of its own, got a link"):
        pull(str(cache), tmp_path / "links")


def test_two_pulls_into_one_folder(cache: Path, tmp_path: Path) -> None:
    work = tmp_path / "copy" / PULL_FOLDER
    work.mkdir(parents=True)
    with only_one(work / LOCK, "pull"), pytest.raises(UsageError, match="expected one pull at a time, got process"):
        pull(str(cache), tmp_path / "copy")
    pull(str(cache), tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(cache)


@pytest.mark.parametrize("failing", [0, 4, 9])
def test_a_full_disk_is_told_and_gone_on_from(
    cache: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    real, steps = os.fsync, iter(range(10**6))

    def full(handle: int) -> None:
        if next(steps) >= failing:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(os, "fsync", full)
        pull(server.url, tmp_path / "copy")
    assert not (tmp_path / "copy" / MANIFEST).exists()
    assert not (tmp_path / "copy" / PULL_FOLDER / LOCK).exists()
    sent = server.sent
    pull(server.url, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(cache)
    assert server.sent < sent + bytes_of(cache)  # what had arrived was not fetched again


def test_a_disk_too_small_is_told_before_anything_is_fetched(
    cache: Path, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 0, 9))
    need = bytes_of(cache) - len(files_of(cache)[MANIFEST])
    fails(server, tmp_path / "copy", RunError, f"^disk of .*copy: expected {need} bytes free, got 9; free some space")
    assert [path for path, _ in server.seen] == ["/manifest.json"]


def test_parts_that_were_damaged_meanwhile_begin_anew(cache: Path, server: Server, tmp_path: Path) -> None:
    work = tmp_path / "copy" / PULL_FOLDER
    work.mkdir(parents=True)
    first, second, third = (shard(cache, number) for number in range(3))
    (work / f"{first}.part").write_bytes(files_of(cache)[first][:100])
    (work / f"{second}.part").write_bytes(b"x" * 100)
    (work / f"{third}.part").write_bytes(b"x" * (1 << 20))
    pull(server.url, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(cache)
    spans = {name: [span for path, span in server.seen if path == f"/{name}"] for name in (first, second, third)}
    assert spans == {first: ["bytes=100-"], second: ["bytes=100-", "bytes=0-"], third: ["bytes=0-"]}


KILLED = """
import os, sys
sys.path[:0] = [sys.argv[1]]
from pathlib import Path
from cache import transfer
from cache.pull import pull
real, seen = transfer.Transfer.tell, []
def tell(self, count):
    real(self, count)
    seen.append(count)
    if len(seen) == int(sys.argv[4]):
        os.kill(os.getpid(), 9)
transfer.Transfer.tell = tell
pull(sys.argv[2], Path(sys.argv[3]))
"""


def test_killed_at_several_moments_ends_with_the_same_bytes(cache: Path, server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(ROOT), server.url, str(tmp_path / "copy")]
    for moment in (1, 4, 3):
        assert subprocess.run([*command, str(moment)], check=False).returncode == -9
        assert not (tmp_path / "copy" / MANIFEST).exists()
    pull(server.url, tmp_path / "copy")
    assert files_of(tmp_path / "copy") == files_of(cache)


# Credentials


SECRETS = [
    "https://user:pa55word@host/x",
    "s3://AKIA:pa55/w+rd@bucket/x",
    "https://host/x?sig=pa55word&se=2",
    "https://pa55word@host/x#pa55word",
]


@pytest.mark.parametrize("url", SECRETS)
def test_urls_are_masked_and_stay_recognisable(url: str) -> None:
    for text in (url, f"could not reach {url}", f"'{url}' failed"):
        assert "pa55" not in masked(text)
        assert url.split("://")[0] + "://" in masked(text)
        assert "host" in masked(text) or "bucket" in masked(text)
    assert masked("hf://datasets/org/name@main and s3://bucket/a") == "hf://datasets/org/name@main and s3://bucket/a"


def test_user_and_query_reach_the_server_and_nothing_else(
    cache: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://user:pa55%2Fword@{server.url[7:]}/?sig=pa55word"
    pull(url, tmp_path / "copy", progress=True)
    basic = base64.b64encode(b"user:pa55/word").decode()
    assert {headers["Authorization"] for headers in server.headers} == {f"Basic {basic}"}
    assert {headers["query"] for headers in server.headers} == {"sig=pa55word"}
    server.bad_days[MANIFEST] = ["403"]
    with pytest.raises(RunError) as caught:
        pull(url, tmp_path / "other", progress=True)
    shown = str(caught.value) + "".join(capsys.readouterr())
    assert "pa55" not in shown
    assert basic not in shown
    assert all(b"pa55" not in raw for raw in files_of(tmp_path).values())


def test_a_redirect_is_followed_but_takes_no_credentials_along(cache: Path, server: Server, tmp_path: Path) -> None:
    with serving(cache) as other:
        server.bad_days[MANIFEST] = [f"{other.url}/manifest.json"]
        server.bad_days[shard(cache)] = [f"{other.url}/{shard(cache)}"]
        pull(f"http://user:pa55word@{server.url[7:]}", tmp_path / "copy")
        assert len(other.headers) == 2
        assert not any("Authorization" in headers for headers in other.headers)
    assert files_of(tmp_path / "copy") == files_of(cache)


def test_never_from_https_down_to_http() -> None:
    from urllib.request import Request

    from cache.remote_http import _Redirects

    request = Request("https://host/x?sig=pa55word")
    with pytest.raises(RunError, match=r"^https://host/x") as caught:
        _Redirects().redirect_request(request, None, 302, "", {}, "http://host/x")  # type: ignore[arg-type]
    assert "pa55" not in str(caught.value)


def test_urls_nobody_knows() -> None:
    with pytest.raises(UsageError, match="expected a URL that fsspec knows"):
        pull("nonsense://a/b", Path("x"))
    with pytest.raises(UsageError, match="expected https://host/path, got no host"):
        HttpRemote("https:///x")
    with pytest.raises(UsageError, match="expected hf://datasets/org/name or"):
        pull("hf://org/name", Path("x"))


# The command


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings: dict[str, Any] = {"capture_output": True, "text": True, "cwd": ROOT, "check": False}
    return subprocess.run([sys.executable, "-m", "cache", *arguments], env=os.environ | environment, **settings)


def test_the_command_prints_rate_and_id(cache: Path, server: Server, tmp_path: Path) -> None:
    done = call("pull", server.url, str(tmp_path / "copy"))
    assert done.returncode == 0
    assert done.stdout == f"{tmp_path / 'copy'}: cache {read_manifest(cache).cache_id}\n"
    size = bytes_of(cache) - len(files_of(cache)[MANIFEST])
    assert f"pull: 10 files, {size} bytes in " in done.stderr
    assert done.stderr.rstrip().endswith("MB/s; 0 were there already")


def test_inspect_of_a_url_reads_only_the_manifest(cache: Path, server: Server) -> None:
    here, there = call("inspect", str(cache), "--json"), call("inspect", f"{server.url}?sig=pa55word", "--json")
    assert there.returncode == 0, there.stderr
    assert "pa55" not in there.stdout
    assert json.loads(there.stdout) == json.loads(here.stdout) | {"directory": f"{server.url}?***"}
    assert [path for path, _ in server.seen] == ["/manifest.json"]


READ_ONLY = """
import errno, os, runpy, sys
from pathlib import Path
def refuse(self, *rest, **named):  # root may write anywhere, so the disk is played
    raise OSError(errno.EROFS, "Read-only file system", str(self))
Path.mkdir = refuse
sys.argv = ["cache", *sys.argv[1:]]
runpy.run_module("cache", run_name="__main__")
"""


def test_a_read_only_folder(cache: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", READ_ONLY, "pull", str(cache), str(tmp_path / "copy")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    what = f"error: {tmp_path / 'copy'}: expected write access, got Read-only file system; choose another path\n"
    assert done.stderr == what
