"""Where a capture's tail shape comes from: a file that was given, the interrupted run before, or a fit on a sample.

Not for the fit's mathematics (shape.py), its aim (aim.py), nor the file (shape_file.py).
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cache.encoding import Encoding
from cache.shape import MOST_POSITIONS
from cache.writer import PROGRESS_FOLDER
from stage1_teacher.ahead import Ahead, corpus_facts, readable_windows, window_facts
from stage1_teacher.aim import WINDOWS as TRIAL_WINDOWS
from stage1_teacher.aim import choose
from stage1_teacher.config import CaptureConfig
from stage1_teacher.reading import read_sample, sample_hidden_states
from stage1_teacher.shape import Projection, analyse, why_not
from stage1_teacher.shape_file import KEPT, is_for, parse_shape, shape_bytes
from stage1_teacher.teacher import TeacherModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def take_shape(
    config: CaptureConfig,
    teacher: TeacherModel,
    tokenizer: PreTrainedTokenizerBase,
    ahead: Ahead | None,
    given: Path | None,
    *,
    progress: bool,
) -> Projection | None:
    """The tail's shape: as given, or as an interrupted run in this directory fitted it, or fitted now.

    A spot machine's successor may be of another kind, whose own fit would differ in the last digits.
    """
    wanted, kept = _fitted_for(config, teacher, ahead), config.cache / PROGRESS_FOLDER / KEPT
    if given is not None:
        raw, what = given.read_bytes(), str(given)
    elif config.shape is not None and kept.is_file() and is_for(kept.read_bytes(), str(kept), wanted):
        raw, what = kept.read_bytes(), str(kept)
    elif (fitted := fit_shape(config, teacher, tokenizer, ahead, progress=progress)) is None:
        return None
    else:  # to bytes and back, so that this run's arithmetic is the next one's, memory layout included
        raw, what = fitted_bytes(config, fitted, teacher, ahead), "the tail's shape"
    return parse_shape(raw, what, wanted, teacher.vocab_size, teacher.head_weight_VD.device)


def _fitted_for(config: CaptureConfig, teacher: TeacherModel, ahead: Ahead | None) -> dict[str, Any]:
    """All that a fit depends on but for the machine."""
    return {
        "teacher": teacher.facts.model_dump(mode="json"),
        "corpus": corpus_facts(config, ahead),
        "windows": window_facts(config.windows),
        "selection": config.selection.model_dump(mode="json"),
        "shape": config.shape and config.shape.model_dump(mode="json"),
    }


def fitted_bytes(config: CaptureConfig, projection: Projection, teacher: TeacherModel, ahead: Ahead | None) -> bytes:
    """The shape file of a fit for this config, teacher and corpus."""
    assert config.shape is not None, "a projection was asked for"
    return shape_bytes(projection, config.shape.sample_windows, _fitted_for(config, teacher, ahead))


def fit_shape(
    config: CaptureConfig,
    teacher: TeacherModel,
    tokenizer: PreTrainedTokenizerBase,
    ahead: Ahead | None,
    *,
    progress: bool = False,
) -> Projection | None:
    """The tail's shape, fitted on windows spread evenly over the corpus (on its first ones when streaming).

    Returns:
        None where the config wants none, or the teacher can have none (then a sentence on stderr says why).
    Raises:
        UsageError: what the config wants is out of reach, or the teacher is narrower than the directions asked for.
    """
    if config.shape is None:
        return None
    if reason := why_not(teacher):
        tqdm.write(f"the tail keeps its mass alone (r = 0): teacher {teacher.facts.id}: {reason}", file=sys.stderr)
        return None
    stride = max(1, ahead.windows // config.shape.sample_windows) if ahead else 1
    windows, _ = readable_windows(config, tokenizer)
    sample = list(islice(windows, 0, stride * config.shape.sample_windows, stride))
    spectrum = analyse(teacher, *sample_hidden_states(teacher, sample, config.batch_tokens), config.selection)
    positions = ahead.tokens - ahead.windows if ahead else MOST_POSITIONS
    if config.shape.directions is not None and config.shape.step is not None:
        return spectrum.project(config.shape.directions, config.shape.step, positions)
    encoding = Encoding(vocab_size=teacher.vocab_size, k=config.selection.k)
    trial = choose(config.shape, spectrum, read_sample(teacher, sample[:TRIAL_WINDOWS], config, positions), encoding)
    if progress:
        found = trial.projection
        what = f"{found.directions_DR.shape[1]} directions in steps of {found.step:g}"
        tqdm.write(
            f"tail's shape: {what}: {trial.kl:.3g} nats, {trial.bytes:.1f} bytes a token on a sample", sys.stderr
        )
    return trial.projection
