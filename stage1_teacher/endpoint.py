"""One question to an OpenAI-compatible server, tried until it is answered: /completions or /chat/completions.

The standard library's client, as in cache/remote_http.py: answers take seconds, so connections that are kept open would win
nothing, and huggingface_hub brings httpx in version 1 and httpx2 in version 2, so neither is there for certain. No redirect is
followed: the key belongs to one host. Not for many questions at once (stage1_teacher/endpoint_pool.py), nor for files.
"""

from __future__ import annotations

import email.utils
import hashlib
import http.client
import json
import math
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal

from shared.errors import CodestillError, RunError, UsageError
from stage1_teacher.generate_config import EndpointConfig, GenerateConfig
from stage1_teacher.prompt_sets import Prompt

CHARS_PER_TOKEN = 3  # the rule where a server does not say: code has 3 to 4 letters a token, so this errs upwards
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the first further try, doubled up to the second
MOST_PATIENCE = 600.0  # seconds that a server may ask us to wait (Retry-After)
MOST_STOP_WORDS = 4  # what OpenAI takes
PIECE = 1 << 16  # bytes read at a time
_MAY_PASS = {408, 425, 429, 500, 502, 503, 504, 529}  # answers that may change when asked again
_BAD_CALL = {301, 302, 303, 307, 308, 401, 402, 403, 404, 405}  # no question will fare better

Trouble = Literal["refused", "nonsense", "timeout", "server", "connection"]
"""Why a question has no answer: the server refused this one, answered what is no answer, was late, had an error of its own,
or the connection failed."""


class NoAnswer(Exception):
    """One try without an answer; `wait`: seconds the server asked for."""

    def __init__(self, kind: Trouble, said: str, *, again: bool = True, wait: float | None = None) -> None:
        self.kind, self.said, self.again, self.wait = kind, said, again, wait
        super().__init__(said)


class Stopped(Exception):
    """The run ends; this question is given up."""


@dataclass(frozen=True)
class Answer:
    """What came back; tokens as the server counted them, or by CHARS_PER_TOKEN where `estimated`."""

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    estimated: bool
    model: str


def tokens_of(text: str) -> int:
    """The stated rule: a token for every three letters, rounded up."""
    return math.ceil(len(text) / CHARS_PER_TOKEN)


class Pace:
    """No more requests a minute than agreed, and none while the server asked for a pause; shared by all threads."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next, self._lock = 0.0, threading.Lock()

    def turn(self) -> float:
        """Take the next free place; seconds to wait until it comes."""
        with self._lock:
            now = time.monotonic()
            place = max(now, self._next)
            self._next = place + self._gap
            return place - now

    def pause(self, seconds: float) -> None:
        """Nobody asks for so long: 429 is meant for all of us."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None  # urllib then raises the HTTPError


class Endpoint:
    """The server of a config. Safe in threads: it holds no connection.

    Raises:
        UsageError: the environment variable named for the key is not set.
    """

    def __init__(self, config: GenerateConfig) -> None:
        assert config.endpoint is not None, "the caller has an endpoint"
        self.config, self.server = config, config.endpoint
        self.url = f"{self.server.url.rstrip('/')}/{'chat/' if config.style == 'chat' else ''}completions"
        self.pace, self.stop = Pace(self.server.requests_per_minute), threading.Event()
        self._key = _key(self.server)
        self._most_bytes = (1 << 20) + 256 * config.max_new_tokens  # \uXXXX escapes, log-probabilities, reasoning
        self._opener = urllib.request.build_opener(_NoRedirects)

    def ask(self, prompt: Prompt, index: int) -> Answer:
        """The answer to one question, after as many tries as the config allows.

        Raises:
            NoAnswer: there was none; says what the last try met.
            UsageError: no question will be answered: wrong key, no such model or path.
            Stopped: the run ends.
        """
        body = json.dumps(self._question(prompt, index)).encode()
        for attempt in range(self.server.retries + 1):
            self._sleep(self.pace.turn())
            try:
                return self._once(body, prompt)
            except NoAnswer as error:
                if not error.again or attempt == self.server.retries:
                    raise
                self._sleep(self._wait(error, attempt, f"{prompt.id}/{index}/{attempt}"))
        raise AssertionError("the last try returned or raised")

    def _wait(self, error: NoAnswer, attempt: int, name: str) -> float:
        if error.wait is not None:
            if error.wait > MOST_PATIENCE:
                raise NoAnswer(error.kind, f"{error.said}, and asks to wait {error.wait:.0f} s", again=False)
            self.pace.pause(error.wait)
            return error.wait
        spread = int.from_bytes(hashlib.sha256(name.encode()).digest()[:2], "big") / 65536  # no herd comes back at once
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0**attempt) * (0.5 + 0.5 * spread)

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds) if seconds > 0 else self.stop.is_set():
            raise Stopped

    def _question(self, prompt: Prompt, index: int) -> dict[str, Any]:
        config = self.config
        asked: dict[str, Any] = (
            {"messages": [{"role": "user", "content": prompt.asked}]}
            if config.style == "chat"
            else {"prompt": prompt.asked}
        )
        if prompt.stop:
            asked["stop"] = list(prompt.stop[:MOST_STOP_WORDS])
        if self.server.send_seed:
            name = f"{config.seed}/{prompt.id}/{index}"
            asked["seed"] = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") >> 1
        return {
            "model": self.server.model,
            self.server.length_field: config.max_new_tokens,
            "temperature": config.temperature,
            "top_p": config.top_p,
            **asked,
        }

    def _once(self, body: bytes, prompt: Prompt) -> Answer:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "codestill"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self.url, data=body, headers=headers, method="POST")
        end = time.monotonic() + self.server.timeout_s
        try:
            with self._opener.open(request, timeout=self.server.timeout_s) as reply:
                return read_answer(self._body(reply, end), self.config, prompt)
        except urllib.error.HTTPError as error:
            with error:
                raise self._refusal(error) from None
        except TimeoutError:
            raise NoAnswer("timeout", f"nothing whole within {self.server.timeout_s:g} s") from None
        except urllib.error.URLError as error:
            raise self._unreachable(error) from None
        except (http.client.HTTPException, OSError) as error:
            raise NoAnswer("connection", f"a connection that broke ({type(error).__name__})") from None

    def _body(self, reply: Any, end: float) -> bytes:
        """The whole body, or NoAnswer where it is longer than any answer or takes too long."""
        raw = b""
        while piece := reply.read1(PIECE):
            raw += piece
            if len(raw) > self._most_bytes:
                raise NoAnswer("nonsense", f"more than {self._most_bytes} bytes")
            if time.monotonic() > end:
                raise TimeoutError
        if reply.length:  # http.client's read1 says nothing when a body ends before its Content-Length
            raise NoAnswer("connection", "a connection that broke (half an answer)")
        return raw

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        said = f"{error.code} {error.reason}{self._message(error)}"
        if error.code in _BAD_CALL:
            key = f"the key in ${self.server.key_env}" if self.server.key_env else "whether it wants a key (key_env)"
            return UsageError(
                f"endpoint {self.url}", expected="an answer", got=said, do=f"check url, style, model and {key}"
            )
        if error.code in _MAY_PASS:
            return NoAnswer("server", said, wait=retry_after(error.headers.get("Retry-After"), time.time()))
        return NoAnswer("refused", said, again=False)

    def _message(self, error: urllib.error.HTTPError) -> str:
        """What the server says about it, short, without the key it may repeat."""
        try:
            found = json.loads(error.read(PIECE))
        except (ValueError, RecursionError, OSError, http.client.HTTPException):
            return ""
        while isinstance(found, dict):  # {"error": {"message": ...}} is OpenAI's, {"detail": ...} is FastAPI's
            found = next((found[name] for name in ("error", "message", "detail") if name in found), None)
        return f" ({found[:200].replace(self._key or chr(0), '***')})" if isinstance(found, str) and found else ""

    def _unreachable(self, error: urllib.error.URLError) -> Exception:
        reason = error.reason
        if isinstance(reason, ssl.SSLCertVerificationError):
            return UsageError(
                f"endpoint {self.url}",
                expected="a valid certificate",
                got=reason.verify_message,
                do="do not trust this server",
            )
        if isinstance(reason, TimeoutError):
            return NoAnswer("timeout", f"nothing whole within {self.server.timeout_s:g} s")
        number = reason.errno if isinstance(reason, OSError) else None  # negative where no name was found
        return NoAnswer("connection", os.strerror(number) if number is not None and number > 0 else str(reason))


