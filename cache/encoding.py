"""From a CachedWindow to small integer arrays and back.

Not for compression (cache/frames.py) and not for files (cache/shard.py). FORMAT.md says the same in words; change both
or neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from cache.record import CachedWindow
from cache.tail import NODES, ONE
from shared.config import StrictModel
from shared.errors import RunError

NO_TAIL = 65535  # code of f(1) where the head is the whole vocabulary
IN_HEAD = 0  # code of a gold log-probability that is already in the head
TOP_CODE = 65534

# f is convex: below its chord between 0 and 1, above the extended chord beyond 1.
BETA_N = np.array(NODES)
SIDE_N = np.where(BETA_N < 1, -1.0, 1.0)

Codes = dict[str, NDArray[Any]]


class Encoding(StrictModel):
    """How the numbers of a cache became integers. Part of the manifest and of every shard."""

    vocab_size: int = Field(description="entries of the teacher's head, padding included", ge=2, le=2**31 - 1)
    k: int = Field(description="most ids a head may hold", ge=1, le=65535)
    value_step: float = Field(
        default=1 / 256, description="nats a code, log-probabilities of head and gold", gt=0, le=1
    )
    mass_step: float = Field(default=1 / 256, description="nats a code, f(1)", gt=0, le=1)
    gap_step: float = Field(
        default=1 / 64, description="nats a code, distance of f from its chord at the other nodes", gt=0, le=1
    )
    directions: int = Field(default=0, description="R, coordinates of the tail's shape a position", ge=0, le=1024)
    coord_step: float = Field(default=0.1, description="a code, coordinates (unit: see cache/shape.py)", gt=0, le=1)
    nodes: tuple[float, ...] = Field(default=NODES, description="beta = 1/T at which the tail's mass is stored")

    @field_validator("nodes")
    @classmethod
    def _ours(cls, nodes: tuple[float, ...]) -> tuple[float, ...]:
        if nodes != NODES:
            raise ValueError(f"the nodes of this version, {NODES}")
        return nodes

    def id_type(self) -> np.dtype[np.generic]:
        """Smallest unsigned type that holds a token id, little-endian."""
        return np.dtype("<u2") if self.vocab_size <= 65536 else np.dtype("<u4")

    def size_type(self) -> np.dtype[np.generic]:
        """Smallest unsigned type that holds a head size."""
        return np.dtype("<u1") if self.k <= 255 else np.dtype("<u2")


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One stored array of a window: its element type and how many elements a window with P positions, E entries has."""

    name: str
    dtype: np.dtype[np.generic]
    per_window: int
    per_position: int
    per_entry: int

    def count(self, positions: int, entries: int) -> int:
        """Number of elements."""
        return self.per_window + self.per_position * positions + self.per_entry * entries


def fields(encoding: Encoding) -> tuple[FieldSpec, ...]:
    """The stored arrays, in the order their frames enter a window's checksum."""
    two = np.dtype("<u2")
    coords = (FieldSpec("coords", two, 0, encoding.directions, 0),) if encoding.directions else ()
    return (
        FieldSpec("tokens", encoding.id_type(), 1, 1, 0),
        FieldSpec("head_sizes", encoding.size_type(), 0, 1, 0),
        FieldSpec("head_ids", encoding.id_type(), 0, 0, 1),
        FieldSpec("head_values", two, 0, 0, 1),
        FieldSpec("tail", two, 0, len(encoding.nodes), 0),
        FieldSpec("gold", two, 0, 1, 0),
        *coords,
    )


def _codes(values: NDArray[np.floating], step: float) -> NDArray[np.uint16]:
    """round(values / step) for values >= 0, saturated; -0.0 and rounding dust below zero become 0."""
    return np.asarray(np.clip(np.rint(values / step), 0, TOP_CODE), dtype="<u2")


def encode_window(window: CachedWindow, encoding: Encoding) -> Codes:
    """The window's fields as one-dimensional integer arrays, unpadded.

    Raises:
        RunError: the record holds what no teacher in order produces; a cache of it would teach nonsense.
    """
    wrong = _wrong_with(window, encoding)
    if wrong:
        raise RunError(
            f"window {window.id} of document {window.document}",
            expected="finite log-probabilities, most likely first, of ids inside the vocabulary",
            got=wrong,
            do="check the teacher's weights and dtype (float16 overflows where bfloat16 does not)",
        )
    positions = len(window.gold_P)
    starts_P = np.cumsum(window.head_sizes_P) - window.head_sizes_P
    values_E = _codes(-window.head_logprobs_E.astype(np.float64), encoding.value_step)
    steps_E = np.diff(values_E, prepend=values_E[:1])
    steps_E[starts_P] = values_E[starts_P]  # the most likely token absolute, the others as distance from their better
    gold_P = np.maximum(_codes(-window.gold_P.astype(np.float64), encoding.value_step), 1)
    row_E = np.repeat(np.arange(positions), window.head_sizes_P)
    gold_P[row_E[window.head_ids_E == window.tokens[1:][row_E]]] = IN_HEAD
    coords = {"coords": _encode_coords(window.coords_PR, encoding)} if encoding.directions else {}
    return {
        "tokens": window.tokens.astype(encoding.id_type()),
        "head_sizes": window.head_sizes_P.astype(encoding.size_type()),
        "head_ids": window.head_ids_E.astype(encoding.id_type()),
        "head_values": steps_E,
        "tail": _encode_tail(window.tail_PN, window.head_sizes_P, encoding).T.ravel(),
        "gold": gold_P,
        **coords,
    }


