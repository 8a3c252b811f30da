"""One training loop for every student of the proof (cache_students.py), and how a student is measured.

All arms share student, seed, optimiser, order of windows, steps and loss code; they differ only in where the teacher's belief
comes from: nowhere, the teacher itself in memory (`online`), or a cache through cache.reader and stage 2's own batches.
Not for choosing arms, capturing or plotting.
Shapes: B windows, T positions, N positions that count, n a block of them, D the teacher's width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from cache.reader import Cache
from cache.record import CachedWindow
from cache.tail import NODES
from shared.tokenizer import TokenizerFingerprint
from shared.windows import Window
from stage1_teacher.batches import pack
from stage1_teacher.reading import hidden_states as hidden_states_of
from stage1_teacher.teacher import TeacherModel
from stage2_student.batch import Collate, record_of
from stage2_student.divergences import Divergence, TailShape, Target
from stage2_student.loss import DistillationLoss, Positions
from stage2_student.scratch import Scratch
from stage2_student.student_config import Architecture
from stage2_student.students import from_scratch, head_weight, hidden_states

STUDENT = Architecture(layers=4, width=128, heads=4, positions=512, dropout=0.0)
LEARNING_RATE = 3e-3
WARMUP = 0.1  # share of the steps
KD_WEIGHT, CE_WEIGHT = 0.9, 0.1  # of every arm that has a teacher
VALIDATIONS = 3  # a run, evenly spread, the last one at its end

COLLATE = Collate(mask_prompt=False, pad_id=0)
Batch = dict[str, Any]


def online(y_nV: Tensor, target: Target, scratch: Scratch) -> Tensor:
    """KL(p_T || q_T) with nothing stored in between: the record's coordinates are the teacher's logits themselves.

    The same contract as the divergences of stage 2: a block of positions at a time, gradient q - p left in `y_nV`.
    """
    log_p_nV = torch.mul(target.coords_NR, target.beta, out=scratch.take("teacher log p", y_nV.shape, y_nV))
    log_p_nV.sub_(log_p_nV.logsumexp(1, keepdim=True))
    p_nV = torch.exp(log_p_nV, out=scratch.take("teacher p", y_nV.shape, y_nV))
    cross_n = log_p_nV.sub_(y_nV).mul_(p_nV).sum(1)
    peak_n1 = y_nV.amax(1, keepdim=True)
    sum_n1 = y_nV.sub_(peak_n1).exp_().sum(1, keepdim=True)
    y_nV.div_(sum_n1).sub_(p_nV)
    return cross_n + (peak_n1 + sum_n1.log()).squeeze(1)


class OnlineTeacher:
    """The teacher in memory. Its hidden states of a window never change, so they are computed once a window."""

    def __init__(self, teacher: TeacherModel) -> None:
        self.teacher = teacher
        self._known: dict[str, Tensor] = {}
        self._logits_NV = torch.empty(0, teacher.vocab_size)

    @torch.inference_mode()
    def logits(self, windows: Sequence[Window]) -> Tensor:
        """float32 [N, V] at every position of the windows that predicts a token; valid until the next call."""
        new = [window for window in windows if window.id not in self._known]
        for batch in pack(new, 4096):
            chosen = [new[index] for index in batch]
            states = torch.split(hidden_states_of(self.teacher, chosen), [len(window.tokens) - 1 for window in chosen])
            self._known |= {window.id: part.clone() for window, part in zip(chosen, states, strict=True)}
        hidden_ND = torch.cat([self._known[window.id] for window in windows])
        if len(self._logits_NV) < len(hidden_ND):
            self._logits_NV = torch.empty(len(hidden_ND), self.teacher.vocab_size)
        self.teacher.logits(hidden_ND, self._logits_NV[: len(hidden_ND)])
        return self._logits_NV[: len(hidden_ND)]


def bare(window: Window) -> CachedWindow:
    """A window without a teacher's belief."""
    count = len(window.tokens) - 1
    zeros_P, none_PR, tail_PN = (
        np.zeros(count, np.float32),
        np.zeros((count, 0), np.float32),
        np.zeros((count, len(NODES)), np.float32),
    )
    head = (np.ones(count, np.int32), np.zeros(count, np.int32), zeros_P)
    return CachedWindow(
        window.id, window.document, window.prompt_tokens, window.tokens, *head, tail_PN, zeros_P, none_PR
    )


@dataclass(frozen=True)
class Source:
    """Where an arm's belief comes from: a batch and its record by window numbers, the loss's form, the tail's shape."""

    batch: Callable[[Sequence[int]], tuple[Batch, Positions]]
    form: str | Divergence
    kd_weight: float
    shape: TailShape | None = None


def from_text(windows: Sequence[Window]) -> Source:
    """(a) cross-entropy alone."""

    def batch(chosen: Sequence[int]) -> tuple[Batch, Positions]:
        inputs = COLLATE([bare(windows[index]) for index in chosen])
        return inputs, record_of(inputs)

    return Source(batch, "bucket", 0.0)


def from_teacher(windows: Sequence[Window], teacher: OnlineTeacher) -> Source:
    """(b) the full vocabulary, the teacher in memory."""
    text = from_text(windows)

    def batch(chosen: Sequence[int]) -> tuple[Batch, Positions]:
        inputs, record = text.batch(chosen)
        return inputs, replace(record, coords_NR=teacher.logits([windows[index] for index in chosen]))

    return Source(batch, online, KD_WEIGHT)


