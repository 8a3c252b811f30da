"""A window through codes and back: within half a step of the record, for every shape, and never nonsense either way."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cache_records import basis_of, log_mass, record, same
from numpy.typing import NDArray

from cache.decoding import decode_window
from cache.encoding import Codes, Encoding, encode_window
from cache.id_codes import LARGE
from cache.packing import unpack
from cache.prior import Prior
from cache.record import CachedWindow
from cache.tail import NODES, ONE, node_weights
from cache.value_codes import TOP_CODE
from shared.errors import RunError

ROUNDING = 1e-4  # float32 of numbers below 300
SHAPES = [
    {"positions": 1, "vocab": 2, "k": 1},
    {"positions": 1, "vocab": 9, "k": 9},
    {"positions": 40, "vocab": 255, "k": 255},
    {"positions": 30, "vocab": 9, "k": 20, "sizes_P": np.full(30, 9)},
    {"positions": 17, "vocab": 70_000, "k": 12},
    {"positions": 30, "vocab": 1000, "k": 64, "sizes_P": np.ones(30, np.int64)},
    {"positions": 30, "vocab": 1000, "k": 1},
    {"positions": 50, "vocab": 500, "k": 16, "scale": 40.0},  # tails down to e^-200
    {"positions": 50, "vocab": 500, "k": 16, "scale": 0.01},
    {"positions": 50, "vocab": 65_536, "k": 4},
    {"positions": 50, "vocab": 65_537, "k": 4},
    {"positions": 50, "vocab": 300_000, "k": 15},
]


def through(window: CachedWindow, encoding: Encoding, prior: Prior | None = None) -> CachedWindow:
    return decode(encode_window(window, encoding, prior), encoding, window, prior)


def decode(codes: Codes, encoding: Encoding, window: CachedWindow, prior: Prior | None = None) -> CachedWindow:
    return decode_window(
        codes, encoding, prior, window_id=window.id, document=window.document, prompt_tokens=window.prompt_tokens
    )


def make(shape: dict[str, object], seed: int) -> tuple[CachedWindow, Encoding]:
    window = record(np.random.default_rng(seed), **shape)  # type: ignore[arg-type]
    return window, Encoding(vocab_size=int(str(shape["vocab"])), k=int(str(shape["k"])))


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"P{shape['positions']}-V{shape['vocab']}-k{shape['k']}")
@pytest.mark.parametrize("seed", range(3))
def test_round_trip_is_within_half_a_step(shape: dict[str, object], seed: int) -> None:
    window, encoding = make(shape, seed)
    back = through(window, encoding)
    for name in ("id", "document", "prompt_tokens"):
        assert getattr(back, name) == getattr(window, name)
    for name in ("tokens", "head_sizes_P", "head_ids_E"):
        np.testing.assert_array_equal(getattr(back, name), getattr(window, name))
    assert {array.dtype for array in (back.head_logprobs_E, back.tail_PN, back.gold_P, back.coords_PR)} == {
        np.dtype(np.float32)
    }
    floor, step = -TOP_CODE * encoding.value_step, encoding.value_step
    shift = step / 2 + encoding.odds_step / 2 if encoding.k < LARGE else step / 2  # of a whole head
    assert abs(back.head_logprobs_E - np.maximum(window.head_logprobs_E, floor)).max() <= shift + step / 2 + ROUNDING
    assert abs(back.gold_P - np.maximum(window.gold_P, floor)).max() <= shift + step / 2 + ROUNDING
    whole_P = window.head_sizes_P == encoding.vocab_size
    assert np.isneginf(back.tail_PN[whole_P]).all()
    odds_PN, odds_back_PN = odds(window)[~whole_P], odds(back)[~whole_P]
    reachable_P = -head_mass(back)[~whole_P, ONE]  # a tail cannot hold more than everything: f(1) <= 0
    missed_P = abs(odds_back_PN[:, ONE] - np.minimum(odds_PN[:, ONE], reachable_P))
    assert missed_P.max(initial=0) <= encoding.odds_step / 2 + ROUNDING
    others = [node for node in range(len(NODES)) if node != ONE]
    missed_PN = abs(odds_back_PN - odds_PN)[:, others]
    assert missed_PN.max(initial=0) <= encoding.gap_step / 2 + ROUNDING


@pytest.mark.parametrize("k", [LARGE - 1, LARGE])
def test_head_and_tail_are_everything(k: int) -> None:
    """In small heads whatever the rounding; in large ones, whose best entry is stored, to a step."""
    window = record(np.random.default_rng(8), positions=200, vocab=500, k=k)
    back = through(window, Encoding(vocab_size=500, k=k, value_step=1 / 4))
    mass_P = np.exp(head_mass(back)[:, ONE]) + np.exp(back.tail_PN[:, ONE].astype(np.float64))
    assert abs(mass_P - 1).max() <= (1e-5 if k < LARGE else np.expm1(1 / 4))


def head_mass(window: CachedWindow) -> NDArray[np.float64]:
    """[P, N]: log sum over the head of exp(beta * l) at NODES."""
    heads = np.split(window.head_logprobs_E.astype(np.float64), np.cumsum(window.head_sizes_P)[:-1])
    return np.array([[log_mass(head[None], beta)[0] for beta in NODES] for head in heads])


def odds(window: CachedWindow) -> NDArray[np.float64]:
    """[P, N]: log-odds of the tail against the head, which is what a reader's probabilities depend on."""
    return np.asarray(window.tail_PN - head_mass(window))