def _encode_coords(coords_PR: NDArray[np.float32], encoding: Encoding) -> NDArray[np.uint16]:
    """Codes [R * P], direction after direction: 0, -1, 1, -2, ... become 0, 1, 2, 3, ... so small ones have a zero byte."""
    codes_RP = np.clip(np.rint(coords_PR.T.astype(np.float64) / encoding.coord_step), -32767, 32767).astype(np.int32)
    return np.asarray(np.where(codes_RP < 0, -2 * codes_RP - 1, 2 * codes_RP), dtype="<u2").ravel()


def _decode_coords(codes: NDArray[Any], encoding: Encoding) -> NDArray[np.float32]:
    codes_RP = codes.reshape(encoding.directions, -1).astype(np.int32)
    signed_RP = np.where(codes_RP & 1, -(codes_RP >> 1) - 1, codes_RP >> 1)
    return np.ascontiguousarray(signed_RP.T * np.float32(encoding.coord_step), dtype=np.float32)


def _wrong_with(window: CachedWindow, encoding: Encoding) -> str:
    """What keeps this record from being stored, in words; empty when nothing does. -inf is a probability of 0: legal."""
    sizes_P, values_E = window.head_sizes_P, window.head_logprobs_E
    numbers = {"head": values_E, "tail": window.tail_PN, "gold": window.gold_P, "coordinate": window.coords_PR}
    for name, values in numbers.items():
        if np.isnan(values).any() or np.isposinf(values).any():
            return f"{name} values that are not numbers"
    if sizes_P.min() < 1 or sizes_P.max() > min(encoding.k, encoding.vocab_size):
        return f"a head of {sizes_P.min()} to {sizes_P.max()} ids"
    for name, ids in (("tokens", window.tokens), ("head ids", window.head_ids_E)):
        if ids.min() < 0 or ids.max() >= encoding.vocab_size:
            return f"{name} of {ids.min()} to {ids.max()} in a vocabulary of {encoding.vocab_size}"
    if window.coords_PR.shape[1] != encoding.directions:
        return f"{window.coords_PR.shape[1]} coordinates where the encoding has {encoding.directions}"
    better_E = np.concatenate([values_E[:1], values_E[:-1]])
    better_E[np.cumsum(sizes_P) - sizes_P] = np.inf
    return "rising log-probabilities" if (values_E > better_E).any() else ""


def _encode_tail(
    tail_PN: NDArray[np.float32], head_sizes_P: NDArray[np.int32], encoding: Encoding
) -> NDArray[np.uint16]:
    """Codes [P, N]: f(1) itself at node 1, elsewhere the distance of f from the chord through f(0) and the stored f(1)."""
    empty_P = np.isneginf(tail_PN[:, ONE])
    tail_PN = np.where(empty_P[:, None], 0.0, tail_PN.astype(np.float64))
    codes_PN = np.zeros(tail_PN.shape, "<u2")
    codes_PN[:, ONE] = _codes(-tail_PN[:, ONE], encoding.mass_step)
    mass_P = -codes_PN[:, ONE].astype(np.float64) * encoding.mass_step
    gaps_PN = SIDE_N * (tail_PN - _chord(mass_P, head_sizes_P, encoding.vocab_size))
    others = [node for node in range(len(NODES)) if node != ONE]
    codes_PN[:, others] = _codes(gaps_PN[:, others], encoding.gap_step)
    codes_PN[empty_P] = 0
    codes_PN[empty_P, ONE] = NO_TAIL
    return codes_PN


def _chord(mass_P: NDArray[np.float64], head_sizes_P: NDArray[np.int32], vocab_size: int) -> NDArray[np.float64]:
    """[P, N]: the straight line through f(0) = log(V - head size) and f(1), at the nodes."""
    nothing_P = np.log(np.maximum(vocab_size - head_sizes_P, 1).astype(np.float64))
    return nothing_P[:, None] + BETA_N * (mass_P - nothing_P)[:, None]


