"""Universal Logit Distillation: a teacher and a student of different vocabularies (Boizard et al. 2024, arXiv 2402.12030).

    ULD = sum_i |p_(i) - q_(i)|       both sorted from most to least likely, the shorter one filled up with zeros

Token by token there is nothing to compare, so what is compared is how the mass is spread: how sure each is, between how many
continuations. The paper compares position i of both token sequences; here only positions where both have read the same text
(retokenize.py), because elsewhere they predict different things.

The teacher's sorted vector comes from the cache, at temperature T like the student's; only values are needed, no ids:
    full      the head, and the tail rebuilt from its stored shape
    bucket    the head, and the tail's mass spread evenly over its tokens
There is no factor T^2: ULD's gradient does not shrink with T^2 as KL's does.

    loss = kd_weight * (sum of ULD over aligned positions) / N + ce_weight * CE       N positions that count

Not for other measures (divergences.py) nor for the head's products (head_loss.py).
Shapes: N positions that count, n of them in a block, a aligned ones among these, V the student's vocabulary, U the teacher's,
W the larger, K head entries, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stage2_student.divergences import Target, softmax
from stage2_student.head_loss import block_rows, head_loss
from stage2_student.loss import DistillationLoss, LossTerms, Positions, cross_entropy
from stage2_student.scratch import Scratch

SORTS = 4  # what a sort needs besides its input, in its inputs: the order in 8 bytes, the values, work


@dataclass(frozen=True, slots=True)
class Aligned(Positions):
    """Positions of a student with another tokenizer: targets are its own, the record is the teacher's.

    Attributes:
        aligned_N: bool; where it is False the record means nothing.
    """

    aligned_N: Tensor


@dataclass(frozen=True, slots=True)
class AlignedTerms(LossTerms):
    """Sums over the positions; kd is ULD's over the aligned ones.

    Attributes:
        aligned: [] positions where teacher and student could be compared.
    """

    aligned: Tensor


class UldLoss(DistillationLoss):
    """DistillationLoss with ULD in the divergence's place; `form` is full or bucket, `vocab_size` the teacher's."""

    scored = ("kd", "ce", "aligned")

    def __init__(self, *, form: str, **settings: Any) -> None:
        super().__init__(form=form, t_squared=False, **settings)
        self.form = form

    def __call__(self, hidden_ND: Tensor, weight_VD: Tensor, record: Positions, *, scoring: bool = False) -> LossTerms:
        """Sums over the positions."""
        assert isinstance(record, Aligned)
        work_dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        target = self._target(record, hidden_ND, work_dtype) if scoring or self.distils else None
        mix = _Mix(self, record, target, work_dtype)
        sums = head_loss(hidden_ND, weight_VD, mix, scratch=self._scratch, dtype=self.dtype, chunk=self.chunk)
        kd, ce = sums[1:].detach()
        nothing = torch.zeros_like(kd)
        count = len(hidden_ND)
        return AlignedTerms(sums[0], kd, ce, nothing, nothing, nothing, count, aligned=record.aligned_N.sum())


class _Mix:
    """head_loss.Objective: cross-entropy of one block at all its positions, ULD at the aligned ones."""

    def __init__(self, loss: UldLoss, record: Aligned, target: Target | None, dtype: torch.dtype) -> None:
        self._loss, self._record, self._target = loss, record, target
        self._sums = torch.zeros(3, dtype=torch.float64, device=record.targets_N.device)
        self._like = torch.empty(0, dtype=dtype, device=record.targets_N.device)

    def sums(self) -> Tensor:
        self._sums[0] = self._loss.mix(self._sums[1], self._sums[2])
        return self._sums.to(self._like.dtype)

    def block(self, logits_nV: Tensor, start: int, gradient: bool, scratch: Scratch) -> None:
        loss, record, stop = self._loss, self._record, start + len(logits_nV)
        z_nV = scratch.take("logits of the block", logits_nV.shape, self._like).copy_(logits_nV)
        grad_nV = scratch.take("gradient", z_nV.shape, z_nV)
        self._sums[2] += cross_entropy(z_nV, record.targets_N[start:stop], loss.ce_weight, gradient, grad_nV).sum()
        if self._target is not None:
            places = record.aligned_N[start:stop].nonzero().squeeze(1)
            widest = max(z_nV.shape[1], loss.vocab_size)
            for part_a in torch.split(places, max(1, block_rows(z_nV) * z_nV.shape[1] // (widest * SORTS))):
                y_aV = z_nV.index_select(0, part_a).mul_(self._target.beta)
                p_aU = sorted_teacher(_rows(self._target, part_a + start), loss, y_aV, scratch)
                self._sums[1] += uld(y_aV, p_aU).sum()
                if gradient:  # d/dz = (1/T) d/dy
                    grad_nV.index_add_(0, part_a, y_aV, alpha=loss.kd_scale * self._target.beta)
        if gradient:
            logits_nV.copy_(grad_nV)


def uld(y_aV: Tensor, p_aU: Tensor) -> Tensor:
    """ULD of each position [a]; y, the student's logits / T, is overwritten with its gradient.

    Args:
        y_aV: the student's logits at T.
        p_aU: the teacher's probabilities at T, most likely first.
    """
    q_aV = torch.empty_like(y_aV)
    softmax(y_aV, q_aV)
    sorted_aV, order_aV = most_likely_first(q_aV)
    both = min(q_aV.shape[1], p_aU.shape[1])
    slope_aV = sorted_aV.clone()  # where the teacher's vector has ended, q - 0
    slope_aV[:, :both] -= p_aU[:, :both]
    value_a = slope_aV.abs().sum(1) + p_aU[:, both:].sum(1)
    slope_aV = torch.empty_like(q_aV).scatter_(1, order_aV, slope_aV.sign_()).mul_(q_aV)
    torch.addcmul(slope_aV, q_aV, slope_aV.sum(1, keepdim=True), value=-1, out=y_aV)
    return value_a


def most_likely_first(values_aV: Tensor) -> tuple[Tensor, Tensor]:
    """(values from largest to smallest, where each stood). On a CPU through numpy, whose sort is several times as fast."""
    if values_aV.device.type != "cpu":
        return torch.sort(values_aV, 1, descending=True)
    order_aV = torch.from_numpy(np.argsort(-values_aV.numpy(), axis=1))
    return values_aV.gather(1, order_aV), order_aV


def sorted_teacher(target: Target, loss: UldLoss, like_aV: Tensor, scratch: Scratch) -> Tensor:
    """p_T of these positions, most likely first [a, U]."""
    shape = (len(like_aV), loss.vocab_size)
    p_aU = scratch.take("p", shape, like_aV)
    head_aK, tail_a = target.log_head_NK.exp(), target.log_tail_N.exp()
    if loss.form == "bucket":  # already in order: no token of the tail is likelier than the head's last
        spread_a = tail_a / (loss.vocab_size - target.valid_NK.sum(1)).clamp_min(1)
        p_aU.copy_(spread_a[:, None].expand_as(p_aU))
        p_aU[:, : head_aK.shape[1]] = torch.where(target.valid_NK, head_aK, spread_a[:, None])
        return p_aU
    _rebuilt_tail(target, p_aU).mul_(tail_a[:, None])
    p_aU.scatter_(1, target.head_ids_NK, torch.where(target.valid_NK, head_aK, head_aK[:, :1]))
    if p_aU.device.type != "cpu":
        return p_aU.sort(1, descending=True).values
    p_aU.neg_().numpy().sort(axis=1)
    return p_aU.neg_()


def _rebuilt_tail(target: Target, out_aU: Tensor) -> Tensor:
    """The shape of the tail at T, summing to 1; 0 on the head, and everywhere where the head is the whole vocabulary."""
    shape = target.shape
    assert shape is not None, "the cache keeps no tail shape"
    coords_aR = (target.coords_NR * target.beta).to(shape.basis_RV.dtype)
    logits_aU = torch.mm(coords_aR, shape.basis_RV).to(out_aU.dtype).add_(shape.mean_V, alpha=target.beta)
    logits_aU.scatter_(1, target.head_ids_NK, -torch.inf)
    whole_a = target.log_tail_N == -torch.inf
    return torch.softmax(logits_aU.masked_fill_(whole_a[:, None], 0.0), 1, out=out_aU)


def _rows(target: Target, places_a: Tensor) -> Target:
    """The record at some positions."""
    return Target(
        target.head_ids_NK[places_a],
        target.valid_NK[places_a],
        target.log_head_NK[places_a],
        target.log_tail_N[places_a],
        target.coords_NR[places_a],
        target.beta,
        target.shape,
    )
