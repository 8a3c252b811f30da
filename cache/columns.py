"""The signed numbers of a position, of any spread, as bytes: the tail's mass and coordinates side by side.

Each column is one number a position. Its high part goes into half a byte (a full one says that more follows), its noisy low
bits stand apart; FORMAT.md says the same in words. Not for what the numbers mean: tail_codes.py, shape.py.
Legend: P positions, R directions, C columns: log-odds, residual at the first node, coordinates, the other residuals, in
caches of large heads the best entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.packing import Bytes, beside, narrow, pack, packed_size, spans, unpack, unzigzag, zigzag

HALF = 4  # bits of a high part
FULL = 15
ODDS_BITS, FIRST_BITS, BEST_BITS = 5, 4, 4  # low bits of log-odds, first residual, best entry
OTHERS = 6  # residuals without low bits
_SIGNED = np.array([*unzigzag(np.arange(FULL, dtype=np.uint16)), FULL], np.int32)  # FULL: more follows
_PAIRS = _SIGNED[unpack(np.arange(256, dtype=np.uint8), HALF, 512).reshape(2, 256)]


@dataclass(frozen=True, eq=False)
class Columns:
    """How columns lie in bytes.

    Attributes:
        low_C: low bits of each, int32 [C, 1].
        order_C: which column stands where among the high parts: the second half backwards, so that the widest shares bytes with
            the narrowest.
        place_C: the inverse.
        cuts: (width, columns, where in the number) of the symbols that low bits are cut into: the binary digits of their count.
        runs: for each cut, its columns that stand side by side and have these bits at one place:
            (which of the cut's columns, which of all, where in the number).
    """

    low_C: NDArray[np.int32]
    order_C: NDArray[np.int64]
    place_C: NDArray[np.int64]
    cuts: tuple[tuple[int, NDArray[np.int64], NDArray[np.int32]], ...]
    runs: tuple[tuple[tuple[slice, slice, int], ...], ...]

    def sizes(self, positions: int) -> tuple[int, int]:
        """Bytes of high parts and of low bits."""
        low = sum(packed_size(len(columns) * positions, width) for width, columns, _ in self.cuts)
        return packed_size(len(self.low_C) * positions, HALF), low


@lru_cache(maxsize=64)
def columns(wide: tuple[int, ...], directions: int, best: bool) -> Columns:
    """Of an encoding. `wide`: how many directions have one low bit or more, two or more, ...; `best`: with best entries."""
    bits_R = (np.arange(directions) < np.array([*wide, 0])[:, None]).sum(axis=0)
    low_C = np.array([ODDS_BITS, FIRST_BITS, *bits_R, *[0] * OTHERS, *[BEST_BITS] * best])
    half = (len(low_C) + 1) // 2
    order_C = np.concatenate([np.arange(half), np.arange(len(low_C) - 1, half - 1, -1)])
    widths = [width for width in (8, 4, 2, 1) if (low_C & width).any()]
    cuts = [(width, np.flatnonzero(low_C & width)) for width in widths]
    places = [(low_C[columns] & -2 * width)[:, None].astype(np.int32) for width, columns in cuts]
    parts = tuple((*cut, place) for cut, place in zip(cuts, places, strict=True))
    runs = tuple(_runs(columns, place[:, 0]) for _, columns, place in parts)
    return Columns(low_C[:, None].astype(np.int32), order_C, np.argsort(order_C), parts, runs)


def _runs(columns: NDArray[np.int64], places: NDArray[np.int32]) -> tuple[tuple[slice, slice, int], ...]:
    breaks = np.flatnonzero((np.diff(columns) != 1) | (np.diff(places) != 0)) + 1
    edges = [0, *breaks.tolist(), len(columns)]
    return tuple(
        (slice(start, end), slice(int(columns[start]), int(columns[end - 1]) + 1), int(places[start]))
        for start, end in pairwise(edges)
    )


def encode_columns(values_CP: NDArray[np.int32], layout: Columns) -> tuple[Bytes, Bytes, NDArray[Any]]:
    """(High parts two in a byte; low bits; what did not fit into a high part, column after column)."""
    high_CP = (values_CP >> layout.low_C)[layout.order_C]
    symbols, over = narrow(zigzag(high_CP).ravel(), HALF)
    cut = [
        pack(((values_CP[columns] >> places) & ((1 << width) - 1)).ravel(), width)
        for width, columns, places in layout.cuts
    ]
    return pack(symbols, HALF), np.concatenate(cut), over


def high_parts(packed: Bytes, count: int) -> NDArray[np.int32]:
    """The first `count` high parts; FULL where more follows, which `whole` takes in."""
    return _PAIRS.take(packed, axis=1).reshape(-1)[:count]


def whole(over: NDArray[np.uint16]) -> NDArray[np.int16]:
    """High parts from what follows the full ones."""
    return unzigzag(over + np.uint16(FULL))


def decode_columns(
    high: NDArray[np.int32], low_W: Sequence[Bytes], layout: Columns, counts_W: Sequence[int]
) -> NDArray[np.int32]:
    """The inverse of encode_columns, int32 [C, P] for the positions of several windows.

    Args:
        high: their whole high parts, window after window.
        low_W: the low bits of each.
        counts_W: positions of each.
    """
    high_W = [high[its] for its in spans([len(layout.low_C) * positions for positions in counts_W])]
    values_CP: NDArray[np.int32] = beside(high_W, counts_W).take(layout.place_C, axis=0)
    values_CP <<= layout.low_C
    for (width, columns, _), runs in zip(layout.cuts, layout.runs, strict=True):
        symbols_W = [len(columns) * positions for positions in counts_W]
        sizes_W = [packed_size(count, width) for count in symbols_W]
        parts = [unpack(low[:size], width, count) for low, size, count in zip(low_W, sizes_W, symbols_W, strict=True)]
        low_W = [low[size:] for low, size in zip(low_W, sizes_W, strict=True)]
        bits = beside(parts, counts_W).astype(np.int32)
        for rows, places, place in runs:
            values_CP[places] |= bits[rows] << place if place else bits[rows]
    return values_CP
