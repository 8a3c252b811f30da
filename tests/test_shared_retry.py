"""Trouble that may pass is tried again, other trouble is not: huggingface_hub's own client against a server with bad days."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hub_stub import REPO, HubAnswer, hub_serving

from shared.retry import MOST, may_pass, retrying


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that were waited, without waiting."""
    found: list[float] = []
    monkeypatch.setattr("shared.retry.time", SimpleNamespace(sleep=found.append))  # the hub's client pauses on its own
    return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A hub with one model, whose next answers are the statuses in `moods`."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    moods: list[tuple[int, dict[str, str]]] = []

    class Moody(HubAnswer):
        def do_GET(self) -> None:
            status, headers = moods.pop(0) if moods else (200, {})
            if status == 200:
                super().do_GET()
            else:
                self.say({"error": "a bad day"}, status, **headers)

    with hub_serving(tmp_path, "models") as server:
        server.RequestHandlerClass = Moody
        server.commits.append({"config.json": b"{}"})  # type: ignore[attr-defined]
        server.moods = moods  # type: ignore[attr-defined]
        yield server


def fetch(hub: Any, folder: Path) -> str:
    from huggingface_hub import hf_hub_download

    path = hf_hub_download(REPO, "config.json", endpoint=hub.url, cache_dir=folder, etag_timeout=5)
    return Path(path).read_text()


def raising(*errors: BaseException) -> Callable[[], str]:
    """Raises each of `errors` once, and then returns."""
    left = iter(errors)

    def call() -> str:
        if (error := next(left, None)) is not None:
            raise error
        return "done"

    return call


def test_a_flaky_hub_is_asked_again(
    hub: Any, tmp_path: Path, pauses: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """With statuses that its client does not ask about again of itself."""
    hub.moods += [(520, {}), (524, {}), (520, {"Retry-After": "17"})]
    assert retrying("model org/name", partial(fetch, hub, tmp_path / "cache"), seed=1) == "{}"
    assert hub.moods == []
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("model org/name: ")]
    assert [line.rpartition("; ")[2] for line in said] == [
        f"attempt {number} of 5 in {pause:.1f} s" for number, pause in enumerate(pauses, 2)
    ]
    assert [1 <= pauses[0] <= 2, 2 <= pauses[1] <= 4, pauses[2]] == [True, True, 17]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_the_hub_refuses_is_not_asked_again(hub: Any, tmp_path: Path, pauses: list[float], status: int) -> None:
    hub.moods += [(status, {})] * 9
    with pytest.raises(OSError) as caught:
        retrying("model org/name", partial(fetch, hub, tmp_path / "cache"))
    assert str(status) in str(caught.value.__cause__ or caught.value)
    assert pauses == []


def test_after_the_last_attempt_the_error_is_the_calls_own(pauses: list[float]) -> None:
    errors = [ConnectionResetError(f"attempt {number}") for number in range(1, 6)]
    with pytest.raises(ConnectionResetError, match="attempt 3"):
        retrying("it", raising(*errors), attempts=3)
    assert len(pauses) == 2
    assert retrying("it", raising(*errors[:4])) == "done"


def test_pauses_grow_and_are_scattered_by_the_seed(pauses: list[float]) -> None:
    errors = [TimeoutError()] * 4
    for seed in (1, 1, 2):
        retrying("it", raising(*errors), seed=seed)
    first, again, other = pauses[:4], pauses[4:8], pauses[8:]
    assert first == again
    assert first != other
    assert all(2**number <= pause <= 2 ** (number + 1) for number, pause in enumerate(first))


def test_what_may_pass() -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    def wrapped(cause: BaseException) -> OSError:
        """As transformers wraps it."""
        error = OSError("cannot load the model")
        error.__cause__ = cause
        return error

    def answered(status: int) -> OSError:
        error = OSError("an answer")
        error.response = SimpleNamespace(status_code=status, headers={})  # type: ignore[attr-defined]
        return error

    def unnamed(number: int) -> ConnectionError:
        """As an HTTP client wraps it."""
        error = ConnectionError("no name")
        error.__cause__ = socket.gaierror(number, "no name")
        return error

    passing = [ConnectionError(), TimeoutError(), answered(500), answered(503), answered(429), answered(408)]
    passing.append(unnamed(socket.EAI_AGAIN))
    lasting = [OSError("no space"), ValueError(), answered(404), answered(401), OfflineModeIsEnabled("offline")]
    lasting.append(unnamed(socket.EAI_NONAME))
    assert [may_pass(error) for error in passing] == [True] * 7
    assert [may_pass(wrapped(error)) for error in passing] == [True] * 7
    assert [may_pass(error) for error in lasting] == [False] * 6
    assert [may_pass(wrapped(error)) for error in lasting] == [False] * 6
    round_about = ConnectionError()
    round_about.__context__ = wrapped(round_about)
    assert may_pass(round_about), "a circle of causes ends"


def test_a_server_cannot_ask_for_a_day(pauses: list[float]) -> None:
    error = OSError("busy")
    error.response = SimpleNamespace(status_code=429, headers={"Retry-After": "86400"})  # type: ignore[attr-defined]
    retrying("it", raising(error))
    assert pauses == [MOST]
