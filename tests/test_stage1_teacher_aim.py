"""Directions and step chosen for a wanted error or size: met, nearly tight, the same on every run, or refused in one line."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import table_teacher as table
from table_teacher import SELECTION, VOCAB, WIDTH, states, teacher

from cache.basis import to_bytes
from cache.encoding import Encoding
from shared.errors import UsageError
from stage1_teacher.aim import MEASURED, SPREAD, STEPS, Sample, Trial, choose, measure, places_of
from stage1_teacher.config import ShapeConfig
from stage1_teacher.reading import read_sample
from stage1_teacher.shape import Spectrum, analyse

ENCODING = Encoding(vocab_size=VOCAB, k=SELECTION.k)
POSITIONS = 20_000
RESOLUTION = (STEPS[1] / STEPS[0]) ** (1 / 2**7)  # of the search: a step's factor


@cache
def ground() -> tuple[Spectrum, Sample]:
    model = teacher()
    spectrum = analyse(model, *states(model), SELECTION)
    return spectrum, read_sample(model, table.windows(6), table.config(), POSITIONS)


def chosen(**wanted: Any) -> Trial:
    return choose(ShapeConfig(**wanted), *ground(), ENCODING)


def coarser(trial: Trial, factor: float) -> Trial:
    """The neighbour that the search turned down: the step times `factor`, and the directions that go with it."""
    spectrum, sample = ground()
    step = trial.projection.step * factor
    return measure(spectrum, sample, int((spectrum.spread_D > SPREAD * step).sum()), step, ENCODING)


@pytest.mark.parametrize("kl", [0.003, 0.01, 0.03])
def test_a_wanted_error_is_met_and_nearly_spent(kl: float) -> None:
    trial = chosen(kl=kl)
    assert 0.85 * kl < trial.kl <= kl
    assert coarser(trial, RESOLUTION**3).kl > kl, "a slightly coarser step misses it"


@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_a_wanted_size_is_met_and_nearly_spent(share: float) -> None:
    most, least = (coarser(chosen(directions=1, step=step), 1.0).bytes for step in STEPS)
    bytes_ = least + share * (most - least)
    trial = chosen(bytes=bytes_)
    assert 0.9 * bytes_ < trial.bytes <= bytes_
    assert coarser(trial, RESOLUTION**-5).bytes > bytes_, "a slightly finer step misses it"


def test_more_bytes_buy_less_error() -> None:
    trials = [chosen(kl=kl) for kl in (0.003, 0.01, 0.03)]
    assert trials[0].bytes > trials[1].bytes > trials[2].bytes
    assert trials[0].projection.step < trials[1].projection.step < trials[2].projection.step
    assert chosen(bytes=trials[1].bytes).kl == pytest.approx(trials[1].kl, rel=0.1), "one curve, from both ends"


def test_directions_follow_the_step() -> None:
    trial = chosen(kl=0.01)
    spread_D = ground()[0].spread_D
    count = trial.projection.directions_DR.shape[1]
    assert 1 <= count < WIDTH
    assert spread_D[count - 1] > SPREAD * trial.projection.step >= spread_D[count]


def test_given_numbers_are_taken_as_they_are() -> None:
    trial = chosen(directions=5, step=0.15)
    assert (trial.projection.directions_DR.shape[1], trial.projection.step) == (5, 0.15)
    assert trial.kl > 0 and trial.bytes > 0
    with pytest.raises(UsageError, match=r"shape\.directions: expected at most the teacher's width, 24, got 25; lower"):
        chosen(directions=25, step=0.1)


def test_what_is_out_of_reach_is_one_line() -> None:
    finest, coarsest = (coarser(chosen(directions=1, step=step), 1.0) for step in STEPS)
    with pytest.raises(UsageError) as caught:
        chosen(kl=1e-9)
    assert str(caught.value) == (
        f"shape.kl: 1e-09: expected what this teacher and text allow, got {finest.kl:.3g} nats with the finest step; "
        "raise shape.kl or selection.k"
    )
    with pytest.raises(UsageError) as caught:
        chosen(bytes=0.5)
    assert str(caught.value) == (
        f"shape.bytes: 0.5: expected what this teacher and text allow, got {coarsest.bytes:.3g} with the coarsest step; "
        "raise shape.bytes or lower selection.k"
    )


def test_the_same_choice_on_every_run() -> None:
    first = chosen(kl=0.01)
    ground.cache_clear()
    second = chosen(kl=0.01)
    assert to_bytes(first.projection.basis) == to_bytes(second.projection.basis)
    assert (first.kl, first.bytes, first.projection.step) == (second.kl, second.bytes, second.projection.step)


def test_the_sample_is_the_teachers_own() -> None:
    """Windows come in batches, longest first perhaps: records, states and truths must stay together."""
    model = teacher()
    windows = [window for length in (5, 40, 17, 2) for window in table.windows(3, length)]
    sample = read_sample(model, windows, table.config(batch_tokens=60), POSITIONS)
    counts = [len(record.gold_P) for record in sample.records]
    assert sorted(counts) == sorted(len(window.tokens) - 1 for window in windows)
    assert sum(map(len, sample.places)) == min(MEASURED, sum(counts))
    start = 0
    for record, places, truth_SV in zip(sample.records, sample.places, sample.truths, strict=True):
        hidden_PD = sample.hidden_ND[start : (start := start + len(record.gold_P))]
        logits_PV = table.logits_of(model, hidden_PD)
        expected_PD = model.body.get_input_embeddings().weight[record.tokens[:-1].tolist()]
        np.testing.assert_array_equal(hidden_PD.numpy(), expected_PD.numpy())
        np.testing.assert_allclose(truth_SV, logits_PV.log_softmax(1)[places], atol=1e-5)


def test_measured_places_are_the_same_on_every_run() -> None:
    counts = [30, 1, 200, 7]
    assert places_of(counts) == places_of(counts)
    assert sum(map(len, places_of(counts))) == MEASURED


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"directions": 4},
        {"step": 0.1},
        {"kl": 0.1, "bytes": 9},
        {"kl": 0.1, "step": 0.1},
        {"bytes": 9, "directions": 4, "step": 0.1},
    ],
    ids=str,
)
def test_one_wish_at_a_time(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either kl, or bytes, or directions and step"):
        ShapeConfig(**wrong)
