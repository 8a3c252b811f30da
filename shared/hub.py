"""Rows of a hub data set through the hub's bad hours: wait, and go on at the row after the last one.

huggingface_hub and datasets try a request again for a while; this is for what is left when they give up. Not for which rows
(shared/rows.py), calls that begin anew (shared/retry.py), nor files of a cache (cache/transfer.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tqdm import tqdm

from shared.errors import printable
from shared.retry import may_pass, retrying

WAITS = (15.0, 60.0, 240.0, 600.0)  # seconds between attempts without a single row in between; then the run ends

Row = dict[str, Any]


def steady_rows(open_rows: Callable[[], Iterable[Row]], what: str) -> Iterator[Row]:
    """Every row once, in order, whatever the hub does in between.

    Args:
        open_rows: opens the data set; what it returns can go on where it stood if it has `state_dict` and `load_state_dict`,
            as a streamed data set has.
        what: what a message on stderr calls it.
    Raises:
        Exception: the library's own: at once if waiting will not help; else after WAITS, or where nothing was read yet, after
            those of shared/retry.py.
    """
    from huggingface_hub import constants

    # who has asked for no hub (HF_HUB_OFFLINE) waits for none: datasets calls that a lost connection
    rows: Any = open_rows() if constants.HF_HUB_OFFLINE else retrying(what, open_rows)
    failures = 0
    while True:
        try:
            for row in rows:
                failures = 0
                yield row
            return
        except Exception as error:
            if failures == len(WAITS) or not may_pass(error):
                raise
            line = printable(" ".join(str(error).split())[:200]) or type(error).__name__
            tqdm.write(f"{what}: {line}; again in {WAITS[failures]:g} s", file=sys.stderr)
        time.sleep(WAITS[failures])
        failures += 1
        rows.load_state_dict(rows.state_dict())
