"""From a CachedWindow to bytes and back.

Not for compression (cache/frames.py) and not for files (cache/shard.py). FORMAT.md says the same in words; change both
or neither.
Legend: P positions, E head entries, N nodes, R directions, C columns (cache/columns.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from cache.columns import HALF, Columns, columns, decode_columns, encode_columns
from cache.id_codes import (
    DIRECT,
    LARGE,
    MISSED,
    Heads,
    decode_heads,
    decode_ids,
    encode_heads,
    encode_ids,
    heads_size,
    low_width,
)
from cache.packing import Bytes, full, narrow, packed_size, unpack, widen
from cache.prior import Prior
from cache.record import CachedWindow
from cache.tail import NODES, ONE
from cache.tail_codes import NO_TAIL, decode_gaps, decode_odds, encode_gaps, encode_odds, odds_of
from shared.config import StrictModel
from shared.errors import RunError

TOP_CODE = 65534  # of a head's distances together, its best entry's from 0 included where that is stored
MASS_TOLERANCE = (
    0.05  # of head and tail together, at T = 1: what is read from a cache of large heads may be stored again
)


class Encoding(StrictModel):
    """How the numbers of a cache became integers. Part of the manifest and of every shard."""

    vocab_size: int = Field(description="entries of the teacher's head, padding included", ge=2, le=2**31 - 1)
    k: int = Field(description="most ids a head may hold", ge=1, le=255)
    value_step: float = Field(default=1 / 32, description="nats a code, log-probabilities of head and gold", gt=0, le=1)
    odds_step: float = Field(default=1 / 40, description="nats a code, log-odds of the tail at T = 1", gt=0, le=1)
    gap_step: float = Field(
        default=1 / 40, description="nats a code, f at the other nodes beside its prediction", gt=0, le=1
    )
    directions: int = Field(default=0, description="R, coordinates of the tail's shape a position", ge=0, le=1024)
    wide: tuple[int, ...] = Field(
        default=(), description="how many directions, the first ones, have at least 1 low bit, at least 2, ..."
    )
    coord_step: float = Field(default=0.1, description="a code, coordinates (unit: see cache/shape.py)", gt=0, le=1)
    nodes: tuple[float, ...] = Field(default=NODES, description="beta = 1/T at which the tail's mass is stored")

    @field_validator("nodes")
    @classmethod
    def _ours(cls, nodes: tuple[float, ...]) -> tuple[float, ...]:
        if nodes != NODES:
            raise ValueError(f"the nodes of this version, {NODES}")
        return nodes

    @model_validator(mode="after")
    def _not_wider_than_it_is(self) -> Encoding:
        if (
            len(self.wide) > 12
            or sorted(self.wide, reverse=True) != [*self.wide]
            or not all(1 <= count <= self.directions for count in self.wide)
        ):
            raise ValueError(f"at most 12 falling counts of wide directions, 1 to {self.directions}")
        return self

    @property
    def columns(self) -> Columns:
        """How a position's signed numbers lie in bytes."""
        return columns(self.wide, self.directions, self.k >= LARGE)

    @property
    def direct(self) -> int:
        """Ids below this take one byte; 0 where ids have no order that makes small ones likely."""
        return DIRECT if self.directions else 0

    def limits(self, positions: NDArray[Any], entries: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Fewest and most bytes that windows of so many positions and head entries take."""
        positions, entries = positions.astype(np.int64), entries.astype(np.int64)
        count, low = len(self.columns.low_C), int(self.columns.low_C.sum())
        fixed = (
            heads_size(self.k) * positions + entries - positions + (1 + entries) + (count + low // 4) * positions // 2
        )
        further = low_width(self.vocab_size, self.direct) - 8
        ids, all_ids = 1 + entries, 1 + entries + positions  # no token missed, or all
        least = 0 if self.direct else ids + (ids * further + 7) // 8
        over = 2 * (count * positions + entries) + (2 + low) * positions
        return fixed + least, fixed + positions + all_ids + (all_ids * further + 7) // 8 + positions + over


@dataclass(frozen=True, slots=True)
class Codes:
    """A window as bytes, in sections whose lengths follow from the numbers beside them and the bytes before.

    Attributes:
        positions: P. entries: E.
        sections: heads, gaps, ids, pairs, and all that is noise to a coder; or all of them as one, with zeros behind.
    """

    positions: int
    entries: int
    sections: tuple[Bytes, ...]


_NOTHING = np.zeros(0, "<u2")


class _Cutter:
    """Takes one piece after another from a window's bytes."""

    def __init__(self, raw: Bytes) -> None:
        self._raw, self._place = raw, 0

    def take(self, count: int) -> Bytes:
        start, self._place = self._place, self._place + count
        if self._place > len(self._raw):
            raise ValueError("fewer bytes than its own numbers ask for")
        return self._raw[start : self._place]

    def words(self, count: int) -> NDArray[np.uint16]:
        """Pairs of bytes."""
        return np.frombuffer(self.take(2 * count).tobytes(), "<u2") if count else _NOTHING

    def end(self) -> None:
        """What is left is padding."""
        if self._place < len(self._raw) and self._raw[self._place :].any():
            raise ValueError("bytes behind its end")


def encode_window(window: CachedWindow, encoding: Encoding, prior: Prior | None = None) -> Codes:
    """The window's sections, relative to what `prior` tells.

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
    heads, ids_E = Heads.of(window.head_sizes_P), window.head_ids_E
    others_E, ranks_P = heads.others(), heads.ranks(window.tokens[1:], ids_E)
    missed_P = ranks_P == MISSED
    below_E = _below(window, heads, encoding)
    gaps, gaps_over = narrow(np.diff(below_E, prepend=0)[others_E], 8)
    values_CP, best_P = _numbers(window, below_E, heads, encoding, prior)
    last_P = best_P - below_E[heads.starts_P + heads.sizes_P - 1] * encoding.value_step
    below = _codes((last_P - window.gold_P.astype(np.float64))[missed_P], encoding.value_step)
    gold, gold_over = narrow(below, 8)
    ids = np.concatenate([window.tokens[:1], window.tokens[1:][missed_P], ids_E[heads.starts_P], ids_E[others_E]])
    first, low_ids = encode_ids(ids if prior is None else prior.ranks(ids), encoding.vocab_size, encoding.direct)
    pairs, low, high_over = encode_columns(values_CP, encoding.columns)
    over = np.concatenate([high_over, gaps_over, gold_over]).astype("<u2").view(np.uint8)
    rest = np.concatenate([low, *low_ids, gold, over])
    sections = (encode_heads(heads.sizes_P, ranks_P, encoding.k), gaps, first, pairs, rest)
    return Codes(len(ranks_P), len(ids_E), sections)


def _codes(values: NDArray[np.floating[Any]], step: float) -> NDArray[np.int64]:
    """round(values / step) for values >= 0, saturated; rounding dust below zero becomes 0."""
    codes: NDArray[np.int64] = np.clip(np.rint(values / step), 0, TOP_CODE).astype(np.int64)
    return codes


def _below(window: CachedWindow, heads: Heads, encoding: Encoding) -> NDArray[np.int64]:
    """How many steps each entry is below its head's best one, [E]."""
    values_E = window.head_logprobs_E.astype(np.float64)
    best_P, top = values_E[heads.starts_P], TOP_CODE
    if encoding.k >= LARGE:
        top -= int(_codes(-best_P, encoding.value_step).max())
    return np.minimum(_codes(np.repeat(best_P, heads.sizes_P) - values_E, encoding.value_step), top)


def _numbers(
    window: CachedWindow,
    below_E: NDArray[np.int64],
    heads: Heads,
    encoding: Encoding,
    prior: Prior | None,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """(Signed numbers [C, P]; the best entry's log-probability as a reader will see it [P]).

    The tail is stored relative to the head, so that its share of the whole is the true one whatever the head's step.
    """
    nodes_N1 = np.array(NODES)[:, None]
    with np.errstate(divide="ignore"):
        true_NP, seen_NP = (
            np.log(np.add.reduceat(np.exp(nodes_N1 * logprobs_E), heads.starts_P, axis=1))
            for logprobs_E in (window.head_logprobs_E.astype(np.float64), below_E * -encoding.value_step)
        )
    odds_PN = window.tail_PN.astype(np.float64) - true_NP.T
    if encoding.k < LARGE:
        odds_P = encode_odds(odds_PN[:, ONE], encoding.odds_step)
        one_P, mass_P = decode_odds(odds_P, encoding.odds_step)
        best_P, best = mass_P - seen_NP[ONE], []
    else:
        best = [_codes(-window.head_logprobs_E[heads.starts_P].astype(np.float64), encoding.value_step)]
        best_P = best[0] * -encoding.value_step
        odds_P = encode_odds(odds_of(odds_PN[:, ONE] + best_P + seen_NP[ONE]), encoding.odds_step)
        one_P, _ = decode_odds(odds_P, encoding.odds_step)
    nothing_P = _nothing(window.head_sizes_P, encoding)
    tail_PN = odds_PN + (nodes_N1 * best_P + seen_NP).T
    residual_MP = encode_gaps(tail_PN, one_P, nothing_P, encoding.gap_step)
    coords_PR = window.coords_PR.astype(np.float64)
    if prior is not None:
        coords_PR = coords_PR - prior.coordinates(window.tokens[:-1], window.head_ids_E[heads.starts_P])
    coords_RP = np.clip(np.rint(coords_PR.T / encoding.coord_step), -32767, 32767).astype(np.int32)
    return np.stack([odds_P, residual_MP[0], *coords_RP, *residual_MP[1:], *best]).astype(np.int32), best_P


def _nothing(sizes_P: NDArray[np.int32], encoding: Encoding) -> NDArray[np.float64]:
    """f(0), the log of the number of ids outside the head; 0 where there are none."""
    return np.log(np.maximum(encoding.vocab_size - sizes_P, 1).astype(np.float64))


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
    starts_P = Heads.of(sizes_P).starts_P
    if np.isneginf(values_E[starts_P]).any():
        return "a most likely token of probability 0"
    better_E = np.concatenate([values_E[:1], values_E[:-1]])
    better_E[starts_P] = np.inf
    if (values_E > better_E).any():
        return "rising log-probabilities"
    mass_P = np.add.reduceat(np.exp(values_E.astype(np.float64)), starts_P) + np.exp(window.tail_PN[:, ONE])
    worst = float(mass_P[np.abs(mass_P - 1).argmax()])
    return f"head and tail of mass {worst:.3f}" if abs(worst - 1) > MASS_TOLERANCE else ""


def decode_window(
    codes: Codes, encoding: Encoding, prior: Prior | None = None, *, window_id: str, document: str, prompt_tokens: int
) -> CachedWindow:
    """The inverse of encode_window, up to half a step of each number.

    Raises:
        ValueError: the codes cannot have come from encode_window (a damaged or hostile file).
    """
    raw = _Cutter(codes.sections[0] if len(codes.sections) == 1 else np.concatenate(codes.sections))
    positions, entries = codes.positions, codes.entries
    sizes_P, ranks_P = decode_heads(raw.take(heads_size(encoding.k) * positions), positions, encoding.k)
    if int(sizes_P.sum(dtype=np.int64)) != entries or sizes_P.max() > encoding.vocab_size:
        raise ValueError("head sizes do not add up to the number of head ids")
    heads, missed = Heads.of(sizes_P), np.flatnonzero(ranks_P == MISSED)
    hit_P = heads.starts_P + np.maximum(ranks_P, 1) - 1
    gaps: NDArray[Any] = raw.take(entries - positions)
    first = raw.take(1 + len(missed) + entries)
    layout = encoding.columns
    high_size, low_size = layout.sizes(positions)
    symbols = unpack(raw.take(high_size), HALF, len(layout.low_C) * positions)
    low = raw.take(low_size)
    ids_I = _ids(first, raw, encoding, prior)
    gold = raw.take(len(missed))
    over_high, over_gaps, over_gold = (
        raw.words(count) for count in (full(symbols, HALF), full(gaps, 8), full(gold, 8))
    )
    raw.end()
    best = 1 + len(missed)
    ids_E = heads.spread(ids_I[best : best + positions], ids_I[best + positions :], np.int32)
    tokens = _tokens(ids_I[:best], ids_E, hit_P, missed, heads)
    values_CP = decode_columns(symbols, low, over_high, layout, positions)
    one_P, mass_P = _masses(values_CP[0], heads, encoding)
    if len(over_gaps):
        gaps = widen(gaps, 8, over_gaps)
    small = encoding.k < LARGE
    logprobs_E = _around(gaps, mass_P, heads, encoding) if small else _below_best(gaps, values_CP[-1], heads, encoding)
    coords_PR = np.empty((positions, encoding.directions), np.float32)
    np.multiply(values_CP[2 : 2 + encoding.directions].T, encoding.coord_step, out=coords_PR, casting="unsafe")
    if prior is not None:
        coords_PR += prior.coordinates(tokens[:-1], ids_E[heads.starts_P])
    gold_P = logprobs_E[hit_P]
    last = logprobs_E[heads.starts_P[missed] + sizes_P[missed] - 1]
    gold_P[missed] = last - widen(gold, 8, over_gold) * encoding.value_step
    residual_MP = np.concatenate([values_CP[1:2], values_CP[2 + encoding.directions :][:6]])
    return CachedWindow(
        id=window_id,
        document=document,
        prompt_tokens=prompt_tokens,
        tokens=tokens,
        head_sizes_P=sizes_P,
        head_ids_E=ids_E,
        head_logprobs_E=logprobs_E,
        tail_PN=decode_gaps(residual_MP, one_P, _nothing(sizes_P, encoding), encoding.gap_step),
        gold_P=gold_P,
        coords_PR=coords_PR,
    )


def _ids(first: Bytes, raw: _Cutter, encoding: Encoding, prior: Prior | None) -> NDArray[Any]:
    """All ids, [I]."""
    large = int(np.count_nonzero(first >= encoding.direct)) if encoding.direct else len(first)
    low, further = raw.take(large), packed_size(large * (low_width(encoding.vocab_size, encoding.direct) - 8), 1)
    ids_I = decode_ids(first, low, raw.take(further), encoding.vocab_size, encoding.direct)
    if ids_I.max() >= encoding.vocab_size:
        raise ValueError(f"token id outside the vocabulary of {encoding.vocab_size}")
    return ids_I if prior is None else prior.ids(ids_I)


def _tokens(
    own: NDArray[Any], ids_E: NDArray[np.int32], hit_P: NDArray[np.int64], missed: NDArray[np.int64], heads: Heads
) -> NDArray[np.int32]:
    """[P + 1]; a token that is said to be outside the head must be."""
    tokens = np.empty(len(hit_P) + 1, np.int32)
    tokens[0] = own[0]
    tokens[1:] = ids_E[hit_P]
    if len(missed):
        tokens[1 + missed] = own[1:]
        if heads.hold(missed, tokens[1 + missed], ids_E):
            raise ValueError("a token said to be outside the head that is in it")
    return tokens


def _masses(
    odds_P: NDArray[np.int32], heads: Heads, encoding: Encoding
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(f(1), log of the head's mass)."""
    if encoding.k >= encoding.vocab_size and (odds_P[heads.sizes_P == encoding.vocab_size] != NO_TAIL).any():
        raise ValueError("a tail beside a head that is the whole vocabulary")
    return decode_odds(odds_P, encoding.odds_step)


def _around(gaps: NDArray[Any], mass_P: NDArray[np.float64], heads: Heads, encoding: Encoding) -> NDArray[np.float32]:
    """float32 [E]: distances to each head's best entry, shifted so that the head's mass is `mass_P`."""
    logprobs_E = _sums(heads.spread(0, gaps, np.int32), heads) * -encoding.value_step
    best_P = mass_P - np.log(np.add.reduceat(np.exp(logprobs_E), heads.starts_P)) + 0
    return (logprobs_E + np.repeat(best_P, heads.sizes_P)).astype(np.float32)


def _below_best(gaps: NDArray[Any], best_P: NDArray[np.int32], heads: Heads, encoding: Encoding) -> NDArray[np.float32]:
    """float32 [E]: distances to each head's best entry, which itself is so many steps below 0."""
    if best_P.min() < 0:
        raise ValueError("a probability above 1")
    narrow_enough = gaps.dtype == np.uint8 and best_P.max() < 256
    sums_E = _sums(heads.spread(best_P, gaps, np.uint8 if narrow_enough else np.int32), heads)
    found: NDArray[np.float32] = np.multiply(sums_E, -encoding.value_step, dtype=np.float32, casting="unsafe")
    if best_P.min() == 0:
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
