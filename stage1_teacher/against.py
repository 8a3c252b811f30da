"""`survey --against OTHER`: what quantising a teacher costs in what it teaches: its beliefs beside its original's, on a sample.

One model is in memory at a time. Not for what a cache loses (fidelity.py).
Legend: S measured positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.manifest import Selection
from shared.config import check_config
from shared.memory import free_memory
from shared.tokenizer import fingerprint, load_tokenizer, require_same
from shared.windows import Window
from stage1_teacher.aim import Sample
from stage1_teacher.config import CaptureConfig, TeacherConfig
from stage1_teacher.fidelity import STUDENT, gradients
from stage1_teacher.reading import read_sample
from stage1_teacher.shape import TEMPERATURES
from stage1_teacher.teacher import load_teacher

NEGLIGIBLE, MUCH = 0.01, 0.1  # nats at T = 1: what a good cache loses, and what nobody should teach without knowing
ONE = Selection(k=1, top_p=1.0)


def beliefs(config: CaptureConfig, windows: Sequence[Window], teacher: TeacherConfig) -> Sample:
    """The log-probabilities of `teacher` at the positions that a survey of `config` measures in these windows.

    The model is gone when this returns.
    """
    chosen = config.model_copy(update={"teacher": teacher, "selection": ONE})
    model = load_teacher(chosen.teacher)
    sample = read_sample(model, windows, chosen, sum(len(window.tokens) - 1 for window in windows))
    del model
    free_memory()
    return sample


def original_of(config: CaptureConfig, other: str) -> TeacherConfig:
    """The teacher to compare with: `other` as it is, unquantised, on the same device.

    Raises:
        UsageError: it has another tokenizer.
    """
    same = config.teacher.model_dump(exclude_unset=True, exclude={"revision", "quantisation"})
    original = check_config(TeacherConfig, same | {"model": other}, base=Path.cwd(), name="--against")
    theirs = fingerprint(load_tokenizer(original.model, None))
    ours = fingerprint(load_tokenizer(config.teacher.model, config.teacher.revision))
    do = "compare a teacher with its own original"
    require_same(ours, theirs, what=f"--against {other}", do=do)
    return original


def compare(ours: Sample, theirs: Sample, original: str) -> dict[str, Any]:
    """How far a teacher's beliefs are from its original's, means over the measured positions.

    Returns:
        at each of T = 1, 1.5, 2: `kl` KL(original || teacher) in nats, `total_variation`, `gradient_angle` of a student in the
        midst of its training (fidelity.py); `same_first`, `loss` and `original_loss` in nats a token, `words`.
    """
    ours_SV, theirs_SV = (torch.cat(list(sample.truths)).double() for sample in (ours, theirs))
    if ours_SV.shape[1] < theirs_SV.shape[1]:  # padded vocabularies: rows that no token has
        theirs_SV = theirs_SV[:, : ours_SV.shape[1]].log_softmax(dim=1)
    if ours_SV.shape[1] > theirs_SV.shape[1]:
        ours_SV = ours_SV[:, : theirs_SV.shape[1]].log_softmax(dim=1)
    rows = [_at(ours_SV, theirs_SV, temperature) for temperature in TEMPERATURES]
    return {
        "original": original,
        "temperatures": rows,
        "same_first": float((ours_SV.argmax(dim=1) == theirs_SV.argmax(dim=1)).double().mean()),
        "loss": _loss(ours),
        "original_loss": _loss(theirs),
        "words": in_words(rows[0]["kl"]),
    }


def in_words(kl: float) -> str:
    """What the KL at T = 1 means."""
    if kl <= NEGLIGIBLE:
        return "quantising costs less than a good cache does; teach with it"
    if kl <= MUCH:
        return "quantising costs more than the cache will; the original teaches better where it fits"
    return "quantising changes what this teacher believes: take more bits, or the original"


def _at(ours_SV: Tensor, theirs_SV: Tensor, temperature: float) -> dict[str, float]:
    ours, theirs = ((values_SV / temperature).log_softmax(dim=1) for values_SV in (ours_SV, theirs_SV))
    p_SV, q_SV = theirs.exp(), ours.exp()
    student_SV = (theirs / STUDENT).softmax(dim=1)
    angles = [
        gradients(p_V, q_V, student_V)["gradient_angle"]
        for p_V, q_V, student_V in zip(p_SV, q_SV, student_SV, strict=True)
    ]
    return {
        "temperature": temperature,
        "kl": float((p_SV * (theirs - ours)).sum(dim=1).clamp_min(0).mean()),
        "total_variation": float((p_SV - q_SV).abs().sum(dim=1).mean()) / 2,
        "gradient_angle": float(np.mean(angles)),
    }


def _loss(sample: Sample) -> float:
    return -float(np.concatenate([record.gold_P for record in sample.records]).mean(dtype=np.float64))
