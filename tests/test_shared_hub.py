"""Rows of a hub data set: streamed for real from a stub of the hub, and steady while it has a bad hour."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_stub import REPO, ROOT, HubAnswer, hub_serving
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from shared import hub as hub_module
from shared.hub import WAITS, steady_rows

ROWS = 40  # in each of three files


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(hub_module.time, "sleep", found.append)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return found


def streamed(troubles: dict[int, list[Exception]]) -> datasets.IterableDataset:
    """Twelve rows; before row n its troubles come, one at each attempt."""

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(12):
            if left := troubles.get(number):
                raise left.pop(0)
            yield {"number": number}

    found = datasets.IterableDataset.from_generator(rows)
    assert isinstance(found, datasets.IterableDataset)
    return found


def answer(status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return HfHubHTTPError(f"status {status}\nand more", response=response)


def test_every_row_comes_once_in_order(waited: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    troubles = {0: [answer(500)], 5: [ConnectionError("cut"), TimeoutError("slow"), answer(429)], 11: [answer(502)]}
    found = [row["number"] for row in steady_rows(lambda: streamed(troubles), "dataset a/b")]
    assert found == list(range(12))
    assert waited == [WAITS[0], WAITS[0], WAITS[1], WAITS[2], WAITS[0]]  # a row in between, and it is a new trouble
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "dataset a/b: status 500 and more; again in 15 s"
    assert lines[1] == "dataset a/b: cut; again in 15 s"


def test_opening_is_tried_again_where_the_hub_answers(waited: list[float]) -> None:
    days: list[Exception] = [answer(503), answer(504)]

    def open_rows() -> datasets.IterableDataset:
        if days:
            raise days.pop(0)
        return streamed({})

    assert len(list(steady_rows(open_rows, "x"))) == 12
    assert len(waited) == 2
    days.append(ConnectionError("no network"))
    assert len(list(steady_rows(open_rows, "x"))) == 12 and len(waited) == 3


def test_who_asked_for_no_hub_waits_for_none(waited: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def open_rows() -> datasets.IterableDataset:
        raise ConnectionError("offline")

    with pytest.raises(ConnectionError, match="offline"):
        list(steady_rows(open_rows, "x"))
    assert not waited


@pytest.mark.parametrize("trouble", [answer(403), ValueError("x"), FileNotFoundError("x"), OfflineModeIsEnabled("x")])
def test_what_waiting_does_not_mend_ends_it_at_once(trouble: Exception, waited: list[float]) -> None:
    rows = steady_rows(lambda: streamed({3: [trouble]}), "x")
    assert [next(rows)["number"] for _ in range(3)] == [0, 1, 2]
    with pytest.raises(type(trouble)):
        next(rows)
    assert not waited


def test_patience_ends(waited: list[float]) -> None:
    with pytest.raises(ConnectionError, match="cut"):
        list(steady_rows(lambda: streamed({7: [ConnectionError("cut")] * 9}), "x"))
    assert waited == list(WAITS)


class DataAnswer(HubAnswer):
    """The stub, with folders and with answers that nobody asked for."""

    def do_GET(self) -> None:
        tree = f"/api/datasets/{REPO}/tree/"
        if not self.path.startswith(tree):
            super().do_GET()
            return
        revision, _, folder = self.path.partition("?")[0].removeprefix(tree).partition("/")
        names = [name for name in self.files(revision) if folder and name.startswith(f"{folder}/")]
        rows = [
            {"type": "file", "path": name, "size": len(self.files(revision)[name]), "oid": "1" * 40} for name in names
        ]
        self.say(rows or [{"type": "directory", "path": "data", "size": 0, "oid": "0" * 40}])

    def file(self, revision: str, name: str) -> None:
        if name not in self.files(revision):
            super().file(revision, name)
            return
        if self.command == "GET" and (days := self.server.bad_days.get(name, [])):
            self.say({"error": "a bad day"}, int(days.pop(0)))
            return
        raw, span = self.files(revision)[name], self.headers["Range"]
        first, last = (int(number) for number in span[6:].split("-")) if span else (0, len(raw) - 1)
        body = raw[first : last + 1]
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(raw)}")
        self.send_header("ETag", f'"{hashlib.sha1(raw).hexdigest()}"')
        self.send_header("X-Repo-Commit", revision)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


SCRIPT = """
import json, sys
from itertools import islice
from shared import hub
from shared.corpus import CorpusConfig, read_documents
hub.WAITS = (0.0, 0.0)
config = CorpusConfig(dataset="org/name", text="text", streaming=True)
few = [document.text for document in read_documents(config.model_copy(update={"max_documents": 5}))]
print(json.dumps(few), flush=True)
sys.stdin.readline()  # the test looks at what was fetched
print(json.dumps([[document.id, document.text] for document in read_documents(config)]))
"""


def test_streaming_from_a_stub_of_the_hub(tmp_path: Path) -> None:
    """In a process of its own: huggingface_hub asks for its endpoint once, when it is imported."""
    names = [f"data/train-{part:05d}-of-00003.parquet" for part in range(3)]
    with hub_serving(tmp_path) as hub:
        hub.RequestHandlerClass = DataAnswer
        for part, name in enumerate(names):
            raw = io.BytesIO()
            rows = [{"text": f"text {part * ROWS + number}"} for number in range(ROWS)]
            pq.write_table(pa.Table.from_pylist(rows), raw, row_group_size=7)
            hub.commits[-1][name] = raw.getvalue()  # type: ignore[attr-defined]
        hub.bad_days[names[1]] = ["520", "520"]  # a status that huggingface_hub gives up on at once
        settings = {
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_OFFLINE": "0",
            "PYTHONPATH": str(ROOT),
        }
        settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen([sys.executable, "-c", SCRIPT], env=os.environ | settings, text=True, **pipes) as process:
            assert process.stdout is not None
            few = process.stdout.readline()
            fetched = [path for path, _ in hub.seen if path.endswith(".parquet")]
            everything, said = process.communicate("\n", timeout=60)
    assert few, said
    assert json.loads(few) == [f"text {number}" for number in range(5)]
    assert {path.rsplit("/", 1)[-1] for path in fetched} == {"train-00000-of-00003.parquet"}  # the rest never came
    found = json.loads(everything)
    assert found == [[f"org/name:{number + 1}", f"text {number}"] for number in range(3 * ROWS)]
    assert said.count("again in 0 s") == 2
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".parquet", ".arrow")]  # nothing was stored
