"""Ctrl-C and SIGTERM while a student trains: the step is finished, a checkpoint is written, and the run can go on from it.

Not for kill -9, which needs no farewell: checkpoints are whole or absent (checkpoint.py).
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

WATCHED = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """The first signal is remembered; whoever trains looks at `signal` after each step.

    Args:
        insistent: a second Ctrl-C ends at once. Not under a launcher, which sends its own after the user's.
    """

    def __init__(self, *, insistent: bool) -> None:
        self._insistent = insistent
        self.signal = 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the body runs, SIGINT and SIGTERM only ask."""
        before = {number: signal.signal(number, self._note) for number in WATCHED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.signal == number == signal.SIGINT and self._insistent:
            raise KeyboardInterrupt
        if not self.signal:
            again = "; Ctrl-C again ends at once" if self._insistent and number == signal.SIGINT else ""
            print(f"stopping after this step and a checkpoint{again}", file=sys.stderr)
        self.signal = number


def leave(number: int, step: int, total: int, out: Path) -> None:
    """End the process as the signal asks, once the checkpoint stands.

    Raises:
        SystemExit: 130 after Ctrl-C, 143 after SIGTERM, as a shell reports them.
    """
    name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    print(f"stopped by {name} at step {step} of {total}: saved in {out}; the same command goes on", file=sys.stderr)
    raise SystemExit(128 + number)
