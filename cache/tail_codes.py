"""The tail's mass at the nodes as small integers: what a smooth curve leaves over once its neighbours are known.

f is convex and smooth (cache/tail.py), so its distance from the chord through f(0) and f(1) at one node is nearly a linear
function of the distances at the nodes already known. Stored are the tail's log-odds at T = 1, which give f(1) and the head's
mass with the same relative error, and, node after node from the largest beta down, what that
prediction misses. Not for the other fields of a record (cache/encoding.py). FORMAT.md says the same in words.

Legend: P positions, N nodes, M = N - 1 nodes other than beta = 1, in the order ORDER.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.packing import spans
from cache.tail import NODES, ONE

NO_TAIL = -32768  # code of the log-odds where there is no tail mass
TOP_ODDS = 32767
TOP_RESIDUAL = 32767

BETA_N = np.array(NODES)
SIDE_N = np.where(BETA_N < 1, -1.0, 1.0)  # f is below its chord between 0 and 1, above the extended chord beyond 1
ORDER = tuple(node for node in reversed(range(len(NODES))) if node != ONE)

CHORD_M = np.array([-0.0283, -0.0027, 0.0006, 0.0004, -0.0002, 0.0022, 0.0026])
CONSTANT_M = np.array([3.0161, -0.0189, 0.0178, 0.0164, 0.005, -0.0305, -0.0383])
KNOWN_MM = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0],
        [0.333, 0, 0, 0, 0, 0, 0],
        [-0.4932, 2.4202, 0, 0, 0, 0, 0],
        [0.2499, -2.2968, 3.4412, 0, 0, 0, 0],
        [0.2658, -0.5909, -3.3426, 2.951, 0, 0, 0],
        [-0.1071, 0.7814, 0.7007, -2.4264, 2.3977, 0, 0],
        [-0.0094, -0.1213, 0.1268, 0.7834, -1.7739, 1.9566, 0],
    ]
)
"""Predicted gap i = CONSTANT + CHORD * (f(1) - f(0)) + KNOWN @ gaps before it.

Least squares on two real teachers (reference-teacher on MBPP, the embedded one on its domain), part of the format: another
teacher costs a few bits more, never exactness."""


def _linear() -> NDArray[np.float64]:
    """[M + 3, N]: f at every node from the residuals, 1, f(1) and f(0): all of it is linear, so a window is one product."""
    solved_MM = np.linalg.inv(np.eye(len(ORDER)) - KNOWN_MM)  # unit lower triangular
    whole_XN = np.zeros((len(ORDER) + 3, len(NODES)))
    whole_XN[:, ORDER] = np.vstack([np.eye(len(ORDER)), CONSTANT_M, CHORD_M, -CHORD_M]) @ solved_MM.T
    whole_XN *= SIDE_N
    whole_XN[-2] += BETA_N
    whole_XN[-1] += 1 - BETA_N
    return whole_XN


_LINEAR_XN = _linear()


def encode_odds(odds_P: NDArray[np.float64], step: float) -> NDArray[np.int32]:
    """Codes of the tail's log-odds, log(mass / (1 - mass)) at T = 1; -inf (no tail) is NO_TAIL."""
    with np.errstate(invalid="ignore"):
        codes_P = np.clip(np.rint(odds_P / step), -TOP_ODDS, TOP_ODDS)
    return np.where(np.isneginf(odds_P), NO_TAIL, codes_P).astype(np.int32)


