"""How many directions, in what steps: chosen for a wanted error or a wanted size, measured on a sample before the capture.

One number is searched, the step: directions whose coordinates spread less than a step would all be stored as zero, so
they are left out. Every trial is the real thing: records encoded into a shard, read back, and compared with the
teacher's full logits.
Not for the directions themselves (shape.py).
Legend: N positions of the trial windows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cache.basis import to_bytes
from cache.encoding import Encoding
from cache.prior import Prior
from cache.record import CachedWindow
from cache.shard import shard_bytes
from shared.errors import UsageError
from stage1_teacher.config import ShapeConfig
from stage1_teacher.fidelity import Rebuilder, add_to, as_stored, new_sums, sample_positions
from stage1_teacher.shape import TEMPERATURES, Projection, Spectrum

WINDOWS = 48  # of the sample; their records are encoded in every trial
MEASURED = 128  # positions compared with the full logits
STEPS = (0.01, 0.64)  # what is searched, finest and coarsest
HALVINGS = 7  # of that range on a logarithmic scale: the step is found within 2 %
SPREAD = 0.4  # directions that spread less than this share of a step are nearly always stored as zero
MOST = 1024  # directions


@dataclass(frozen=True)
class Sample:
    """What trials need of the teacher: records without coordinates, hidden states, and the truth at some positions.

    Attributes:
        records: windows as read, no coordinates.
        hidden_ND: their hidden states, window after window.
        places: measured positions of each window.
        truths: float [S, V] log-probabilities at those, a window each.
        positions: of the whole corpus.
    """

    records: Sequence[CachedWindow]
    hidden_ND: Tensor
    places: Sequence[Sequence[int]]
    truths: Sequence[Tensor]
    positions: int


@dataclass(frozen=True)
class Trial:
    """One choice, measured: mean KL in nats at the worst of TEMPERATURES, and bytes a position, basis included.

    `fidelity` has the sums of fidelity.SUMS at each of TEMPERATURES.
    """

    projection: Projection
    kl: float
    bytes: float
    fidelity: list[dict[str, float]]


def places_of(windows: Sequence[int]) -> list[list[int]]:
    """Which positions of windows with so many positions are measured; the same on every run."""
    return sample_positions(windows, MEASURED, shard=0)


def measure(spectrum: Spectrum, sample: Sample, directions: int, step: float, encoding: Encoding) -> Trial:
    """Encode the sample with this choice and compare what a reader gets with the truth."""
    projection = spectrum.project(directions, step, sample.positions)
    encoding = Encoding(
        vocab_size=encoding.vocab_size, k=encoding.k, directions=directions, wide=projection.wide, coord_step=step
    )
    rebuild = Rebuilder(encoding.vocab_size, projection.basis)
    sums = [new_sums(temperature) for temperature in TEMPERATURES]
    ends = np.cumsum([len(record.gold_P) for record in sample.records])[:-1]
    coords = np.split(projection.coordinates(sample.hidden_ND).cpu().numpy(), ends)
    records = [replace(record, coords_PR=part) for record, part in zip(sample.records, coords, strict=True)]
    for record, places, truth_SV in zip(records, sample.places, sample.truths, strict=True):
        if places:
            add_to(sums, rebuild, as_stored(record, encoding, projection.basis.prior), places, truth_SV)
    stored = marginal_bytes(records, encoding, projection.basis.prior)
    basis = len(to_bytes(projection.basis)) / sample.positions
    return Trial(projection, max(row["kl"] / row["positions"] for row in sums), stored + basis, sums)


def marginal_bytes(records: Sequence[CachedWindow], encoding: Encoding, prior: Prior | None) -> float:
    """Bytes a position that a shard grows by: what every file has once is nothing in a whole shard, but much in a sample."""
    half = len(records) // 2
    sizes = [len(shard_bytes(part, encoding, {}, prior)) if part else 0 for part in (records[:half], records)]
    return (sizes[1] - sizes[0]) / sum(len(record.gold_P) for record in records[half:])


@torch.inference_mode()
def choose(config: ShapeConfig, spectrum: Spectrum, sample: Sample, encoding: Encoding) -> Trial:
    """The cheapest choice that keeps `config.kl`, the best one within `config.bytes`, or the one given.

    Raises:
        UsageError: no step reaches what is wanted, or more directions than the teacher is wide.
    """
    if config.directions is not None and config.step is not None:
        return measure(spectrum, sample, config.directions, config.step, encoding)
    finest, coarsest = (math.log(step) for step in STEPS)
    best = _at(spectrum, sample, STEPS[0] if config.kl is not None else STEPS[1], encoding)
    if not _good(best, config):
        raise _out_of_reach(config, best)
    for _ in range(HALVINGS):
        middle = (finest + coarsest) / 2
        trial = _at(spectrum, sample, math.exp(middle), encoding)
        if _good(trial, config):
            best = trial
        if _good(trial, config) == (config.kl is not None):
            finest = middle
        else:
            coarsest = middle
    return best


def _at(spectrum: Spectrum, sample: Sample, step: float, encoding: Encoding) -> Trial:
    step = float(f"{step:.3g}")
    return measure(spectrum, sample, directions_for(spectrum, step), step, encoding)


def directions_for(spectrum: Spectrum, step: float) -> int:
    """As many as have something to say in such steps."""
    return int(np.clip((spectrum.spread_D > SPREAD * step).sum(), 1, MOST))


def _good(trial: Trial, config: ShapeConfig) -> bool:
    if config.kl is not None:
        return trial.kl <= config.kl
    assert config.bytes is not None
    return trial.bytes <= config.bytes


def _out_of_reach(config: ShapeConfig, best: Trial) -> UsageError:
    if config.kl is not None:
        wanted, got, do = (
            f"shape.kl: {config.kl:g}",
            f"{best.kl:.3g} nats with the finest step",
            "raise shape.kl or selection.k",
        )
    else:
        wanted, got, do = (
            f"shape.bytes: {config.bytes:g}",
            f"{best.bytes:.3g} with the coarsest step",
            "raise shape.bytes or lower selection.k",
        )
    return UsageError(wanted, expected="what this teacher and text allow", got=got, do=do)
