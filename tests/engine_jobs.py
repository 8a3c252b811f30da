"""What tests of engines ask of their jobs. Not a test file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from shared.jobs import Engine, Finished, Job

ENDS = 120.0  # seconds in which what goes wrong is given up: Ray starts slowly


def wait_for(condition: Callable[[], object]) -> None:
    """Until it holds."""
    end = time.monotonic() + ENDS
    while not condition():
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.01)


def said(job: Job) -> str:
    """Its log so far."""
    return job.log.read_text() if job.log.exists() else ""


def is_gone(pid: int) -> bool:
    """Ended; whoever adopted it may not have collected it yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def ended(engine: Engine) -> Finished:
    """The next job to end."""
    found = engine.next_finished(ENDS)
    assert found is not None, "it hangs"
    return found
