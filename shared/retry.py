"""Try again when a hub or server hiccups: a few attempts, with growing and scattered pauses between them.

For one call that starts from nothing, such as opening a model or a tokenizer by its hub id. Not for rows of a data set, which
go on where they stood (hub.py), files of a cache (cache/transfer.py), nor a poor answer: only for trouble that may pass.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from tqdm import tqdm

from shared.errors import printable

ATTEMPTS = 5
FIRST = 2.0  # seconds before the second attempt; doubled before each further one: half a minute in all
MOST = 120.0  # seconds, where a server says itself how long to wait
BUSY = (408, 425, 429)  # HTTP statuses that ask for patience, with all from 500 on

T = TypeVar("T")


def retrying(what: str, call: Callable[[], T], *, attempts: int = ATTEMPTS, seed: int | None = None) -> T:
    """What `call` returns, tried again after a lost connection, a timeout, or an HTTP status that asks for patience.

    Args:
        what: how a line on stderr names it, one for each new attempt.
        seed: of the pauses' scatter, which keeps many machines from coming back at once; None draws one.
    Raises:
        Exception: the call's own: at once where waiting will not help, else that of the last attempt.
    """
    scatter = random.Random(seed)
    for number in range(1, attempts):
        try:
            return call()
        except Exception as error:
            if not may_pass(error):
                raise
            pause = max(FIRST * 2 ** (number - 1) * scatter.uniform(0.5, 1.0), _asked_for(error))
            line = printable(" ".join(str(error).split())[:200])
            said = f"{what}: {line or type(error).__name__}; attempt {number + 1} of {attempts} in {pause:.1f} s"
            tqdm.write(said, file=sys.stderr)
        time.sleep(pause)
    return call()


def may_pass(error: BaseException) -> bool:
    """Whether this trouble may be gone in a while; libraries wrap it, so what caused it counts as well."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    causes = list(_causes(error))
    statuses = [status for cause in causes if (status := _status(cause)) is not None]
    if any(isinstance(cause, OfflineModeIsEnabled) or _no_such_host(cause) for cause in causes):
        return False
    if statuses:
        return statuses[0] in BUSY or statuses[0] >= 500
    return any(isinstance(cause, (ConnectionError, TimeoutError, http_error())) for cause in causes)


def _no_such_host(error: BaseException) -> bool:
    """A machine without a network, or a wrong name; a name server that is late says EAI_AGAIN."""
    return isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what led to it, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error of huggingface_hub, httpx or requests."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _asked_for(error: BaseException) -> float:
    """Seconds that the server's Retry-After asks for, MOST at most; 0 where it asks for none."""
    for cause in _causes(error):
        headers = getattr(getattr(cause, "response", None), "headers", None) or {}
        text = str(headers.get("Retry-After", ""))
        if text.isdecimal():
            return min(MOST, float(text))
    return 0.0


def http_error() -> type[Exception]:
    """The root of what huggingface_hub's HTTP client raises: timeouts, cut connections; which client is its own business."""
    from huggingface_hub.errors import HfHubHTTPError

    base: type[Exception] = HfHubHTTPError.__bases__[0]
    return base
