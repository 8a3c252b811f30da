"""`survey`: on a sample of the corpus, before paying for the whole: what to keep, what it loses, how long it takes, its price.

Writes nothing into the cache's directory: survey.json, survey.png and capture.yaml go to a folder of their own.
Not for single measurements (survey_measure.py, aim.py), nor for another teacher beside this one (against.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from cache.encoding import Encoding
from cache.manifest import Selection
from shared.errors import UsageError
from shared.files import atomic_write
from shared.memory import free_memory
from shared.tokenizer import load_tokenizer
from shared.windows import Window
from stage1_teacher.against import beliefs, compare, original_of
from stage1_teacher.ahead import Ahead, look_ahead, readable_windows
from stage1_teacher.aim import Sample, Trial, choose, directions_for, marginal_bytes, measure
from stage1_teacher.config import CaptureConfig, ShapeConfig
from stage1_teacher.reading import Reader, read_sample, sample_hidden_states
from stage1_teacher.shape import TEMPERATURES, Projection, Spectrum, analyse, why_not
from stage1_teacher.survey_measure import (
    as_rows,
    asdict_of,
    directions_curve,
    heads,
    knowledge,
    trial_row,
    worst,
)
from stage1_teacher.survey_plot import draw
from stage1_teacher.survey_text import advised_config, screen
from stage1_teacher.teacher import TeacherModel, load_teacher, require_fit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WIDE = Selection(k=64, top_p=1.0)  # what the measured positions are read with, so that every smaller head can be judged
SELECTIONS = (
    Selection(k=1, top_p=1.0),
    Selection(k=2, top_p=0.8),
    Selection(k=4, top_p=0.9),
    Selection(k=8, top_p=0.95),
)
STEPS = (0.02, 0.04, 0.08, 0.16, 0.32)  # of coordinates; directions follow from each (aim.py)
ADVISED = "capture.yaml"
UNKNOWN = 10**6  # tokens a stream is priced for: it does not say how long it is


@dataclass(frozen=True)
class Wish:
    """What somebody who surveys wants to know.

    Attributes:
        kl: nats wanted at the worst of T = 1, 1.5, 2.
        usd_per_hour: of the machine, or None.
        against: the teacher's original, directory or hub id, or None.
        windows: of the sample that is measured.
    """

    kl: float
    usd_per_hour: float | None = None
    against: str | None = None
    windows: int = 48


def survey(config: CaptureConfig, wish: Wish, *, progress: bool = True) -> dict[str, Any]:
    """Measure a sample; the result is JSON's, described by its own names.

    Raises:
        UsageError: config, teacher or corpus are wrong, or `wish.against` has another tokenizer.
    """
    tokenizer = load_tokenizer(config.teacher.model, config.teacher.revision)
    original = None if wish.against is None else original_of(config, wish.against)
    ahead = look_ahead(config, tokenizer)
    fitted = sample_windows(config, tokenizer, ahead)
    windows = fitted[:: max(1, len(fitted) // wish.windows)][: wish.windows]
    teacher = load_teacher(config.teacher)
    require_fit(teacher, len(tokenizer), ahead.longest if ahead else 0)
    found, sample = measured(config, wish, teacher, fitted, windows, ahead, progress=progress)
    del teacher
    free_memory()
    if original is not None:
        found["against"] = compare(sample, beliefs(config, windows, original), str(wish.against))
    return found


def measured(
    config: CaptureConfig,
    wish: Wish,
    teacher: TeacherModel,
    fitted: Sequence[Window],
    windows: Sequence[Window],
    ahead: Ahead | None,
    *,
    progress: bool,
) -> tuple[dict[str, Any], Sample]:
    """All that one teacher in memory tells: the survey, and its beliefs at the measured positions of `windows`."""
    positions = ahead.tokens - ahead.windows if ahead else UNKNOWN
    sample = read_sample(teacher, windows, config.model_copy(update={"selection": WIDE}), positions)
    rows = heads(sample, sorted({*TEMPERATURES, *config.fidelity.temperatures}))
    reason = "the config wants none (shape: null)" if config.shape is None else why_not(teacher)
    trials, curve = ([], []) if reason else _trials(config, teacher, fitted, windows, positions, progress)
    advice, projection = (
        _without_shape(config, teacher, windows, rows, wish, positions)
        if reason
        else _with_shape(config, teacher, fitted, windows, trials, wish, positions)
    )
    rate = _rate(config, teacher, windows, advice, projection)
    found = {
        "teacher": teacher.facts.model_dump(mode="json"),
        "sample": {"windows": len(windows), "positions": sum(len(r.gold_P) for r in sample.records)}
        | {"measured": sum(len(places) for places in sample.places), "fitted_on": len(fitted)},
        "knowledge": asdict(knowledge(sample, windows)),
        "heads": as_rows(rows),
        "shape": {"without": reason or None, "directions": curve, "trials": [row for _, _, row in trials]},
        "advice": advice,
        "cost": cost(ahead, advice["bytes_per_token"], rate, wish.usd_per_hour, str(teacher.head_weight_VD.device)),
    }
    return found, sample


def sample_windows(config: CaptureConfig, tokenizer: PreTrainedTokenizerBase, ahead: Ahead | None) -> list[Window]:
    """The windows a capture of this config fits its shape on: spread evenly, or a stream's first ones."""
    wanted = (config.shape or ShapeConfig(kl=1.0)).sample_windows
    stride = max(1, ahead.windows // wanted) if ahead else 1
    return list(islice(readable_windows(config, tokenizer)[0], 0, stride * wanted, stride))


Measured = tuple[Trial, Selection, dict[str, Any]]


def _trials(
    config: CaptureConfig,
    teacher: TeacherModel,
    fitted: Sequence[Window],
    windows: Sequence[Window],
    positions: int,
    progress: bool,
) -> tuple[list[Measured], list[dict[str, float]]]:
    """Every selection with every step, measured; and the curve of directions under the config's own selection."""
    states = sample_hidden_states(teacher, fitted, config.batch_tokens)
    found: list[Measured] = []
    selections = list(dict.fromkeys([config.selection, *SELECTIONS]))
    with tqdm(total=len(selections) * len(STEPS), desc="survey", unit="trial", disable=not progress) as bar:
        for selection in selections:
            spectrum, sample, encoding = _prepared(config, teacher, states, windows, selection, positions)
            if selection == config.selection:
                curve = directions_curve(spectrum)
            for step in STEPS:
                trial = _trial(spectrum, sample, step, encoding)
                found.append((trial, selection, trial_row(trial, selection)))
                bar.update()
    return found, curve


def _prepared(
    config: CaptureConfig,
    teacher: TeacherModel,
    states: tuple[torch.Tensor, torch.Tensor],
    windows: Sequence[Window],
    selection: Selection,
    positions: int,
) -> tuple[Spectrum, Sample, Encoding]:
    chosen = config.model_copy(update={"selection": selection})
    encoding = Encoding(vocab_size=teacher.vocab_size, k=selection.k)
    return analyse(teacher, *states, selection), read_sample(teacher, windows, chosen, positions), encoding


def _trial(spectrum: Spectrum, sample: Sample, step: float, encoding: Encoding) -> Trial:
    return measure(spectrum, sample, directions_for(spectrum, step), step, encoding)


def _with_shape(
    config: CaptureConfig,
    teacher: TeacherModel,
    fitted: Sequence[Window],
    windows: Sequence[Window],
    trials: Sequence[Measured],
    wish: Wish,
    positions: int,
) -> tuple[dict[str, Any], Projection]:
    """The cheapest setting that keeps the wanted error, its step searched finely; or the most faithful one measured."""
    good = [found for found in trials if found[0].kl <= wish.kl]
    trial, selection, row = min(good, key=lambda f: f[0].bytes) if good else min(trials, key=lambda f: f[0].kl)
    if good:
        states = sample_hidden_states(teacher, fitted, config.batch_tokens)
        spectrum, sample, encoding = _prepared(config, teacher, states, windows, selection, positions)
        trial = choose(ShapeConfig(kl=wish.kl), spectrum, sample, encoding)
        row = trial_row(trial, selection)
    return {"wanted_kl": wish.kl, "reached": bool(good), **row}, trial.projection


def _without_shape(
    config: CaptureConfig,
    teacher: TeacherModel,
    windows: Sequence[Window],
    rows: Sequence[Any],
    wish: Wish,
    positions: int,
) -> tuple[dict[str, Any], None]:
    """The smallest head that keeps the wanted error with an even tail; the largest measured one where none does."""
    every = {(row.k, row.top_p): row.ids for row in rows}
    order = [Selection(k=k, top_p=top_p) for (k, top_p), _ in sorted(every.items(), key=lambda item: item[1])]
    good = [selection for selection in order if worst(rows, selection) <= wish.kl]
    selection = good[0] if good else order[-1]
    read = read_sample(teacher, windows, config.model_copy(update={"selection": selection}), positions)
    size = marginal_bytes(read.records, Encoding(vocab_size=teacher.vocab_size, k=selection.k), None)
    found = {"directions": None, "step": None, "bytes_per_token": size, "kl": worst(rows, selection)}
    return {"wanted_kl": wish.kl, "reached": bool(good), **asdict_of(selection), **found}, None


def _rate(
    config: CaptureConfig,
    teacher: TeacherModel,
    windows: Sequence[Window],
    advice: dict[str, Any],
    projection: Projection | None,
) -> float:
    """Tokens/s of a capture with the advised setting on this device, second reading of the sample (the first warms up)."""
    selection = Selection(k=advice["k"], top_p=advice["top_p"])
    chosen = config.model_copy(update={"selection": selection})
    coords: dict[str, Any] = {}
    if projection is not None:
        coords = {"directions": advice["directions"], "coord_step": projection.step, "wide": projection.wide}
    encoding = Encoding.model_validate({"vocab_size": teacher.vocab_size, "k": selection.k, **coords})
    reader = Reader(teacher, projection, encoding, chosen)
    reader.read_shard(windows, 0, lambda _: None)
    start = time.perf_counter()
    reader.read_shard(windows, 0, lambda _: None)
    return sum(len(window.tokens) for window in windows) / (time.perf_counter() - start)


def cost(ahead: Ahead | None, size: float, rate: float, usd_per_hour: float | None, device: str) -> dict[str, Any]:
    """The whole corpus, extrapolated: tokens, GB (10^9 bytes), hours on this device, money.

    A stream does not say how long it is: then everything is for UNKNOWN tokens, and `extrapolated` is false.
    """
    tokens = ahead.tokens if ahead else UNKNOWN
    hours = tokens / rate / 3600
    return {
        "extrapolated": ahead is not None,
        "tokens": tokens,
        "windows": ahead.windows if ahead else None,
        "gigabytes": tokens * size / 1e9,
        "tokens_per_second": rate,
        "hours": hours,
        "usd_per_hour": usd_per_hour,
        "usd": None if usd_per_hour is None else hours * usd_per_hour,
        "device": device,
    }


def folder_of(config: CaptureConfig, out: Path | None) -> Path:
    """Where the survey's files go: beside the cache unless said otherwise.

    Raises:
        UsageError: it is the cache itself.
    """
    folder = out or config.cache.with_name(f"{config.cache.name}-survey")
    if folder.resolve() == config.cache.resolve():
        raise UsageError("--out", expected="a folder of its own", got="the cache's", do="choose another")
    return folder


def survey_to(config: CaptureConfig, wish: Wish, folder: Path, *, progress: bool = True) -> tuple[dict[str, Any], str]:
    """`survey`, with survey.json, survey.png and capture.yaml written to `folder`; returns the facts and the screen."""
    found = survey(config, wish, progress=progress)
    folder.mkdir(parents=True, exist_ok=True)
    advised = folder / ADVISED
    atomic_write(advised, advised_config(config, found))
    atomic_write(folder / "survey.json", json.dumps(found, indent=2, allow_nan=False) + "\n")
    draw(found, folder / "survey.png")
    shown = None if found["knowledge"]["poor"] else advised
    return found, screen(found, shown) + f"\nwritten: {folder}/survey.json, survey.png, {ADVISED}"
