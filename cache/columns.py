"""The signed numbers of a position, of any spread, as bytes: the tail's mass and coordinates side by side.

Each column is one number a position. Its high part goes into half a byte (a full one says that more follows), its noisy low
bits stand apart; FORMAT.md says the same in words. Not for what the numbers mean: tail_codes.py, shape.py.
Legend: P positions, R directions, C columns: log-odds, residual at the first node, coordinates, the other residuals, in
caches of large heads the best entry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.packing import Bytes, narrow, pack, packed_size, unpack, unzigzag, widen, zigzag

HALF = 4  # bits of a high part
FULL = 15
ODDS_BITS, FIRST_BITS, BEST_BITS = 5, 4, 4  # low bits of log-odds, first residual, best entry
OTHERS = 6  # residuals without low bits
_SIGNED = unzigzag(np.arange(FULL, dtype=np.uint16)).astype(np.int32)


@dataclass(frozen=True, eq=False)
class Columns:
    """How columns lie in bytes.

    Attributes:
        low_C: low bits of each, int32 [C, 1].
        order_C: which column stands where among the high parts: the second half backwards, so that the widest shares bytes with
            the narrowest.
        place_C: the inverse.
        cuts: (width, columns, where in the number) of the symbols that low bits are cut into: the binary digits of their count.
    """

    low_C: NDArray[np.int32]
    order_C: NDArray[np.int64]
    place_C: NDArray[np.int64]
    cuts: tuple[tuple[int, NDArray[np.int64], NDArray[np.int32]], ...]

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
    return Columns(low_C[:, None].astype(np.int32), order_C, np.argsort(order_C), parts)


def encode_columns(values_CP: NDArray[np.int32], layout: Columns) -> tuple[Bytes, Bytes, NDArray[Any]]:
    """(High parts two in a byte; low bits; what did not fit into a high part, column after column)."""
    high_CP = (values_CP >> layout.low_C)[layout.order_C]
    symbols, over = narrow(zigzag(high_CP).ravel(), HALF)
    cut = [
        pack(((values_CP[columns] >> places) & ((1 << width) - 1)).ravel(), width)
        for width, columns, places in layout.cuts
    ]
    return pack(symbols, HALF), np.concatenate(cut), over


def _far(codes: NDArray[np.int32]) -> NDArray[np.int32]:
    return unzigzag(codes.astype(np.uint16)).astype(np.int32)


def decode_columns(
    symbols: Bytes, low: Bytes, over: NDArray[Any], layout: Columns, positions: int
) -> NDArray[np.int32]:
    """The inverse: int32 [C, P]."""
    high = _SIGNED.take(symbols) if not len(over) else _far(widen(symbols, HALF, over))
    values_CP: NDArray[np.int32] = high.reshape(-1, positions)[layout.place_C]
    values_CP <<= layout.low_C
    for width, columns, places in layout.cuts:
        count = len(columns) * positions
        size = packed_size(count, width)
        part = unpack(low[:size], width, count).reshape(-1, positions).astype(np.int32)
        values_CP[columns] |= part << places
        low = low[size:]
    return values_CP
