"""Small integers as bytes that zstd does well on: signs folded, few bits each, what does not fit told apart.

Not for what the numbers mean (cache/encoding.py, cache/basis.py).

Why few bits: a byte costs zstd's Huffman coder at least one bit, and a table of its own in every frame. Most coordinates
hold two bits: two in a byte come near their entropy. The low bits of larger numbers are noise that no coder shortens; they
stand apart, so that what is left of numbers of any spread looks alike and one table serves all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def zigzag(values: NDArray[np.signedinteger[Any]]) -> NDArray[np.uint16]:
    """0, -1, 1, -2, ... become 0, 1, 2, 3, ...: uint16, for values that int16 holds."""
    wide = values.astype(np.int32)
    return np.asarray((wide << 1) ^ (wide >> 31), dtype="<u2")


def unzigzag(codes: NDArray[np.unsignedinteger[Any]]) -> NDArray[np.int16]:
    """The inverse of zigzag: int16."""
    return ((codes >> 1) ^ -(codes & 1)).view(np.int16)


def pack(symbols: NDArray[Any], width: int) -> Bytes:
    """8 / width symbols of `width` bits in a byte: those that are ceil(n * width / 8) apart, the first one highest.

    Args:
        symbols: one-dimensional, below 2^width; the last bytes are filled up with zeros.
        width: 1 (then neighbours share a byte), 2, 4 or 8.
    """
    if width == 1:
        return np.packbits(symbols.astype(np.uint8))
    parts = 8 // width
    padded = np.zeros((parts, -(-len(symbols) // parts)), np.uint8)
    padded.reshape(-1)[: len(symbols)] = symbols
    packed: Bytes = padded[0].copy()
    for row in padded[1:]:
        packed <<= width
        packed |= row
    return packed


def unpack(packed: Bytes, width: int, count: int) -> Bytes:
    """The inverse of pack: the first `count` symbols."""
    if width == 1:
        return np.unpackbits(packed, count=count)
    if width == 8:
        return packed[:count]
    return _PARTS[width].take(packed, axis=1).reshape(-1)[:count]


_PARTS = {
    width: np.stack(
        [np.arange(256, dtype=np.uint8) >> place & (1 << width) - 1 for place in range(8 - width, -1, -width)]
    )
    for width in (2, 4)
}
"""[8 / width, 256]: the symbols of each byte."""


def packed_size(count: int, width: int) -> int:
    """Bytes that pack makes of so many symbols."""
    return -(-count // (8 // width))


def narrow(codes: NDArray[np.integer[Any]], width: int) -> tuple[Bytes, NDArray[Any]]:
    """(Symbols of `width` bits, and what the full ones among them leave over, in order)."""
    top = (1 << width) - 1
    return np.minimum(codes, top).astype(np.uint8), codes[codes >= top] - top


def widen(symbols: Bytes, width: int, over: NDArray[Any]) -> NDArray[np.int32]:
    """The inverse of narrow; there must be as many leftovers as full symbols (see `full`)."""
    codes = symbols.astype(np.int32)
    if len(over):
        codes[symbols == (1 << width) - 1] += over
    return codes


def full(symbols: Bytes, width: int) -> int:
    """How many leftovers belong to these symbols."""
    return int(np.count_nonzero(symbols == (1 << width) - 1))


def low_bits(values: NDArray[np.signedinteger[Any]], bits: int) -> Bytes:
    """The lowest `bits` bits of one-dimensional values, as ones and zeros: all lowest ones first."""
    planes = (values[None] >> np.arange(bits)[:, None]) & 1
    return planes.astype(np.uint8).reshape(-1)


def add_low_bits(high: NDArray[np.signedinteger[Any]], bits: int, ones: Bytes) -> NDArray[np.int32]:
    """The inverse: values from what is above their lowest bits, and those."""
    values = high.astype(np.int32) << bits
    for place, plane in enumerate(ones.reshape(bits, len(high))):
        values |= plane.astype(np.int32) << place
    return values


def join(pieces: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """One array of several; of one, itself."""
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def beside(tables_W: Sequence[NDArray[Any]], counts_W: Sequence[int]) -> NDArray[Any]:
    """[C, sum of counts] of tables that each are [C, count], whatever their shape says."""
    tables = [table.reshape(-1, count) for table, count in zip(tables_W, counts_W, strict=True)]
    return tables[0] if len(tables) == 1 else np.concatenate(tables, axis=1)


def spans(counts_W: Sequence[int]) -> list[slice]:
    """Where each window's own lie among those of all."""
    return [slice(start, end) for start, end in pairwise(accumulate(counts_W, initial=0))]
