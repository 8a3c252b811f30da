"""A local server that speaks OpenAI's protocol as a test tells it to, and configs that name it. Not a test file."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from shared.config import check_config
from stage1_teacher.generate_config import GenerateConfig

KEY = "sk-secret-0123456789"


@dataclass
class Reply:
    """One answer of the server; `drop`: send half of the body and close."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False


@dataclass
class Asked:
    """One request as the server saw it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def good(asked: Asked, text: str | None = None, usage: tuple[int, int] | None = (10, 5)) -> Reply:
    """An answer as the protocol wants it; its text tells the seed unless one is given."""
    text = f"answer {asked.body.get('seed')}" if text is None else text
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop"}
    choice |= {"message": {"role": "assistant", "content": text}} if "chat" in asked.path else {"text": text}
    found: dict[str, Any] = {"object": "completion", "model": "served-model-1", "choices": [choice]}
    if usage is not None:
        found["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return Reply(json.dumps(found).encode())


class Server:
    """Answers each request with what `script` makes of its number, from 0, and itself; remembers all of them."""

    def __init__(self, script: Callable[[int, Asked], Reply]) -> None:
        self.script, self.asked = script, list[Asked]()
        self.lock = threading.Lock()
        self.url = ""


@contextmanager
def serving(script: Callable[[int, Asked], Reply]) -> Iterator[Server]:
    """A server on a free port of this machine while the body runs."""
    server = Server(script)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            asked = Asked(self.path, dict(self.headers), json.loads(raw))
            with server.lock:
                number = len(server.asked)
                server.asked.append(asked)
            reply = server.script(number, asked)
            try:
                self.send_response(reply.status)
                for name, value in {"Content-Length": str(len(reply.body)), **reply.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body[: len(reply.body) // 2] if reply.drop else reply.body)
            except OSError:
                pass  # whoever asked has gone

        def log_message(self, *_: Any) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads, httpd.block_on_close = True, False
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


def settings(folder: Path, url: str, *, prompts: int = 3, **changes: Any) -> dict[str, Any]:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": n, "prompt": f"def f{n}():\n"}) + "\n" for n in range(prompts)))
    server: dict[str, Any] = {"url": url, "model": "asked-model", "concurrency": 2, "retries": 2, "timeout_s": 20}
    server |= changes.pop("endpoint", {})
    return {
        "out": str(folder / "out"),
        "prompts": {"plain": {"path": str(file)}},
        "endpoint": server,
        "samples": 2,
        "max_new_tokens": 50,
        **changes,
    }


def config(folder: Path, url: str, **changes: Any) -> GenerateConfig:
    return check_config(GenerateConfig, settings(folder, url, **changes), base=folder, name="test")


def config_file(folder: Path, url: str, **changes: Any) -> str:
    path = folder / "generate.yaml"
    path.write_text(json.dumps(settings(folder, url, **changes)))  # JSON is YAML
    return str(path)
