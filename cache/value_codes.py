"""Log-probabilities of heads from the distances between neighbours, in running sums that start again with each head.

Not for how the distances are stored, nor for the tail's numbers (tail_codes.py).
Legend: P positions, E head entries, W words of four entries.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.id_codes import Heads

TOP_CODE = 65534  # of a head's distances together, its best entry's from 0 included where that is stored
LANES = 4
_EACH_LANE = np.uint64(0x0001_0001_0001_0001)


def around(gaps: NDArray[Any], mass_P: NDArray[np.float64], heads: Heads, step: float) -> NDArray[np.float32]:
    """float32 [E]: distances to each head's best entry, shifted so that the head's mass is `mass_P`.

    Raises:
        ValueError: a head reaches further than TOP_CODE steps.
    """
    logprobs_E = _sums(heads.spread(0, gaps, np.int32), heads) * -step
    best_P = mass_P - np.log(np.add.reduceat(np.exp(logprobs_E), heads.starts_P)) + 0
    return (logprobs_E + np.repeat(best_P, heads.sizes_P)).astype(np.float32)


def below_best(gaps: NDArray[Any], best_P: NDArray[np.int32], heads: Heads, step: float) -> NDArray[np.float32]:
    """float32 [E]: distances to each head's best entry, which itself is so many steps below 0.

    Raises:
        ValueError: a best entry above 0, or a head that reaches further than TOP_CODE steps.
    """
    least = int(best_P.min())
    if least < 0:
        raise ValueError("a probability above 1")
    furthest = int(best_P.max()) + 255 * heads.width  # where gaps are single bytes
    if gaps.dtype == np.uint8 and heads.width and heads.width % LANES == 0 and furthest <= TOP_CODE:
        sums_E: NDArray[Any] = _sums_of_rows(heads.spread(best_P, gaps, np.uint16), heads.width)
    else:
        sums_E = _sums(heads.spread(best_P, gaps, np.int32), heads)
    found = sums_E.astype(np.float32)
    found *= -np.float32(step)
    if least == 0:
        found += 0  # no -0.0
    return found


def _sums(steps_E: NDArray[Any], heads: Heads) -> NDArray[np.integer[Any]]:
    """Running sums that start again with each head."""
    if heads.width:
        sums_PK = np.cumsum(steps_E.reshape(-1, heads.width), axis=1, dtype=np.int32)
        sums_E, last = sums_PK.reshape(-1), sums_PK[:, -1]
    else:
        whole_E = np.cumsum(steps_E, dtype=np.int64)
        before_P = whole_E[heads.starts_P] - steps_E[heads.starts_P]
        sums_E = last = whole_E - np.repeat(before_P, heads.sizes_P)
    if last.max() > TOP_CODE:
        raise ValueError("log-probabilities below the smallest that can be stored")
    return sums_E


def _sums_of_rows(steps_E: NDArray[np.uint16], width: int) -> NDArray[np.uint16]:
    """The same in place, where every head has `width` entries, a multiple of four, and no sum needs more than two bytes.

    Four steps are one number of eight bytes. Times _EACH_LANE it holds their running sums; what all words of the row
    before it add up to is then added to each of the four. Half the time of numpy's running sum along rows. For machines that
    store the lowest byte first, as shards do.
    """
    words_W = steps_E.view(np.uint64)
    words_W *= _EACH_LANE
    totals_W = words_W >> np.uint64(48)
    before_W = np.cumsum(totals_W)
    before_W -= totals_W
    before_PW = before_W.reshape(-1, width // LANES)
    before_PW -= before_PW[:, :1].copy()
    before_W *= _EACH_LANE
    words_W += before_W
    return steps_E