def from_cache(cache: Cache, form: str, shape: TailShape | None) -> Source:
    """(c), (d), (e): what the cache kept."""

    def batch(chosen: Sequence[int]) -> tuple[Batch, Positions]:
        inputs = COLLATE([cache[index] for index in chosen])
        return inputs, record_of(inputs)

    return Source(batch, form, KD_WEIGHT, shape)


def order(count: int, steps: int, batch: int, seed: int) -> Iterator[list[int]]:
    """`steps` batches of window numbers: epoch after epoch, each in an order of its own; the same for every arm."""
    epoch, waiting = 0, np.zeros(0, np.int64)
    for _ in range(steps):
        while len(waiting) < batch:
            waiting = np.concatenate([waiting, np.random.default_rng((seed, epoch)).permutation(count)])
            epoch += 1
        yield waiting[:batch].tolist()
        waiting = waiting[batch:]


class HeldOut:
    """Text that no student trains on, and the teacher's whole belief about it."""

    def __init__(self, windows: Sequence[Window], teacher: OnlineTeacher, batch: int) -> None:
        self._source = from_teacher(windows, teacher)
        self._groups = [range(len(windows))[start : start + batch] for start in range(0, len(windows), batch)]
        self.vocab_size = teacher.teacher.vocab_size
        self.positions = sum(len(window.tokens) - 1 for window in windows)

    @torch.inference_mode()
    def measure(self, student: Any, temperature: float) -> dict[str, float]:
        """Means over the held-out positions: `ce` on the text's own tokens, `kl` = KL(teacher_T || student_T), nats."""
        loss = DistillationLoss(form=online, temperature=temperature, vocab_size=self.vocab_size, dtype=torch.bfloat16)
        sums = torch.zeros(2, dtype=torch.float64)
        for group in self._groups:
            inputs, record = self._source.batch(group)
            terms = loss(student_states(student, inputs), head_weight(student), record, scoring=True)
            sums += torch.tensor([float(terms.ce), float(terms.kd)], dtype=torch.float64)
        ce, kl = (sums / self.positions).tolist()
        return {"ce": ce, "kl": kl}


def student_states(student: Any, batch: dict[str, Any]) -> Tensor:
    """The student's last hidden states at the positions that count, [N, D]."""
    states_BTD = hidden_states(student, batch["input_ids"], batch["attention_mask"])
    return states_BTD.flatten(0, 1).index_select(0, batch["counted"])


def rate(step: int, steps: int) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine to 0."""
    warm = max(1, round(steps * WARMUP))
    return (step + 1) / warm if step < warm else 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def teach(student: Any, source: Source, temperature: float, batches: Sequence[Sequence[int]]) -> Iterator[int]:
    """One optimiser step a batch; gives the number of steps done after each."""
    optimiser = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, len(batches)))
    loss = DistillationLoss(
        form=source.form, temperature=temperature, kd_weight=source.kd_weight,
        ce_weight=CE_WEIGHT if source.kd_weight else 1.0, vocab_size=len(head_weight(student)),
        dtype=torch.bfloat16, tail_shape=source.shape,
    )  # fmt: skip
    for step, chosen in enumerate(batches, start=1):
        inputs, record = source.batch(chosen)
        terms = loss(student_states(student, inputs), head_weight(student), record)
        (terms.loss / terms.positions).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        yield step


def start(
    folder: Path,
    windows: Sequence[Window],
    facts: TokenizerFingerprint,
    vocab_size: int,
    *,
    steps: int,
    batch: int,
    seed: int,
) -> Any:
    """The student all arms of a seed go on from: from scratch, then cross-entropy for `steps` steps. Kept in `folder`.

    From scratch a student learns word frequencies first; at T = 2 a short run would end there, where every record is right.
    """
    if not (folder / "config.json").is_file():
        torch.manual_seed(seed)
        student = from_scratch(STUDENT, vocab_size, facts).train()
        for _ in teach(student, from_text(windows), 1.0, list(order(len(windows), steps, batch, seed))):
            pass
        student.save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder).train()


def train(
    student: Any,
    source: Source,
    scored: HeldOut,
    batches: Sequence[Sequence[int]],
    temperature: float,
    score_at: Sequence[float],
) -> list[dict[str, Any]]:
    """Train one arm's student and measure it on the way.

    Args:
        student: all arms' start; changed in place.
        source: where the teacher's belief comes from.
        batches: window numbers, a batch a step.
        temperature: T of the distillation term.
        score_at: temperatures at which KL to the teacher is measured.
    Returns:
        a row a validation, the first before any step: step, held-out `ce`, and `kl` by temperature.
    """
    steps = len(batches)
    due = {round(steps * (number + 1) / VALIDATIONS) for number in range(VALIDATIONS)}
    rows = [{"step": 0, **validate(student, scored, score_at)}]
    for step in teach(student, source, temperature, batches):
        if step in due:
            rows.append({"step": step, **validate(student, scored, score_at)})
    return rows


def validate(student: Any, scored: HeldOut, score_at: Sequence[float]) -> dict[str, Any]:
    """Validation loss, and KL to the teacher at each temperature."""
    found = {temperature: scored.measure(student, temperature) for temperature in score_at}
    kl = {f"{temperature:g}": measured["kl"] for temperature, measured in found.items()}
    return {"ce": next(iter(found.values()))["ce"], "kl": kl}