def _decode_tail(
    codes_PN: NDArray[np.uint16], head_sizes_P: NDArray[np.int32], encoding: Encoding
) -> NDArray[np.float32]:
    mass_P = -codes_PN[:, ONE].astype(np.float64) * encoding.mass_step
    tail_PN = _chord(mass_P, head_sizes_P, encoding.vocab_size) + SIDE_N * codes_PN * encoding.gap_step
    tail_PN[:, ONE] = mass_P
    tail_PN[codes_PN[:, ONE] == NO_TAIL] = -np.inf
    return tail_PN.astype(np.float32)


def decode_window(
    codes: Codes, encoding: Encoding, *, window_id: str, document: str, prompt_tokens: int
) -> CachedWindow:
    """The inverse of encode_window, up to half a step of each number.

    Raises:
        ValueError: the codes cannot have come from encode_window (a damaged or hostile file).
    """
    tokens = codes["tokens"].astype(np.int32)
    head_sizes_P = codes["head_sizes"].astype(np.int32)
    head_ids_E = codes["head_ids"].astype(np.int32)
    _check_codes(tokens, head_sizes_P, head_ids_E, encoding)
    starts_P = np.cumsum(head_sizes_P) - head_sizes_P
    values_E = _running_sums(codes["head_values"], starts_P)
    none_PR = np.zeros((len(head_sizes_P), 0), np.float32)
    coords_PR = _decode_coords(codes["coords"], encoding) if encoding.directions else none_PR
    tail_PN = codes["tail"].reshape(len(NODES), -1).T
    if (tail_PN[head_sizes_P == encoding.vocab_size, ONE] != NO_TAIL).any():
        raise ValueError("a tail beside a head that is the whole vocabulary")
    return CachedWindow(
        id=window_id,
        document=document,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        head_sizes_P=head_sizes_P,
        head_ids_E=head_ids_E,
        head_logprobs_E=_logprobs(values_E, encoding),
        tail_PN=_decode_tail(tail_PN, head_sizes_P, encoding),
        gold_P=_decode_gold(codes["gold"], tokens, head_sizes_P, head_ids_E, values_E, encoding),
        coords_PR=coords_PR,
    )


def _check_codes(
    tokens: NDArray[np.int32], head_sizes_P: NDArray[np.int32], head_ids_E: NDArray[np.int32], encoding: Encoding
) -> None:
    if head_sizes_P.min() < 1 or head_sizes_P.max() > min(encoding.k, encoding.vocab_size):
        raise ValueError(f"head sizes outside 1..{encoding.k}")
    if int(head_sizes_P.sum(dtype=np.int64)) != len(head_ids_E):
        raise ValueError("head sizes do not add up to the number of head ids")
    for name, ids in (("token", tokens), ("head id", head_ids_E)):
        if ids.min() < 0 or ids.max() >= encoding.vocab_size:
            raise ValueError(f"{name} outside the vocabulary of {encoding.vocab_size}")


def _running_sums(steps_E: NDArray[Any], starts_P: NDArray[np.int64]) -> NDArray[np.int32]:
    """Undo the distances: sums that start again at each position, which is a step back by the sum so far."""
    last_P = np.add.reduceat(steps_E, starts_P, dtype=np.int64)  # each head's least likely entry: steps only go down
    if last_P.max() > TOP_CODE:
        raise ValueError("log-probabilities below the smallest that can be stored")
    signed_E = steps_E.astype(np.int32)
    signed_E[starts_P[1:]] -= last_P[:-1].astype(np.int32)
    return np.cumsum(signed_E, out=signed_E)


def _decode_gold(
    codes_P: NDArray[Any],
    tokens: NDArray[np.int32],
    sizes_P: NDArray[np.int32],
    ids_E: NDArray[np.int32],
    values_E: NDArray[np.int32],
    encoding: Encoding,
) -> NDArray[np.float32]:
    gold_P = codes_P.astype(np.int64)
    if gold_P.max() > TOP_CODE:
        raise ValueError("gold below the smallest log-probability that can be stored")
    places = np.flatnonzero(ids_E == np.repeat(tokens[1:], sizes_P))
    rows = np.searchsorted(np.cumsum(sizes_P), places, side="right")
    if not np.array_equal(rows, np.flatnonzero(gold_P == IN_HEAD)):
        raise ValueError("gold says it is in the head where it is not, or the reverse")
    gold_P[rows] = values_E[places]
    return _logprobs(gold_P, encoding)


def _logprobs(codes: NDArray[np.integer], encoding: Encoding) -> NDArray[np.float32]:
    """-codes * step in float64, rounded once; a code of 0 is 0.0, not -0.0."""
    exact = codes * -encoding.value_step
    exact += 0.0
    return exact.astype(np.float32)
