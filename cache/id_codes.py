"""Which ids stand in the heads, and the window's own tokens, as bytes.

The teacher is mostly right, so a token is stored as its rank in the head before it, and only a token that no head held has an
id of its own. Ids are ranks in the basis's order where there is one: small numbers are likely then, and take one byte.
FORMAT.md says the same in words. Not for log-probabilities (encoding.py).
Legend: P positions, E head entries, I ids: the first token, those no head held, each head's best, the other head ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.packing import Bytes, add_low_bits, low_bits, pack, unpack

DIRECT = 64  # ids below this take one byte, in caches with a basis
LARGE = 16  # from this k on, heads are read as tables: bytes are cheap there, and time is not
MISSED = 0  # rank of a token that is not in the head; 1 is the most likely id


@dataclass(frozen=True, slots=True)
class Heads:
    """Where the entries of each position's head lie among all.

    Attributes:
        sizes_P: int32. starts_P: int64, the first entry of each.
        width: the size of all heads where it is one and the same, as with top_p = 1: then they are rows of a table. Else 0.
    """

    sizes_P: NDArray[np.int32]
    starts_P: NDArray[np.int64]
    width: int

    @classmethod
    def of(cls, sizes_P: NDArray[np.int32]) -> Heads:
        """Heads of these sizes, each at least 1."""
        first = int(sizes_P[0])
        width = first if (sizes_P == first).all() else 0
        if width:
            return cls(sizes_P, np.arange(0, width * len(sizes_P), width), width)
        return cls(sizes_P, np.cumsum(sizes_P, dtype=np.int64) - sizes_P, width)

    @property
    def entries(self) -> int:
        """E."""
        return int(self.starts_P[-1]) + int(self.sizes_P[-1])

    def others(self) -> NDArray[np.bool_]:
        """False at each head's first entry, [E]."""
        others_E = np.ones(self.entries, bool)
        others_E[self.starts_P] = False
        return others_E

    def spread(self, first_P: NDArray[Any] | int, rest: NDArray[Any], dtype: type) -> NDArray[Any]:
        """[E]: each head's first value and the others, which come position after position."""
        positions = len(self.sizes_P)
        entries_E: NDArray[Any] = np.empty(positions + len(rest), dtype)
        if self.width:
            entries_PK = entries_E.reshape(positions, self.width)
            entries_PK[:, 0] = first_P
            entries_PK[:, 1:] = rest.reshape(positions, self.width - 1)
        else:
            entries_E[self.others()] = rest
            entries_E[self.starts_P] = first_P
        return entries_E

    def hold(self, positions: NDArray[np.int64], wanted: NDArray[np.int32], ids_E: NDArray[np.int32]) -> bool:
        """Whether the head of any of these positions has the id that is wanted there."""
        if self.width:
            return bool((ids_E.reshape(-1, self.width).take(positions, axis=0) == wanted[:, None]).any())
        wanted_P = np.full(len(self.sizes_P), -1, np.int32)
        wanted_P[positions] = wanted
        return bool((ids_E == np.repeat(wanted_P, self.sizes_P)).any())

    def ranks(self, next_P: NDArray[np.int32], ids_E: NDArray[np.int32]) -> NDArray[np.int64]:
        """Where in its head each next token stands, [P]: 1 for the most likely id, MISSED where it is not there."""
        row_E = np.repeat(np.arange(len(self.sizes_P)), self.sizes_P)
        hits = np.flatnonzero(ids_E == next_P[row_E])[::-1]  # of an id that stands twice, the better one
        ranks_P = np.zeros(len(self.sizes_P), np.int64)
        ranks_P[row_E[hits]] = hits - self.starts_P[row_E[hits]] + 1
        return ranks_P


def encode_heads(sizes_P: NDArray[np.int32], ranks_P: NDArray[np.int64], k: int) -> Bytes:
    """Sizes and ranks in one byte each where k allows it, else all sizes, then all ranks."""
    if k < LARGE:
        return ((sizes_P - 1) * (k + 1) + ranks_P).astype(np.uint8)
    return np.concatenate([sizes_P - 1, ranks_P]).astype(np.uint8)


def decode_heads(raw: Bytes, positions: int, k: int) -> tuple[NDArray[np.int32], Bytes]:
    """(Sizes, ranks).

    Raises:
        ValueError: a size above k, or a rank above its head's size.
    """
    sizes_P, ranks_P = np.divmod(raw, k + 1) if k < LARGE else raw.reshape(2, positions)
    if sizes_P.max() >= k:
        raise ValueError(f"head sizes outside 1..{k}")
    sizes_P = sizes_P + np.uint8(1)  # at most k, which a byte holds
    if (ranks_P > sizes_P).any():
        raise ValueError("a token at a rank its head does not have")
    return sizes_P.astype(np.int32), ranks_P


def heads_size(k: int) -> int:
    """Bytes a position of sizes and ranks."""
    return 1 if k < LARGE else 2


def low_width(vocab_size: int, direct: int) -> int:
    """Bits of an id beside its first byte: at least 8, and no more than the vocabulary needs."""
    bits = 8
    while direct + ((vocab_size - 1 - direct) >> bits) > 255:
        bits += 1
    return bits


def encode_ids(ids_I: NDArray[np.int32], vocab_size: int, direct: int) -> tuple[Bytes, list[Bytes]]:
    """(First bytes; low bytes and further low bits of the ids that need them)."""
    bits, large_I = low_width(vocab_size, direct), ids_I >= direct
    above = ids_I[large_I] - direct
    first_I = ids_I.copy()
    first_I[large_I] = direct + (above >> bits)
    return first_I.astype(np.uint8), [
        (above & 255).astype(np.uint8),
        pack(low_bits(above >> 8, bits - 8), 1),
    ]


def decode_ids(first_I: Bytes, low: Bytes, further: Bytes, vocab_size: int, direct: int) -> NDArray[Any]:
    """The inverse: integers [I], not yet known to lie inside the vocabulary."""
    bits = low_width(vocab_size, direct)
    if bits == 8 and not direct:
        ids_I = first_I.astype(np.uint16)
        ids_I *= np.uint16(256)
        ids_I += low.astype(np.uint16)
        return ids_I
    rest = low.astype(np.int32)
    if bits > 8:
        rest |= add_low_bits(np.zeros(len(low), np.int32), bits - 8, unpack(further, 1, len(low) * (bits - 8))) << 8
    wide_I = first_I.astype(np.int32)
    large = np.flatnonzero(first_I >= direct)
    wide_I[large] = direct + ((wide_I[large] - direct) << bits | rest)
    return wide_I