def odds_of(one_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds of a tail with f(1) = `one_P`; where the tail would have to be more than everything, nearly all."""
    with np.errstate(divide="ignore"):
        return one_P - np.log(-np.expm1(np.minimum(one_P, -1e-15)))


def decode_odds(codes_P: NDArray[np.integer[Any]], step: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(f(1), log of the head's mass): together they are 1."""
    odds_P = np.where(codes_P == NO_TAIL, -np.inf, codes_P * step)
    small_P = np.log1p(np.exp(-np.abs(odds_P)))
    return np.minimum(odds_P, 0) - small_P, np.minimum(-odds_P, 0) - small_P


USUAL_ODDS = 1024  # codes up to here, either side, are looked up


@lru_cache(maxsize=8)
def _odds_table(step: float) -> NDArray[np.float64]:
    return np.stack(decode_odds(np.arange(-USUAL_ODDS, USUAL_ODDS), step))


def look_up_odds(codes_P: NDArray[np.int32], step: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """decode_odds, quicker where all codes are usual ones."""
    places_P = (codes_P + USUAL_ODDS).view(np.uint32)  # what is below the table is above it now
    try:
        one_P, mass_P = _odds_table(step).take(places_P, axis=1)
    except IndexError:
        return decode_odds(codes_P, step)
    return one_P, mass_P


@lru_cache(maxsize=8)
def log_of_rest(vocab_size: int, k: int) -> NDArray[np.float64]:
    """f(0) beside heads of 0 to k ids, [k + 1]: the log of the number of ids outside; 0 where there are none."""
    return np.log(np.maximum(vocab_size - np.arange(k + 1), 1).astype(np.float64))


def encode_gaps(
    tail_PN: NDArray[np.floating[Any]], one_P: NDArray[np.float64], nothing_P: NDArray[np.float64], step: float
) -> NDArray[np.int32]:
    """What the prediction misses at the other nodes [M, P], zeros where there is no tail.

    Args:
        tail_PN: f at NODES.
        one_P: f(1) as decoded.
        nothing_P: f(0), the log of the number of ids outside the head.
    """
    empty_P = np.isneginf(one_P)
    one_P, tail_PN = np.where(empty_P, 0.0, one_P), np.where(empty_P[:, None], 0.0, tail_PN)
    gaps_PM = (SIDE_N * (tail_PN - _chord(one_P, nothing_P)))[:, ORDER]
    residual_MP = _residuals(gaps_PM.T, CHORD_M[:, None] * (one_P - nothing_P), step)
    residual_MP[:, empty_P] = 0
    return residual_MP


def _residuals(gaps_MP: NDArray[np.float64], chord_MP: NDArray[np.float64], step: float) -> NDArray[np.int32]:
    """What is left of each gap once it is predicted from the gaps as a reader will see them."""
    seen_MP = np.zeros_like(gaps_MP)
    residual_MP = np.zeros(gaps_MP.shape, np.int32)
    for row, gap_P in enumerate(gaps_MP):
        predicted_P = CONSTANT_M[row] + chord_MP[row] + KNOWN_MM[row] @ seen_MP
        residual_MP[row] = np.clip(np.rint((gap_P - predicted_P) / step), -TOP_RESIDUAL, TOP_RESIDUAL)
        seen_MP[row] = predicted_P + residual_MP[row] * step
    return residual_MP


def decode_gaps(
    residual_MP: NDArray[np.integer[Any]],
    one_P: NDArray[np.float64],
    nothing_P: NDArray[np.float64],
    step: float,
    counts_W: Sequence[int] | None = None,
) -> NDArray[np.float32]:
    """f at NODES, float32 [P, N].

    `counts_W` says how many positions belong together, all where it is None: each window is a product of its own, because
    a product's last bits may depend on its size, and what is read must not depend on what was read with it.
    """
    known_XP = np.empty((len(ORDER) + 3, len(one_P)))
    np.multiply(residual_MP, step, out=known_XP[:-3])
    known_XP[-3], known_XP[-2], known_XP[-1] = 1, one_P, nothing_P
    empty_P = np.isinf(one_P)
    if some := empty_P.any():
        known_XP[-2][empty_P] = 0
    tail_PN = np.empty((len(one_P), len(NODES)), np.float32)
    for its in spans(counts_W or [len(one_P)]):
        tail_PN[its] = known_XP[:, its].T @ _LINEAR_XN
    tail_PN[:, ONE] = one_P
    if some:
        tail_PN[empty_P] = -np.inf
    return tail_PN


def _chord(one_P: NDArray[np.float64], nothing_P: NDArray[np.float64]) -> NDArray[np.float64]:
    """[P, N]: the straight line through f(0) and f(1), at the nodes."""
    return nothing_P[:, None] + BETA_N * (one_P - nothing_P)[:, None]
