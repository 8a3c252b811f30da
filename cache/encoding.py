"""From a CachedWindow to bytes.

Not for the way back (cache/decoding.py), for compression (cache/frames.py) and for files (cache/shard.py). FORMAT.md says
the same in words; change all or none.
Legend: P positions, E head entries, N nodes, R directions, C columns (cache/columns.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from cache.columns import Columns, columns, encode_columns
from cache.id_codes import DIRECT, LARGE, MISSED, Heads, encode_heads, encode_ids, heads_size, low_width
from cache.packing import Bytes, narrow
from cache.prior import Prior
from cache.record import CachedWindow
from cache.tail import NODES, ONE
from cache.tail_codes import decode_odds, encode_gaps, encode_odds, log_of_rest, odds_of
from cache.value_codes import TOP_CODE
from shared.config import StrictModel
from shared.errors import RunError

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
        default=1 / 64, description="nats a code, f at the other nodes beside its prediction", gt=0, le=1
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
    nothing_P = log_of_rest(encoding.vocab_size, encoding.k).take(window.head_sizes_P)
    tail_PN = odds_PN + (nodes_N1 * best_P + seen_NP).T
    residual_MP = encode_gaps(tail_PN, one_P, nothing_P, encoding.gap_step)
    coords_PR = window.coords_PR.astype(np.float64)
    if prior is not None:
        coords_PR = coords_PR - prior.coordinates(window.tokens[:-1], window.head_ids_E[heads.starts_P])
    coords_RP = np.clip(np.rint(coords_PR.T / encoding.coord_step), -32767, 32767).astype(np.int32)
    return np.stack([odds_P, residual_MP[0], *coords_RP, *residual_MP[1:], *best]).astype(np.int32), best_P


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
