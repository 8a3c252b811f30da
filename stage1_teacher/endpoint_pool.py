"""Many questions to one endpoint at once: threads that ask, save and count, and stop in order.

The thread that got an answer saves it, so that neither Ctrl-C nor SIGTERM, which only reach the main thread, can come between
the two and lose what was paid for. Not for one question (stage1_teacher/endpoint.py) nor for files.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from stage1_teacher.endpoint import Answer, Endpoint, NoAnswer, Stopped, as_error
from stage1_teacher.prompt_sets import Prompt

Job = tuple[Prompt, int]
GIVE_UP = 8  # questions in a row without an answer, each after all its tries
WAKE = 0.05  # seconds between two looks of the main thread at the signals that came
GRACE = 10.0  # seconds that answers under way get to arrive when the run is stopped


class Pool:
    """Asks every job of `jobs` with so many threads as the config allows, and hands each answer's row to `save`.

    Attributes:
        failed: questions without an answer, by kind.
    """

    def __init__(self, endpoint: Endpoint, jobs: Iterator[Job], save: Callable[[dict[str, Any]], None]) -> None:
        self.endpoint, self.failed = endpoint, Counter[str]()
        self._jobs, self._save, self._lock = jobs, save, threading.Lock()
        self._in_a_row, self._saved = 0, 0
        self._torn = False  # an answer was not saved whole (a full disk): nothing may stand behind it
        self._error: BaseException | None = None
        self._last: NoAnswer | None = None

    def run(self) -> None:
        """Ask until there is nothing left to ask.

        Raises:
            UsageError, RunError: the endpoint answers nobody; what was answered is saved.
            OSError: the disk.
        """
        count = self.endpoint.server.concurrency
        threads = [threading.Thread(target=self._work, name=f"endpoint {n}", daemon=True) for n in range(count)]
        try:
            for thread in threads:
                thread.start()
            _wait(threads, math.inf)
        finally:  # also for the exception that a signal raises in the wait above
            self.endpoint.stop.set()
            _wait(threads, GRACE)
        if self._error is not None:
            raise self._error
        if self._last is not None and not self._saved:
            raise as_error(self.endpoint.url, self._last)

    def _work(self) -> None:
        try:
            while (job := self._next()) is not None:
                self._settle(*job)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001  # the main thread raises it again
            self._fail(error)

    def _next(self) -> Job | None:
        with self._lock:
            return None if self.endpoint.stop.is_set() else next(self._jobs, None)

    def _settle(self, prompt: Prompt, index: int) -> None:
        try:
            answer = self.endpoint.ask(prompt, index)
        except NoAnswer as error:
            self._count(error)
            return
        with self._lock:
            if self._torn:
                raise Stopped
            self._torn = True
            self._save(_row(prompt, index, answer))
            self._torn = False
            self._in_a_row, self._saved = 0, self._saved + 1

    def _count(self, error: NoAnswer) -> None:
        with self._lock:
            self.failed[error.kind] += 1
            self._in_a_row, self._last = self._in_a_row + 1, error
            enough = self._in_a_row >= GIVE_UP
        if enough:
            raise as_error(self.endpoint.url, error)

    def _fail(self, error: BaseException) -> None:
        with self._lock:
            self._error = self._error or error
        self.endpoint.stop.set()

    @property
    def said(self) -> str:
        """What the last question without an answer met."""
        return self._last.said if self._last is not None else ""


def _wait(threads: Sequence[threading.Thread], seconds: float) -> None:
    """Until all have ended, or so long; by looking: a signal that the system hands to another thread wakes no lock."""
    end = time.monotonic() + seconds
    while any(thread.is_alive() for thread in threads) and time.monotonic() < end:
        time.sleep(WAKE)


def _row(prompt: Prompt, index: int, answer: Answer) -> dict[str, Any]:
    return {
        "prompt_id": prompt.id,
        "index": index,
        "answer": answer.text,
        "finish": answer.finish,
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.completion_tokens,
        "estimated": answer.estimated,
        "model": answer.model,
    }
