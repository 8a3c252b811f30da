"""What a sample of the corpus says about a teacher: how well it knows the text, and what each way of keeping it costs.

Everything is measured against the teacher's full log-probabilities. Not for reading the sample (reading.py), not for the
search of one setting (aim.py), and not for what is printed (survey_text.py).
Legend: S measured positions, V vocabulary, K ids of a head, D width.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.manifest import Selection
from shared.windows import Window
from stage1_teacher.aim import Sample, Trial
from stage1_teacher.fidelity import STUDENT, SUMS, gradients
from stage1_teacher.shape import TEMPERATURES, Spectrum

HEADS = (1, 2, 4, 8, 16, 32, 64)
MASSES = (0.8, 0.9, 0.99, 1.0)
GRADIENTS = 48  # positions whose gradient is compared: float64 over the vocabulary, for every head
LOST = 0.5  # nats by which a teacher may be worse than it believes before a word is said


@dataclass(frozen=True)
class Knowledge:
    """How well the teacher models this text; nats a token.

    Attributes:
        loss: the teacher's own, from gold, over all positions of the sample.
        entropy: mean of its predictions at the measured positions: the loss it expects.
        top1: share of positions where the text's token is its most likely one.
        counting: loss of a model that only counts this sample's own tokens; anybody who has read has less.
        even: log V, the loss of knowing nothing.
        words: the same in plain words.
        poor: whether nobody should learn from it.
    """

    loss: float
    entropy: float
    top1: float
    counting: float
    even: float
    words: str
    poor: bool


def knowledge(sample: Sample, windows: Sequence[Window]) -> Knowledge:
    """Judge a teacher by the sample."""
    gold = np.concatenate([record.gold_P for record in sample.records]).astype(np.float64)
    truth_SV = torch.cat(list(sample.truths)).double()
    entropy = float(-(truth_SV.exp() * truth_SV).nan_to_num(0.0).sum(dim=1).mean())
    top1 = [
        int(record.head_ids_E[int(record.head_sizes_P[:place].sum())]) == int(record.tokens[place + 1])
        for record, places in zip(sample.records, sample.places, strict=True)
        for place in places
    ]
    counts = np.array(list(Counter(np.concatenate([w.tokens[1:] for w in windows]).tolist()).values()), np.float64)
    share = counts / counts.sum()
    facts = float(-gold.mean()), entropy, float(np.mean(top1)), float(-(share * np.log(share)).sum())
    even = math.log(truth_SV.shape[1])
    words, poor = in_words(facts[0], entropy, facts[3], even)
    return Knowledge(*facts, even, words, poor)


def in_words(loss: float, entropy: float, counting: float, even: float) -> tuple[str, bool]:
    """(What these numbers mean, whether nobody should learn from this teacher); nats a token."""
    if loss >= 0.95 * even:
        return "the teacher knows nothing of this text: wrong teacher, tokenizer or corpus; do not capture", True
    if loss >= counting:
        return "the teacher predicts this text worse than counting its words would: nobody should learn from it", True
    if loss > entropy + LOST:
        return (
            f"the teacher is surprised by this text more than it expects to be ({loss:.2f} against {entropy:.2f} nats): "
            "text of another kind than it was trained on, or a missing prompt or first token",
            False,
        )
    return "the teacher knows this kind of text", False


@dataclass(frozen=True)
class HeadRow:
    """A head alone, its tail spread evenly over the rest, at one temperature; exact numbers, nothing rounded.

    Attributes:
        ids: mean ids a position.
        kept: mass of the head.
        kl: nats, KL(p_T || rebuilt).
        gradient_angle: degrees, as fidelity.gradients.
        gradient_rms: error relative to the gradient.
    """

    k: int
    top_p: float
    temperature: float
    ids: float
    kept: float
    kl: float
    gradient_angle: float
    gradient_rms: float


@torch.inference_mode()
def heads(sample: Sample, temperatures: Sequence[float]) -> list[HeadRow]:
    """What every k and top_p keeps, without a shape of the tail."""
    truth_SV = torch.cat(list(sample.truths)).double()
    values_SV = truth_SV.sort(dim=1, descending=True).values
    before_SV = values_SV[:, : max(HEADS)].exp().cumsum(dim=1)
    rows = []
    for temperature in temperatures:
        p_SV = (values_SV / temperature).softmax(dim=1)
        student_SV = (p_SV + 1e-300).log().div(STUDENT).softmax(dim=1)  # over sorted tokens: no order is lost
        for k in (k for k in HEADS if k < values_SV.shape[1]):
            for top_p in MASSES:
                sizes_S = ((before_SV[:, :k] < top_p).sum(dim=1) + 1).clamp(max=k)
                rows.append(_head_row(p_SV, student_SV, sizes_S, Selection(k=k, top_p=top_p), temperature))
    return rows


def _head_row(p_SV: Tensor, student_SV: Tensor, sizes_S: Tensor, selection: Selection, temperature: float) -> HeadRow:
    head_SV = torch.arange(p_SV.shape[1]) < sizes_S[:, None]
    tail_S = p_SV.masked_fill(head_SV, 0).sum(dim=1)
    even_S = tail_S / (p_SV.shape[1] - sizes_S)
    rebuilt_SV = torch.where(head_SV, p_SV, even_S[:, None])
    kl = float((p_SV * ((p_SV + 1e-300).log() - (rebuilt_SV + 1e-300).log())).sum(dim=1).clamp_min(0).mean())
    every = max(1, len(p_SV) // GRADIENTS)
    found = [
        gradients(p_V, rebuilt_V, student_V)
        for p_V, rebuilt_V, student_V in zip(p_SV[::every], rebuilt_SV[::every], student_SV[::every], strict=True)
    ]
    return HeadRow(
        selection.k,
        selection.top_p,
        temperature,
        float(sizes_S.double().mean()),
        float(1 - tail_S.mean()),
        kl,
        float(np.mean([row["gradient_angle"] for row in found])),
        float(np.mean([row["gradient_rms"] for row in found])),
    )


def directions_curve(spectrum: Spectrum) -> list[dict[str, float]]:
    """How many directions this teacher needs: [{directions, kl}], the KL in nats that leaving out all further ones costs.

    To second order: half the squared spread of each coordinate in the metric of shape.py.
    """
    cost_D = spectrum.spread_D**2 / 2
    left_D = np.concatenate([[cost_D.sum()], cost_D.sum() - cost_D.cumsum()]).clip(min=0)
    places = sorted({0, *np.unique(np.geomspace(1, len(cost_D), 40).astype(int)).tolist()})
    return [{"directions": float(place), "kl": float(left_D[place])} for place in places]


def trial_row(trial: Trial, selection: Selection) -> dict[str, Any]:
    """One measured setting with the tail's shape: bytes a token and, at each temperature, every mean of fidelity.SUMS."""
    return {
        **asdict_of(selection),
        "directions": int(trial.projection.directions_DR.shape[1]),
        "step": trial.projection.step,
        "bytes_per_token": trial.bytes,
        "kl": trial.kl,
        "temperatures": [
            {"temperature": row["temperature"]} | {name: row[name] / row["positions"] for name in SUMS}
            for row in trial.fidelity
        ],
    }


def asdict_of(selection: Selection) -> dict[str, Any]:
    """k and top_p."""
    return {"k": selection.k, "top_p": selection.top_p}


def worst(rows: Sequence[HeadRow], selection: Selection) -> float:
    """KL at the worst of TEMPERATURES of a head without a tail's shape, nats."""
    mine = (selection.k, selection.top_p)
    return max(row.kl for row in rows if (row.k, row.top_p) == mine and row.temperature in TEMPERATURES)


def as_rows(rows: Sequence[HeadRow]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(row) for row in rows]
