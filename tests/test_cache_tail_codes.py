"""The tail's mass as codes: half a step at every node whatever the curve, and a decoder that is the plain recursion.

Legend: P positions, N nodes, M = N - 1 residuals.
"""

from __future__ import annotations

import numpy as np
import pytest
from cache_records import record
from numpy.typing import NDArray

from cache.tail import NODES, ONE
from cache.tail_codes import (
    CHORD_M,
    CONSTANT_M,
    KNOWN_MM,
    NO_TAIL,
    ORDER,
    TOP_ODDS,
    TOP_RESIDUAL,
    decode_gaps,
    decode_odds,
    encode_gaps,
    encode_odds,
    look_up_odds,
    odds_of,
)

ODDS_STEP, GAP_STEP = 1 / 64, 1 / 64
Floats = NDArray[np.float64]


def coded(tail_PN: NDArray[np.floating], nothing_P: Floats) -> tuple[Floats, NDArray[np.int32]]:
    """f(1) as decoded, and residuals."""
    one_P, _ = decode_odds(encode_odds(odds_of(tail_PN[:, ONE].astype(float)), ODDS_STEP), ODDS_STEP)
    return one_P, encode_gaps(tail_PN, one_P, nothing_P, GAP_STEP)


def through(tail_PN: NDArray[np.floating], nothing_P: Floats) -> NDArray[np.float32]:
    one_P, residual_MP = coded(tail_PN, nothing_P)
    return decode_gaps(residual_MP, one_P, nothing_P, GAP_STEP)


def one_by_one(one: float, residual_M: Floats, nothing: float) -> Floats:
    """FORMAT.md's recursion, a node at a time in plain Python floats."""
    if one == -np.inf:
        return np.full(len(NODES), -np.inf)
    gaps: list[float] = []
    for i, residual in enumerate(residual_M.tolist()):
        known = sum(float(factor) * gap for factor, gap in zip(KNOWN_MM[i], gaps, strict=False))
        gaps.append(residual * GAP_STEP + float(CONSTANT_M[i]) + float(CHORD_M[i]) * (one - nothing) + known)
    found = {1.0: one}
    for beta, gap in zip((1.45, 1.15, 0.85, 0.7, 0.55, 0.4, 0.25), gaps, strict=True):
        found[beta] = nothing + beta * (one - nothing) + (gap if beta > 1 else -gap)
    return np.array([found[beta] for beta in NODES])


