"""The training loss: distillation from the cached record, mixed with cross-entropy on the corpus's own tokens.

    loss = kd_weight * T^2 * D(p_T, q_T) + ce_weight * CE        mean over the positions that count, in nats

D is any measure of measures.py in any form of divergences.py; forward KL is the default. The weights say what they weigh.
T^2 keeps the size of KL's gradient independent of T (Hinton et al. 2015) and can be left out (`t_squared: false`). T and
both weights may move over the run (ramp.py). Published recipes use one letter for different things:

    | recipe                                  | its words                  | here                                        |
    |-----------------------------------------|----------------------------|---------------------------------------------|
    | first recipe (44m: T 1.5 a 0.3, ...)    | a on KL, T^2               | kd_weight a, ce_weight 1 - a                |
    | Hinton 2015; DistilBERT's alpha_ce      | weight on the soft targets | kd_weight a, ce_weight the other            |
    | "alpha on CE" (many tutorials)          | a CE + (1 - a) T^2 KL      | kd_weight 1 - a, ce_weight a                |
    | MiniLLM, GKD, others without T^2        | a D + b CE                 | t_squared false, kd_weight a, ce_weight b   |
    | GKD's beta in TRL: 0, 1, between        | KL(p, q), KL(q, p), JSD    | forward_kl, reverse_kl, jsd with that beta  |
    | DistiLLM's skew alpha (0.1)             | KL(p, a p + (1 - a) q)     | skew_kl, or skew_reverse_kl, with alpha a   |
    | Jensen-Shannon as a sum, without 1/2    | KL(p, m) + KL(q, m)        | jsd with beta 0.5, kd_weight twice as large |
    | total variation as a sum, without 1/2   | sum of abs(p - q)          | total_variation, kd_weight twice as large   |

Not for the head's matrix products (head_loss.py) nor for the divergences themselves (divergences.py, measures.py).
Shapes: N positions that count, K head entries (padded), M stored tail nodes, R coordinates, V vocabulary, D width, n a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from cache.tail import node_weights
from stage2_student.divergences import FORMS, Divergence, TailShape, Target, softmax
from stage2_student.head_loss import head_loss
from stage2_student.measures import Measure, forward_kl
from stage2_student.ramp import Ramp, constant
from stage2_student.scratch import Scratch

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True, slots=True)
class Positions:
    """The cached record of the positions that count, flat over the batch.

    Attributes:
        targets_N: int64, the corpus's next token.
        head_ids_NK: int64; on padding any id.
        head_logprobs_NK: float32, natural log at T = 1, -inf on padding.
        head_sizes_N: int64, >= 1; V where the head is the whole vocabulary.
        tail_NM: float32, the tail's log mass at cache.tail.NODES.
        coords_NR: float32, R may be 0.
    """

    targets_N: Tensor
    head_ids_NK: Tensor
    head_logprobs_NK: Tensor
    head_sizes_N: Tensor
    tail_NM: Tensor
    coords_NR: Tensor


@dataclass(frozen=True, slots=True)
class LossTerms:
    """Sums over the positions; `loss` carries the gradient, the others are for the log.

    Attributes:
        loss: [] kd_weight * T^2 * kd + ce_weight * ce.
        kd: [] divergence in nats, without weight or T^2; 0 where it was not computed (kd_weight always 0, in training).
        ce: [] cross-entropy in nats.
        agreement: [] positions where student and teacher have the same most likely token; 0 in training.
        teacher_tail, student_tail: [] their masses outside the head at T; 0 in training.
        positions: how many were summed.
    """

    loss: Tensor
    kd: Tensor
    ce: Tensor
    agreement: Tensor
    teacher_tail: Tensor
    student_tail: Tensor
    positions: int

    def detached(self) -> LossTerms:
        """The same numbers without the way back."""
        return replace(self, loss=self.loss.detach())


def target_at(
    record: Positions, temperature: float, vocab_size: int, dtype: torch.dtype, shape: TailShape | None = None
) -> Target:
    """p_T from the record: its normaliser comes from head and tail mass, no second pass over the vocabulary.

    Args:
        record: the cached positions.
        temperature: T >= 1 / cache.tail.BETA_RANGE[1].
        vocab_size: the teacher's model vocabulary, padded entries included, as its manifest has it.
        dtype: of the result.
        shape: the cache's tail shape, for the forms that rebuild the tail.
    """
    beta = 1.0 / temperature
    valid_NK = record.head_logprobs_NK > -math.inf
    ids_NK = torch.where(valid_NK, record.head_ids_NK, record.head_ids_NK[:, :1])
    log_tail_N = tail_mass(record.tail_NM, record.head_sizes_N, beta, vocab_size)
    log_head_NK = record.head_logprobs_NK.double() * beta
    log_z_N = torch.logaddexp(log_head_NK.logsumexp(1), log_tail_N)
    return Target(
        ids_NK,
        valid_NK,
        (log_head_NK - log_z_N[:, None]).to(dtype),
        (log_tail_N - log_z_N).to(dtype),
        record.coords_NR.to(dtype),
        beta,
        shape,
    )


def tail_mass(tail_NM: Tensor, head_sizes_N: Tensor, beta: float, vocab_size: int) -> Tensor:
    """f(beta) = log sum_{tail} exp(beta * l), float64 [N]; -inf where the head is the whole vocabulary."""
    weights = torch.from_numpy(node_weights(beta)).to(tail_NM.device)
    whole_N = head_sizes_N >= vocab_size
    nodes_NM = tail_NM.double().masked_fill(whole_N[:, None], 0.0)
    count_N = (vocab_size - head_sizes_N).clamp_min(1).double()
    return (count_N.log() * weights[0] + nodes_NM @ weights[1:]).masked_fill_(whole_N, -math.inf)


class DistillationLoss:
    """The loss with its settings and its work buffers; one object serves a whole training run.

    Args:
        form: a key of divergences.FORMS, or a Divergence of your own, which then has the measure inside.
        measure: what compares teacher and student on the form's cells.
        temperature: T, shared by teacher and student.
        kd_weight: weight of T^2 * divergence.
        ce_weight: weight of cross-entropy.
        t_squared: False leaves the factor T^2 out.
        vocab_size: the teacher's model vocabulary = the student's.
        dtype: of the head's matrix products; None takes the hidden states' own.
        chunk: positions held at once; None lets head_loss choose.
        tail_shape: what `full` rebuilds the tail from.

    `scored` names what validation reports of LossTerms.

    A ramp stands at its start until `at` moves it; `temperature`, `kd_weight` and `ce_weight` are where it stands.
    """

    scored: tuple[str, ...] = ("kd", "ce", "agreement", "teacher_tail", "student_tail")

    def __init__(
        self,
        *,
        form: str | Divergence = "bucket",
        measure: Measure = forward_kl,
        temperature: float | Ramp = 1.0,
        kd_weight: float | Ramp = 1.0,
        ce_weight: float | Ramp = 0.0,
        t_squared: bool = True,
        vocab_size: int,
        dtype: torch.dtype | None = None,
        chunk: int | None = None,
        tail_shape: TailShape | None = None,
    ) -> None:
        self.divergence: Divergence = partial(FORMS[form], measure=measure) if isinstance(form, str) else form
        self._ramps = [
            value if isinstance(value, Ramp) else constant(value) for value in (temperature, kd_weight, ce_weight)
        ]
        self._t_squared = t_squared
        self.vocab_size, self.dtype, self.chunk, self.tail_shape = vocab_size, dtype, chunk, tail_shape
        self._scratch = Scratch()
        self.at(0.0)

    def at(self, progress: float) -> None:
        """Move the ramps: 0 is the first optimizer step, 1 the last."""
        self.temperature, self.kd_weight, self.ce_weight = (ramp.at(progress) for ramp in self._ramps)

    @property
    def distils(self) -> bool:
        """Whether the teacher is ever listened to; if not, training does not compute the divergence."""
        return self._ramps[1].ends[1] > 0

    @property
    def kd_scale(self) -> float:
        """What the divergence is multiplied by: kd_weight * T^2."""
        return self.kd_weight * (self.temperature**2 if self._t_squared else 1.0)

    def moving(self) -> dict[str, float]:
        """Where the settings that move over the run stand, by name."""
        names = ("temperature", "kd_weight", "ce_weight")
        return {
            name: getattr(self, name) for name, ramp in zip(names, self._ramps, strict=True) if ramp.start != ramp.end
        }

    def mix(self, kd: Number, ce: Number) -> Number:
        """The loss of these terms where the ramps stand."""
        return self.kd_scale * kd + self.ce_weight * ce

    def __call__(self, hidden_ND: Tensor, weight_VD: Tensor, record: Positions, *, scoring: bool = False) -> LossTerms:
        """Sums over the positions. `scoring` also computes what training can do without: agreement, kd at weight 0."""
        assert len(weight_VD) == self.vocab_size, (len(weight_VD), self.vocab_size)
        work_dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        target = self._target(record, hidden_ND, work_dtype) if scoring or self.distils else None
        mix = _Mix(self, record.targets_N, target, scoring, work_dtype)
        sums = head_loss(hidden_ND, weight_VD, mix, scratch=self._scratch, dtype=self.dtype, chunk=self.chunk)
        kd, ce, agreement, teacher_tail, student_tail = sums[1:].detach()
        return LossTerms(sums[0], kd, ce, agreement, teacher_tail, student_tail, len(hidden_ND))

    def _target(self, record: Positions, hidden_ND: Tensor, dtype: torch.dtype) -> Target:
        if self.tail_shape is not None:
            self.tail_shape = self.tail_shape.on(hidden_ND.device, dtype, self.dtype or dtype)
        return target_at(record, self.temperature, self.vocab_size, dtype, self.tail_shape)

    def free(self) -> None:
        """Give the work buffers back."""
        self._scratch = Scratch()


class _Mix:
    """head_loss.Objective: both terms of one block, each through its own buffer, added with their weights."""

    def __init__(
        self, loss: DistillationLoss, targets_N: Tensor, target: Target | None, scoring: bool, dtype: torch.dtype
    ) -> None:
        self._loss, self._targets_N, self._target, self._scoring = loss, targets_N, target, scoring
        self._sums = torch.zeros(6, dtype=torch.float64, device=targets_N.device)
        self._like = torch.empty(0, dtype=dtype, device=targets_N.device)

    def sums(self) -> Tensor:
        self._sums[0] = self._loss.mix(self._sums[1], self._sums[2])
        return self._sums.to(self._like.dtype)

    def block(self, logits_nV: Tensor, start: int, gradient: bool, scratch: Scratch) -> None:
        loss, stop = self._loss, start + len(logits_nV)
        z_nV = scratch.take("logits of the block", logits_nV.shape, self._like).copy_(logits_nV)
        grad_nV = scratch.take("gradient", z_nV.shape, z_nV)
        self._sums[2] += cross_entropy(z_nV, self._targets_N[start:stop], loss.ce_weight, gradient, grad_nV).sum()
        if self._target is not None:
            rows = self._target.rows(start, stop)
            if self._scoring:
                self._sums[3] += (z_nV.argmax(1) == rows.head_ids_NK[:, 0]).sum()
                self._sums[4] += rows.log_tail_N.exp().sum()
                self._sums[5] += mass_outside(z_nV, rows).sum()
            self._sums[1] += loss.divergence(z_nV.mul_(rows.beta), rows, scratch).sum()
            if gradient:  # d/dz = (1/T) d/dy
                grad_nV.add_(z_nV, alpha=loss.kd_scale * rows.beta)
        if gradient:
            logits_nV.copy_(grad_nV)


def mass_outside(z_nV: Tensor, target: Target) -> Tensor:
    """The student's mass outside the teacher's head at the target's temperature [n], for the log."""
    y_nK = z_nV.gather(1, target.head_ids_NK) * target.beta
    inside_nK = (y_nK - (z_nV * target.beta).logsumexp(1, keepdim=True)).exp()
    return 1 - inside_nK.masked_fill(~target.valid_NK, 0.0).sum(1)


def cross_entropy(z_nV: Tensor, targets_n: Tensor, weight: float, gradient: bool, out_nV: Tensor) -> Tensor:
    """-log softmax(z)[target] of each position; `out` becomes weight * its gradient, or of no use when not asked for."""
    _, log_z_n = softmax(z_nV, out_nV)
    loss_n = log_z_n - z_nV.gather(1, targets_n[:, None]).squeeze(1)
    if gradient:
        out_nV.mul_(weight)
        out_nV.scatter_add_(1, targets_n[:, None], out_nV.new_full((len(out_nV), 1), -weight))
    return loss_n
