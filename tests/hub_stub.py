"""A stub of the hub's HTTP API on loopback, for huggingface_hub's own code. Not a test file.

It keeps commits of small files ("regular" uploads). Large-file storage needs the hub itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cache_sharing import Server, _Answer, serving

ROOT = Path(__file__).resolve().parent.parent
REPO, TOKEN = "org/name", "hf_pa55word"


class HubAnswer(_Answer):
    """The few questions that push and pull ask."""

    server: Server

    @property
    def kind(self) -> str:
        return self.server.kind  # type: ignore[attr-defined, no-any-return]

    def say(self, value: Any, code: int = 200, **headers: str) -> None:
        raw = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw)

    @property
    def commits(self) -> list[dict[str, bytes]]:
        return self.server.commits  # type: ignore[attr-defined, no-any-return]

    def files(self, revision: str) -> dict[str, bytes]:
        return self.commits[int(revision, 16) if len(revision) == 40 else -1]

    def info(self, revision: str = "") -> dict[str, Any]:
        sha = revision if len(revision) == 40 else f"{len(self.commits) - 1:040x}"
        return {"id": REPO, "sha": sha, "siblings": [{"rfilename": name} for name in self.files(revision)]}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.seen.append((path, self.headers["Range"]))
        self.server.headers.append(dict(self.headers))
        head = f"/{self.kind}/{REPO}/resolve/".replace("/models/", "/")
        api = f"/api/{self.kind}/{REPO}"
        if path.startswith(head):
            revision, name = path.removeprefix(head).split("/", 1)
            self.file(revision, name)
        elif path.startswith(f"{api}/tree/"):
            rows = self.files(path.removeprefix(f"{api}/tree/")).items()
            self.say(
                [
                    {"type": "file", "path": name, "size": len(raw), "oid": hashlib.sha1(raw).hexdigest()}
                    for name, raw in rows
                ]
            )
        elif path == api or path.startswith(f"{api}/revision/"):
            revision = path.removeprefix(api).removeprefix("/revision/")
            if revision in ("", "main", "v1") or len(revision) == 40:
                self.say(self.info(revision))
            else:
                self.say({"error": "no"}, 404, **{"X-Error-Code": "RevisionNotFound"})
        else:
            self.say({"error": "no"}, 404, **{"X-Error-Code": "RepoNotFound"})

    def file(self, revision: str, name: str) -> None:
        raw = self.files(revision).get(name)
        if raw is None:
            self.say({"error": "no"}, 404, **{"X-Error-Code": "EntryNotFound"})
            return
        days = self.server.bad_days.get(name, [])
        if self.command == "GET" and days and days.pop(0) == "flipped":
            raw = bytes([raw[0] ^ 1]) + raw[1:]
        span = self.headers["Range"]
        start = int(span[6:].split("-")[0]) if span else 0
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(raw) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(raw) - 1}/{len(raw)}")
        self.send_header("ETag", f'"{hashlib.sha1(raw).hexdigest()}"')
        self.send_header("X-Repo-Commit", revision)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(raw[start:])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            self.say({"url": f"{self.server.url}/datasets/{REPO}"})
        elif "/branch/" in path or path == "/api/validate-yaml":
            self.say({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            names = [row["path"] for row in json.loads(body)["files"]]
            self.say({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        else:
            assert "/commit/" in path
            rows = [json.loads(line) for line in body.splitlines()]
            new = {
                row["value"]["path"]: base64.b64decode(row["value"]["content"]) for row in rows if row["key"] == "file"
            }
            self.commits.append({**self.commits[-1], **new})
            sha = self.info()["sha"]
            self.say(
                {"commitUrl": f"{self.server.url}/datasets/{REPO}/commit/{sha}", "commitOid": sha, "hookOutput": ""}
            )


@contextmanager
def hub_serving(folder: Path, kind: str = "datasets") -> Iterator[Server]:
    """A hub with one repository of `kind`: datasets or models."""
    with serving(folder) as server:
        server.RequestHandlerClass = HubAnswer
        server.kind = kind  # type: ignore[attr-defined]
        server.commits = [{".gitattributes": b"x"}]  # type: ignore[attr-defined]
        yield server


def call_with_hub(hub: Server, package: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own: huggingface_hub asks for its endpoint once, when it is imported."""
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
        "HF_HOME": str(hub.folder / "home"),
    }
    settings |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", package, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | settings, capture_output=True, text=True, check=False)