def curves(kind: str, count: int = 300) -> tuple[NDArray[np.floating], Floats]:
    """f at NODES [P, N] and f(0) [P]."""
    rng = np.random.default_rng(7)
    if kind == "records":
        parts = [record(rng, positions=count // 3, vocab=400, k=16, scale=scale) for scale in (0.1, 3.0, 30.0)]
        return (
            np.concatenate([part.tail_PN for part in parts]),
            np.log(400.0 - np.concatenate([part.head_sizes_P for part in parts])),
        )
    nothing_P = rng.uniform(0, 12, count)
    one_P = -rng.exponential({"lines": 200.0, "nonsense": 20.0}[kind], count).clip(0, 500)
    line_PN = nothing_P[:, None] + np.array(NODES) * (one_P - nothing_P)[:, None]
    return line_PN + (
        50 * rng.uniform(-1, 1, line_PN.shape) * (np.array(NODES) != 1) if kind == "nonsense" else 0
    ), nothing_P


@pytest.mark.parametrize("kind", ["records", "lines", "nonsense"])
def test_no_error_builds_up(kind: str) -> None:
    """Closed loop: each residual is taken from what a reader will know, so the last node is as exact as the first."""
    tail_PN, nothing_P = curves(kind)
    missed_PN = abs(through(tail_PN, nothing_P) - tail_PN)
    assert missed_PN[:, ONE].max() <= ODDS_STEP / 2 + 1e-4
    for node in ORDER:
        assert missed_PN[:, node].max() <= GAP_STEP / 2 + 1e-4, NODES[node]
        assert missed_PN[:, node].max() > GAP_STEP / 4, "the bound is near"


def test_smooth_curves_leave_little_over() -> None:
    """What the prediction is for: residuals of real-looking tails are far smaller than the gaps themselves."""
    tail_PN, nothing_P = curves("records")
    few, rest = slice(100, 200), coded(tail_PN, nothing_P)[1]
    chord_PN = nothing_P[:, None] + np.array(NODES) * (tail_PN[:, [ONE]] - nothing_P[:, None])
    gaps_MP = abs(tail_PN - chord_PN)[:, ORDER].T / GAP_STEP
    for row in range(1, len(rest)):
        assert abs(rest[row][few]).mean() < 0.5 * gaps_MP[row, few].mean() + 0.5


def test_order_and_predictors() -> None:
    assert [NODES[node] for node in ORDER] == [1.45, 1.15, 0.85, 0.7, 0.55, 0.4, 0.25]
    assert not np.triu(KNOWN_MM).any(), "a node is predicted from the ones before it only"


@pytest.mark.parametrize("largest", [4, 300, TOP_RESIDUAL])
def test_decoding_is_the_plain_recursion(largest: int) -> None:
    """One matrix for all nodes at once gives what node after node gives, up to float32."""
    rng = np.random.default_rng(largest)
    residual_MP = rng.integers(-largest, largest + 1, (len(ORDER), 200))
    residual_MP[:, 0], residual_MP[:, 1] = largest, -largest
    one_P = -rng.exponential(100.0, 200)
    one_P[[5, 6, 7]] = -np.inf, -1000.0, 0
    nothing_P = np.log(rng.integers(1, 70_000, 200).astype(np.float64))
    found_PN = decode_gaps(residual_MP, one_P, nothing_P, GAP_STEP)
    expected_PN = np.stack(
        [one_by_one(*row) for row in zip(one_P.tolist(), residual_MP.T.astype(float), nothing_P.tolist(), strict=True)]
    )
    assert found_PN.dtype == np.float32
    assert np.isneginf(found_PN[5]).all()
    found_PN, expected_PN = (np.delete(tail_PN, 5, axis=0) for tail_PN in (found_PN, expected_PN))
    scale_P1 = abs(expected_PN).max(axis=1, keepdims=True)
    assert (abs(found_PN - expected_PN) <= 1.2e-7 * scale_P1).all()
    np.testing.assert_array_equal(found_PN[:5, ONE], one_P[:5].astype(np.float32))


def test_no_tail_is_one_code_and_no_residuals() -> None:
    tail_PN, nothing_P = curves("records", 9)
    tail_PN = tail_PN.copy()
    tail_PN[4] = -np.inf
    codes_P = encode_odds(odds_of(tail_PN[:, ONE].astype(float)), ODDS_STEP)
    assert (codes_P == NO_TAIL).tolist() == [position == 4 for position in range(9)]
    one_P, residual_MP = coded(tail_PN, nothing_P)
    assert not residual_MP[:, 4].any() and residual_MP.any()
    back_PN = decode_gaps(residual_MP, one_P, nothing_P, GAP_STEP)
    assert np.isneginf(back_PN).all(axis=1).tolist() == [position == 4 for position in range(9)]
    assert np.isfinite(np.delete(back_PN, 4, axis=0)).all()


def test_what_no_code_reaches_is_cut_and_the_rest_stays_right() -> None:
    """A gap of 2000 nats is stored as the largest residual; nodes before it, and the mass, do not suffer."""
    tail_PN, nothing_P = curves("records", 60)
    wild_PN = tail_PN.astype(np.float64)
    worst = ORDER[-1]
    wild_PN[::2, worst] += 2000
    wild_PN[1::2, worst] -= 2000
    one_P, residual_MP = coded(wild_PN, nothing_P)
    assert set(residual_MP[-1].tolist()) == {-TOP_RESIDUAL, TOP_RESIDUAL}
    back_PN = decode_gaps(residual_MP, one_P, nothing_P, GAP_STEP)
    kept = [node for node in range(len(NODES)) if node != worst]
    assert abs(back_PN - tail_PN)[:, kept].max() <= GAP_STEP / 2 + 1e-4
    assert ((back_PN - tail_PN)[:, worst] > 400).tolist() == [place % 2 == 0 for place in range(60)]


def test_head_and_tail_are_everything() -> None:
    """From e^-500 to all but e^-500: both masses are exact to the step's relative error, and add up to 1."""
    codes_P = np.arange(-32_000, 32_001, 7)
    one_P, head_P = decode_odds(codes_P, ODDS_STEP)
    np.testing.assert_allclose(np.exp(one_P) + np.exp(head_P), 1, rtol=1e-14)
    np.testing.assert_allclose(one_P - head_P, codes_P * ODDS_STEP, rtol=1e-12)
    one_P, head_P = decode_odds(np.array([NO_TAIL]), ODDS_STEP)
    assert one_P.tolist() == [-np.inf] and head_P.tolist() == [0]


def test_log_odds_of_a_mass() -> None:
    one_P = np.array([-700.0, -20.0, -1.0, -1e-3, -1e-9])
    odds_P = odds_of(one_P)
    np.testing.assert_allclose(odds_P, one_P - np.log(-np.expm1(one_P)), rtol=1e-12)
    assert np.isfinite(odds_of(np.array([0.0, 0.5]))).all(), "more than everything cannot be, and is nearly everything"


def test_odds_saturate_at_both_ends() -> None:
    codes = encode_odds(np.array([-np.inf, -1e9, 1e9, 0.0]), ODDS_STEP)
    assert codes.tolist() == [NO_TAIL, -TOP_ODDS, TOP_ODDS, 0]


@pytest.mark.parametrize("last", [1023, 1024, -1024, -1025, 32767, NO_TAIL])
def test_looking_up_odds_is_computing_them(last: int) -> None:
    codes_P = np.append(np.random.default_rng(0).integers(-1024, 1024, 500), last).astype(np.int32)
    for found_P, truth_P in zip(look_up_odds(codes_P, ODDS_STEP), decode_odds(codes_P, ODDS_STEP), strict=True):
        np.testing.assert_array_equal(found_P, truth_P)
