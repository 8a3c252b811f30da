"""How long a training run takes on this device: a few real steps of the run's own student on made-up windows.

The windows have the cache's lengths (the mean where only its manifest is at hand), head sizes and tail shape, and random
contents: no number in them changes the work. After one step to warm up TRIALS batches of each kind are timed, and the median
counts:

    seconds = batches * (forward + backward) + steps * optimizer + validations * their batches * scoring

Starting up (seconds), checkpoints, waiting for data and other work on the machine come on top. Not for memory (estimate.py).
Shapes: P positions of a window, E its head entries, V vocabulary, R directions.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from cache.manifest import Manifest
from cache.record import CachedWindow
from cache.tail import NODES
from stage2_student.batch import Collate, record_of
from stage2_student.config import TrainConfig
from stage2_student.divergences import TailShape
from stage2_student.estimate import DTYPES, Counts, Estimate, count, estimate, steps_an_epoch
from stage2_student.loss import DistillationLoss
from stage2_student.measures import measure_named
from stage2_student.skeleton import shaped
from stage2_student.students import head_weight, hidden_states
from stage2_student.sweep_runs import cache_of

TRIALS = 2  # batches timed of each kind, after one to warm up


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of one batch forward and back, of one optimizer step, and of scoring one batch."""

    batch: float
    step: float
    score: float


class Clock:
    """Paces measured so far in this process: runs that differ in what costs no time share one."""

    def __init__(self) -> None:
        self._paces: dict[str, Pace] = {}

    def estimate(self, config: TrainConfig) -> Estimate:
        """With seconds, unless the run would not fit, or learns from another tokenizer's text: then nothing is tried.

        Raises:
            UsageError, RunError: as `estimate.estimate` does.
        """
        known = estimate(config)
        if not known.fits or config.other_tokenizer is not None:
            return known
        key = repr((cache_of(config.cache, config.shards).cache_id, [getattr(config, name) for name in PACED]))
        if key not in self._paces:
            self._paces[key] = measure(config, known.counts, known.device)
        return replace(known, seconds=seconds_of(config, known.counts, self._paces[key]))


# The fields that a batch's seconds depend on.
PACED = ("student", "form", "divergence", "mask_prompt", "batch_size", "dtype", "gradient_checkpointing", "device")


def seconds_of(config: TrainConfig, counts: Counts, pace: Pace) -> float:
    """The whole run's seconds at this pace."""
    windows = len(counts.lengths_W)
    an_epoch, rest = math.ceil(windows / config.batch_size), counts.steps % steps_an_epoch(config, windows)
    batches = counts.steps // steps_an_epoch(config, windows) * an_epoch + rest * config.gradient_accumulation
    validations = math.ceil(counts.steps / (config.eval_every or steps_an_epoch(config, windows)))
    scoring = validations * math.ceil(counts.scored / config.batch_size)
    return batches * pace.batch + counts.steps * pace.step + scoring * pace.score


def measure(config: TrainConfig, counts: Counts | None = None, device: str = "cpu") -> Pace:
    """Time a few steps of this run's student."""
    counts = counts or count(config)
    manifest = cache_of(config.cache, config.shards)
    student = shaped(config.student, manifest.vocab_size, manifest.tokenizer).to(device)
    if config.gradient_checkpointing:
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
    loss = _loss(config, manifest)
    optimizer = torch.optim.AdamW([weight for weight in student.parameters() if weight.requires_grad], fused=True)
    batches = [_to(batch, device) for batch in made_up(config, manifest, counts)]
    train = [_timed(partial(_learn, student, loss, config, batch), device) for batch in batches]
    steps = [_timed(optimizer.step, device) for _ in batches]
    optimizer.zero_grad()
    student.eval()
    with torch.inference_mode():
        scores = [_timed(partial(_terms, student, loss, config, batch, scoring=True), device) for batch in batches]
    return Pace(*(statistics.median(times[1:]) for times in (train, steps, scores)))


def _learn(student: Any, loss: DistillationLoss, config: TrainConfig, batch: dict[str, Any]) -> None:
    _terms(student, loss, config, batch).loss.backward()


def _terms(
    student: Any, loss: DistillationLoss, config: TrainConfig, batch: dict[str, Any], *, scoring: bool = False
) -> Any:
    """As trainer.py computes them."""
    low = DTYPES[config.dtype]
    with torch.autocast(batch["input_ids"].device.type, low, enabled=low is not None):
        hidden_BTD = hidden_states(student, batch["input_ids"], batch["attention_mask"])
    hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch["counted"])
    return loss(hidden_ND, head_weight(student), record_of(batch), scoring=scoring)


def _timed(work: Callable[[], object], device: str) -> float:
    begin = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def _loss(config: TrainConfig, manifest: Manifest) -> DistillationLoss:
    shape, generator = manifest.identity.shape, torch.Generator().manual_seed(0)
    tail = None
    if config.form == "full" and shape is not None:
        mean_V = torch.randn(manifest.vocab_size, generator=generator)
        tail = TailShape(mean_V, torch.randn(shape.directions, manifest.vocab_size, generator=generator))
    return DistillationLoss(
        form=config.form,
        measure=measure_named(config.divergence.name, **config.divergence.parameters),
        temperature=config.temperature,
        kd_weight=config.kd_weight,
        ce_weight=config.ce_weight,
        vocab_size=manifest.vocab_size,
        dtype=torch.bfloat16 if config.dtype == "bfloat16" else None,
        tail_shape=tail,
    )


def made_up(config: TrainConfig, manifest: Manifest, counts: Counts) -> list[dict[str, Any]]:
    """1 + TRIALS batches of windows with the cache's lengths and mean head size."""
    draw, collate = np.random.default_rng(0), Collate(config.mask_prompt, manifest.tokenizer.pad or 0)
    lengths = draw.choice(counts.lengths_W, (1 + TRIALS, config.batch_size))
    return [collate([_window(draw, int(length), manifest) for length in row]) for row in lengths]


def _window(draw: np.random.Generator, length: int, manifest: Manifest) -> CachedWindow:
    positions, vocabulary = length - 1, manifest.vocab_size
    head = min(vocabulary, max(1, round(manifest.total("entries") / manifest.total("positions"))))
    shape = manifest.identity.shape
    masses_PN = np.sort(draw.uniform(-4, 4, (positions, len(NODES))), axis=1)[:, ::-1]
    return CachedWindow(
        id=f"{int(draw.integers(1 << 62)):016x}",
        document="made up",
        prompt_tokens=0,
        tokens=draw.integers(0, vocabulary, length).astype(np.int32),
        head_sizes_P=np.full(positions, head, np.int32),
        head_ids_E=np.tile(np.arange(head, dtype=np.int32), positions),
        head_logprobs_E=np.tile(np.log(0.9 / head * np.ones(head, np.float32)), positions),
        tail_PN=masses_PN.astype(np.float32) - 4,
        gold_P=np.full(positions, -2.0, np.float32),
        coords_PR=draw.standard_normal((positions, shape.directions if shape else 0)).astype(np.float32),
    )


def _to(batch: dict[str, Any], device: str) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