@pytest.mark.parametrize("shape", SHAPES[:6], ids=str)
def test_a_decoded_window_is_a_fixed_point(shape: dict[str, object]) -> None:
    """Decoding and encoding again loses nothing more: a cache can be rewritten without a second rounding."""
    window, encoding = make(shape, 7)
    once = through(window, encoding)
    assert same(through(once, encoding), once)


@pytest.mark.parametrize("directions", [2, 5, 6])
@pytest.mark.parametrize("told", [True, False])
def test_coordinates_are_within_half_a_step_and_saturate_at_16_bits(directions: int, told: bool) -> None:
    encoding = Encoding(vocab_size=50, k=8, directions=directions, wide=(2, 1, 1), coord_step=0.25)
    prior = basis_of(50, directions).prior if told else None
    window = record(np.random.default_rng(0), positions=20, directions=directions)
    window.coords_PR[3, :], window.coords_PR[4, :] = 1e9, -1e9
    expected_PR = np.zeros_like(window.coords_PR)
    if prior is not None:
        expected_PR = prior.coordinates(window.tokens[:-1], first_ids(window))
    within_PR = np.clip(window.coords_PR - expected_PR, -0.25 * 32_767, 0.25 * 32_767)
    assert ((within_PR / 0.25 + 0.5) // 16 != 0).any(), "some do not fit into half a byte"
    back = through(window, encoding, prior)
    assert back.coords_PR.dtype == np.float32
    assert abs(back.coords_PR - expected_PR - within_PR).max() <= 0.125 + 1e-3  # float32 of 8000
    assert abs(back.coords_PR - expected_PR - within_PR)[5:].max() <= 0.125 + 1e-5
    assert same(through(back, encoding, prior), back)


@pytest.mark.parametrize("wide", [(), (4,), (6, 3, 3, 1), (6,) * 12])
def test_low_bits_change_bytes_and_nothing_else(wide: tuple[int, ...]) -> None:
    window = record(np.random.default_rng(3), positions=30, directions=6)
    window.coords_PR[:] *= 40
    plain = Encoding(vocab_size=50, k=8, directions=6)
    assert same(through(window, Encoding(vocab_size=50, k=8, directions=6, wide=wide)), through(window, plain))


def first_ids(window: CachedWindow) -> NDArray[np.int32]:
    return window.head_ids_E[np.cumsum(window.head_sizes_P) - window.head_sizes_P]


def test_with_a_prior_ids_are_ranks_and_expected_coordinates_are_zeros() -> None:
    prior = basis_of(50, 4).prior
    encoding = Encoding(vocab_size=50, k=8, directions=4, wide=(1,))
    window = record(np.random.default_rng(1), positions=30, directions=4)
    window = replace(window, coords_PR=prior.coordinates(window.tokens[:-1], first_ids(window)))
    plain, told = encode_window(window, encoding).sections, encode_window(window, encoding, prior).sections
    np.testing.assert_array_equal(prior.ids_V[told[2]], plain[2])
    assert (told[2] != plain[2]).any()
    for section in (0, 1):
        np.testing.assert_array_equal(told[section], plain[section])
    symbols = unpack(told[3], 4, 12 * 30).reshape(12, 30)
    assert not symbols[[2, 3, 4, 5]].any(), "columns 2 to 5 are the coordinates, in the first half of all"
    assert unpack(plain[3], 4, 12 * 30).reshape(12, 30)[[2, 3, 4, 5]].any()


def test_sections_by_hand() -> None:
    """Two positions: the first's head holds its next token second, the second's does not."""
    window = record(np.random.default_rng(2), positions=2, sizes_P=np.array([3, 2]))
    tokens = window.tokens.copy()
    tokens[1] = window.head_ids_E[1]
    tokens[2] = np.setdiff1d(np.arange(50), window.head_ids_E)[0]
    gold_P = np.array([window.head_logprobs_E[1], window.head_logprobs_E[4] - 1], np.float32)
    heads, gaps, ids, _, rest = encode_window(
        replace(window, tokens=tokens, gold_P=gold_P), Encoding(vocab_size=50, k=8)
    ).sections
    assert heads.tolist() == [2 * 9 + 2, 1 * 9 + 0]
    ids_E = window.head_ids_E.tolist()
    wanted = [tokens[0], tokens[2], ids_E[0], ids_E[3], ids_E[1], ids_E[2], ids_E[4]]
    assert ids.tolist() == [0] * 7, "no basis: the first byte is all above 255"
    low = 3  # bytes of low bits: four of two numbers at two positions, and one more of the first number
    assert rest[low : low + 7].tolist() == wanted
    steps = -window.head_logprobs_E.astype(np.float64) * 32
    for gap, (better, worse) in zip(gaps.tolist(), [(0, 1), (1, 2), (3, 4)], strict=True):
        assert abs(gap - (steps[worse] - steps[better])) <= 1
    assert abs(int(rest[low + 7]) - 32) <= 1, "gold, below the head's last entry"


def test_gold_in_the_head_is_the_heads_own_value() -> None:
    rng = np.random.default_rng(3)
    window = record(rng, positions=60, vocab=40, k=20)
    back = through(window, Encoding(vocab_size=40, k=20))
    row_E = np.repeat(np.arange(60), back.head_sizes_P)
    hits_E = back.head_ids_E == back.tokens[1:][row_E]
    assert 5 < hits_E.sum() < 55, "both cases are in this sample"
    np.testing.assert_array_equal(back.gold_P[row_E[hits_E]], back.head_logprobs_E[hits_E])


def test_an_id_that_stands_twice_counts_once_the_better_time() -> None:
    window = record(np.random.default_rng(3), positions=1, sizes_P=np.array([4]))
    ids = window.head_ids_E.copy()
    ids[3] = ids[1]
    window = replace(window, head_ids_E=ids, tokens=np.array([0, ids[1]], np.int32))
    back = through(window, Encoding(vocab_size=50, k=8))
    assert back.gold_P[0] == back.head_logprobs_E[1] > back.head_logprobs_E[3]


@pytest.mark.parametrize("scale", [0.3, 2.0, 5.0, 12.0])
@pytest.mark.parametrize("value_step", [1 / 32, 1 / 4])
def test_the_tails_share_at_any_temperature_stays_near_the_unrounded_one(scale: float, value_step: float) -> None:
    """Whatever the head's own step: the share moves at most a quarter of the log-odds' error, and the spline weighs those.

    Between nodes the head's rounding is not a spline: a fiftieth of its step is allowed for that.
    """
    window = record(np.random.default_rng(11), positions=200, vocab=400, k=16, scale=scale)
    encoding = Encoding(vocab_size=400, k=16, value_step=value_step)
    back = through(window, encoding)
    for temperature in [*np.linspace(0.7, 5, 30), *(1 / node for node in NODES)]:
        allowed = abs(node_weights(1 / temperature)[1:]).sum() * encoding.gap_step / 2 / 4
        missed = abs(tail_at(back, temperature) - tail_at(window, temperature)).max()
        assert missed <= allowed + value_step / 50


def test_the_tails_share_at_a_node_does_not_depend_on_the_heads_step() -> None:
    window = record(np.random.default_rng(12), positions=200, vocab=400, k=16, scale=4.0)
    back = through(window, Encoding(vocab_size=400, k=16, value_step=1.0))
    reached_P = back.tail_PN[:, ONE] < -1e-6  # elsewhere f(1) would have to be above 0
    assert reached_P.mean() > 0.95
    for node in NODES:
        missed_P = abs(tail_at(back, 1 / node) - tail_at(window, 1 / node))
        assert missed_P[reached_P | (node != 1)].max() <= 1 / 40 / 2 / 4 + 1e-5, "half a step of the log-odds"
    bare = replace(back, tail_PN=window.tail_PN)  # what a tail stored as it is would give
    assert abs(tail_at(bare, 1.0) - tail_at(window, 1.0)).max() > 0.02


def tail_at(window: CachedWindow, temperature: float) -> NDArray[np.float64]:
    beta = 1 / temperature
    starts_P = np.cumsum(window.head_sizes_P) - window.head_sizes_P
    head_P = np.add.reduceat(np.exp(beta * window.head_logprobs_E.astype(np.float64)), starts_P)
    knots = np.column_stack([np.log(400 - window.head_sizes_P), window.tail_PN])
    tail_P = np.exp(knots @ node_weights(beta))
    return np.asarray(tail_P / (head_P + tail_P))


@pytest.mark.parametrize("k", [3, LARGE])
def test_probability_zero_is_stored_as_the_smallest_one(k: int) -> None:
    window = record(np.random.default_rng(0), positions=2, vocab=20, k=3, sizes_P=np.array([3, 3]))
    values = np.array([-1.0, np.log1p(-np.exp(-1)), -np.inf] * 2, np.float32)
    values[[0, 1, 3, 4]] = np.sort(values[:2])[::-1].tolist() * 2
    outside = replace(window, head_logprobs_E=values, tail_PN=np.full((2, len(NODES)), -np.inf, np.float32))
    back = through(outside, Encoding(vocab_size=20, k=k))
    assert (abs(back.head_logprobs_E[[2, 5]] + TOP_CODE / 32) < 1).all()
    assert np.isneginf(back.tail_PN).all()


@pytest.mark.parametrize("k", [1, LARGE])
def test_certainty_has_no_negative_zero_and_no_positive_logarithm(k: int) -> None:
    window = record(np.random.default_rng(0), positions=1, vocab=20, k=1)
    none = np.full((1, len(NODES)), -np.inf, np.float32)
    sure = replace(window, head_logprobs_E=np.array([3e-8], np.float32), tail_PN=none)
    back = through(sure, Encoding(vocab_size=20, k=k))
    assert back.head_logprobs_E[0] == 0.0
    assert not np.signbit(back.head_logprobs_E[0])


def bad(window: CachedWindow, field: str, place: int, value: float) -> CachedWindow:
    array = getattr(window, field).copy()
    array.reshape(-1)[place] = value
    return replace(window, **{field: array})


@pytest.mark.parametrize(
    ("field", "place", "value", "got"),
    [
        ("head_logprobs_E", 0, np.nan, "head values that are not numbers"),
        ("tail_PN", 3, np.nan, "tail values that are not numbers"),
        ("coords_PR", 4, np.nan, "coordinate values that are not numbers"),
        ("gold_P", 1, np.inf, "gold values that are not numbers"),
        ("tokens", 0, 50, "tokens of [0-9]+ to 50 in a vocabulary of 50"),
        ("tokens", 0, -1, "tokens of -1 to [0-9]+ in a vocabulary of 50"),
        ("head_ids_E", 2, 65_536 + 3, "head ids of [0-9]+ to 65539 in a vocabulary of 50"),
        ("head_logprobs_E", 1, -0.001, "rising log-probabilities"),
        ("head_logprobs_E", 0, -0.001, r"head and tail of mass 1\.[0-9]+"),
        ("tail_PN", ONE, -30, r"head and tail of mass 0\.[0-9]+"),
        ("head_logprobs_E", 0, -np.inf, "a most likely token of probability 0"),
    ],
)
def test_a_record_no_teacher_in_order_makes_is_refused(field: str, place: int, value: float, got: str) -> None:
    window = record(np.random.default_rng(4), positions=5, sizes_P=np.array([4, 4, 4, 4, 4]), directions=2)
    with pytest.raises(RunError, match=rf"^window {window.id} of document doc: expected finite .*, got {got}; check"):
        encode_window(bad(window, field, place, value), Encoding(vocab_size=50, k=8, directions=2))


def test_coordinates_the_encoding_does_not_know_are_refused() -> None:
    window = record(np.random.default_rng(4), directions=2)
    with pytest.raises(RunError, match="got 2 coordinates where the encoding has 3"):
        encode_window(window, Encoding(vocab_size=50, k=8, directions=3))


def test_a_head_larger_than_k_is_refused() -> None:
    window = record(np.random.default_rng(4), positions=5, k=8, sizes_P=np.array([8, 1, 1, 1, 1]))
    with pytest.raises(RunError, match="got a head of 1 to 8 ids"):
        encode_window(window, Encoding(vocab_size=50, k=7))


def test_rising_at_a_new_position_is_no_rise() -> None:
    window = record(np.random.default_rng(4), positions=3, scale=30.0, sizes_P=np.array([5, 5, 5]))
    assert window.head_logprobs_E[5] > window.head_logprobs_E[4]
    encode_window(window, Encoding(vocab_size=50, k=8))


@pytest.mark.parametrize(
    ("section", "place", "value", "message"),
    [
        (0, 0, 255, "head sizes outside"),
        (0, 0, 5 * 9, "head sizes do not add up"),
        (0, 1, 0 * 9 + 3, "a rank its head does not have|a token at a rank"),
        (2, 0, 1, "token id outside the vocabulary of 50"),
        (4, 5, 50, "token id outside the vocabulary of 50"),
    ],
)
def test_codes_no_encoder_makes_are_refused(section: int, place: int, value: int, message: str) -> None:
    encoding = Encoding(vocab_size=50, k=8)
    window = record(np.random.default_rng(4), positions=3, sizes_P=np.array([4, 2, 2]))
    codes = encode_window(window, encoding)
    assert same(decode(codes, encoding, window), through(window, encoding))
    codes.sections[section][place] = value
    with pytest.raises(ValueError, match=message):
        decode(codes, encoding, window)


def test_a_rank_outside_the_basis_is_refused() -> None:
    encoding, prior = Encoding(vocab_size=50, k=8, directions=1), basis_of(50, 1).prior
    window = record(np.random.default_rng(4), positions=3, directions=1)
    codes = encode_window(window, encoding, prior)
    codes.sections[2][0] = 50
    with pytest.raises(ValueError, match="token id outside the vocabulary of 50"):
        decode(codes, encoding, window, prior)


@pytest.mark.parametrize("k", [9, 20])
def test_a_tail_beside_a_whole_vocabulary_is_refused(k: int) -> None:
    encoding = Encoding(vocab_size=9, k=k)
    window = record(np.random.default_rng(4), positions=1, vocab=9, k=9, sizes_P=np.array([9]))
    codes = encode_window(window, encoding)
    heads, gaps, ids, pairs, rest = codes.sections
    assert pairs[0] >> 4 == 15, "NO_TAIL does not fit into half a byte"
    pairs = np.concatenate([pairs[:1] & 15, pairs[1:]])
    with pytest.raises(ValueError, match="a tail beside a head that is the whole vocabulary"):
        decode(replace(codes, sections=(heads, gaps, ids, pairs, rest[:-2])), encoding, window)


@pytest.mark.parametrize("vocab", [50, 65_536, 65_537, 300_000])
@pytest.mark.parametrize(("directions", "wide"), [(0, ()), (3, ()), (3, (1,)), (3, (3, 2)), (4, (1, 1, 1))])
@pytest.mark.parametrize("k", [12, 20])
def test_limits_hold_every_window(vocab: int, directions: int, wide: tuple[int, ...], k: int) -> None:
    encoding = Encoding(vocab_size=vocab, k=k, directions=directions, wide=wide)
    prior = basis_of(vocab, directions).prior if directions else None
    for positions in (1, 2, 7):
        window = record(np.random.default_rng(positions), positions=positions, vocab=vocab, k=k, directions=directions)
        length = sum(map(len, encode_window(window, encoding, prior).sections))
        least, most = encoding.limits(np.array([positions]), np.array([len(window.head_ids_E)]))
        assert least[0] <= length <= most[0]
        assert most[0] < 4 * length + 60, "no absurd one"


def test_other_nodes_are_another_format() -> None:
    with pytest.raises(ValueError, match="the nodes of this version"):
        Encoding(vocab_size=50, k=8, nodes=(0.5, 1.0))


@pytest.mark.parametrize("wide", [(4,), (1, 2), (0,), (1,) * 13])
def test_more_wide_directions_than_directions_are_no_encoding(wide: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at most 12 falling counts of wide directions, 1 to 3"):
        Encoding(vocab_size=50, k=8, directions=3, wide=wide)