def _key(server: EndpointConfig) -> str | None:
    if server.key_env is None:
        return None
    key = os.environ.get(server.key_env, "").strip()
    if not key or not key.isascii() or not key.isprintable():
        got = "an empty one or none" if not key else "one with letters that no key has"
        do = f"export {server.key_env}=... in the shell that runs this"
        raise UsageError(f"endpoint.key_env {server.key_env}", expected="that variable to hold a key", got=got, do=do)
    return key


def retry_after(value: str | None, now: float) -> float | None:
    """Seconds a Retry-After header asks for: a number, or a date (RFC 9110); None where it says neither."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def read_answer(raw: bytes, config: GenerateConfig, prompt: Prompt) -> Answer:
    """The answer in a reply's body.

    Raises:
        NoAnswer: it is not JSON, lacks what the protocol promises, or has another type there.
    """
    try:
        reply = json.loads(raw)
        choice = reply["choices"][0]
        text = choice["message"]["content"] if config.style == "chat" else choice["text"]
    except UnicodeDecodeError:
        raise NoAnswer("nonsense", "bytes that are no text") from None
    except (ValueError, RecursionError):
        raise NoAnswer("nonsense", f"no JSON: {raw[:40].decode(errors='replace')!r}") from None
    except (KeyError, IndexError, TypeError):
        wanted = "choices[0].message.content" if config.style == "chat" else "choices[0].text"
        raise NoAnswer("nonsense", f"JSON without {wanted}") from None
    text = _refused_text(choice) if text is None else text
    if not isinstance(text, str) or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise NoAnswer("nonsense", "an answer that is no text")
    usage = reply.get("usage")
    counts = [_count(usage, name) for name in ("prompt_tokens", "completion_tokens")]
    finish, model = choice.get("finish_reason"), reply.get("model")
    return Answer(
        text,
        finish if isinstance(finish, str) and finish.isascii() else "stop",
        tokens_of(prompt.asked) if counts[0] is None else counts[0],
        tokens_of(text) if counts[1] is None else counts[1],
        None in counts,
        model[:200] if isinstance(model, str) and model.isprintable() else config.name,
    )


def _refused_text(choice: Any) -> str | None:
    """A chat model that refuses may say so in a field of its own."""
    refusal = choice["message"].get("refusal") if isinstance(choice.get("message"), dict) else None
    return refusal if isinstance(refusal, str) else None


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None


def as_error(url: str, error: NoAnswer) -> CodestillError:
    """What a run says when it gives up: what will not change by waiting is the user's to mend (exit code 2)."""
    if error.kind in ("nonsense", "refused"):
        do = "check url, model and style: is this an OpenAI-compatible server?"
        return UsageError(f"endpoint {url}", expected="answers", got=error.said, do=do)
    return RunError(f"endpoint {url}", expected="answers", got=error.said, do="run the same command again to go on")
