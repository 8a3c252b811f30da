"""The training loss: distillation from the cached record, mixed with cross-entropy on the corpus's own tokens.

    loss = kd_weight * T^2 * KL(p_T || q_T) + ce_weight * CE        mean over the positions that count, in nats

The weights say what they weigh; T^2 keeps the distillation gradient's size independent of T (Hinton et al. 2015). Published
recipes use one letter for different things:

    | recipe                                          | says             | here                              |
    |-------------------------------------------------|------------------|-----------------------------------|
    | first recipe (44m: T 1.5 a 0.3, ...)            | alpha on KL      | kd_weight = a, ce_weight = 1 - a  |
    | Hinton 2015, DistilBERT's tables, "alpha on CE" | alpha on CE      | kd_weight = 1 - a, ce_weight = a  |
    | T^2 left out                                    | alpha * KL       | kd_weight = a / T^2               |

Not for the head's matrix products (head_loss.py) nor for the divergences themselves (divergences.py).
Shapes: N positions that count, K head entries (padded), M stored tail nodes, R coordinates, V vocabulary, D width, n a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cache.tail import node_weights
from stage2_student.divergences import FORMS, Divergence, TailShape, Target
from stage2_student.head_loss import head_loss
from stage2_student.scratch import Scratch


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
        kd: [] divergence in nats, without weight or T^2; 0 where it was not computed (kd_weight = 0 in training).
        ce: [] cross-entropy in nats.
        agreement: [] positions where student and teacher have the same most likely token; 0 in training.
        positions: how many were summed.
    """

    loss: Tensor
    kd: Tensor
    ce: Tensor
    agreement: Tensor
    positions: int


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
        form: a key of divergences.FORMS, or a Divergence.
        temperature: T, shared by teacher and student.
        kd_weight: weight of T^2 * divergence.
        ce_weight: weight of cross-entropy.
        vocab_size: the teacher's model vocabulary = the student's.
        dtype: of the head's matrix products; None takes the hidden states' own.
        chunk: positions held at once; None lets head_loss choose.
        tail_shape: what `full` rebuilds the tail from.
    """

    def __init__(
        self,
        *,
        form: str | Divergence = "bucket",
        temperature: float = 1.0,
        kd_weight: float = 1.0,
        ce_weight: float = 0.0,
        vocab_size: int,
        dtype: torch.dtype | None = None,
        chunk: int | None = None,
        tail_shape: TailShape | None = None,
    ) -> None:
        self.divergence = FORMS[form] if isinstance(form, str) else form
        self.temperature, self.kd_weight, self.ce_weight = temperature, kd_weight, ce_weight
        self.vocab_size, self.dtype, self.chunk, self.tail_shape = vocab_size, dtype, chunk, tail_shape
        self._scratch = Scratch()

    def __call__(self, hidden_ND: Tensor, weight_VD: Tensor, record: Positions, *, scoring: bool = False) -> LossTerms:
        """Sums over the positions. `scoring` also computes what training can do without: agreement, kd at weight 0."""
        assert len(weight_VD) == self.vocab_size, (len(weight_VD), self.vocab_size)
        work_dtype = torch.promote_types(hidden_ND.dtype, torch.float32)
        target = None
        if scoring or self.kd_weight > 0:
            if self.tail_shape is not None:
                self.tail_shape = self.tail_shape.like(torch.empty(0, dtype=work_dtype, device=hidden_ND.device))
            target = target_at(record, self.temperature, self.vocab_size, work_dtype, self.tail_shape)
        mix = _Mix(self, record.targets_N, target, scoring, work_dtype)
        sums = head_loss(hidden_ND, weight_VD, mix, scratch=self._scratch, dtype=self.dtype, chunk=self.chunk)
        kd, ce, agreement = sums[1:].detach()
        return LossTerms(sums[0], kd, ce, agreement, len(hidden_ND))

    def free(self) -> None:
        """Give the work buffers back."""
        self._scratch = Scratch()


class _Mix:
    """head_loss.Objective: both terms of one block, each through its own buffer, added with their weights."""

    def __init__(
        self, loss: DistillationLoss, targets_N: Tensor, target: Target | None, scoring: bool, dtype: torch.dtype
    ) -> None:
        self._loss, self._targets_N, self._target, self._scoring = loss, targets_N, target, scoring
        self._sums = torch.zeros(4, dtype=torch.float64, device=targets_N.device)
        self._like = torch.empty(0, dtype=dtype, device=targets_N.device)

    def sums(self) -> Tensor:
        loss = self._loss
        kd, ce = self._sums[1], self._sums[2]
        self._sums[0] = loss.kd_weight * loss.temperature**2 * kd + loss.ce_weight * ce
        return self._sums.to(self._like.dtype)

    def block(self, logits_nV: Tensor, start: int, gradient: bool, scratch: Scratch) -> None:
        loss, stop = self._loss, start + len(logits_nV)
        z_nV = scratch.take("logits of the block", logits_nV.shape, self._like).copy_(logits_nV)
        y_nV = None
        if self._target is not None:
            rows = self._target.rows(start, stop)
            if self._scoring:
                self._sums[3] += (z_nV.argmax(1) == rows.head_ids_NK[:, 0]).sum()
            y_nV = torch.mul(z_nV, rows.beta, out=scratch.take("scaled logits", z_nV.shape, z_nV))
            self._sums[1] += loss.divergence(y_nV, rows, scratch).sum()
        self._sums[2] += cross_entropy(z_nV, self._targets_N[start:stop], loss.ce_weight, gradient).sum()
        if gradient:
            if y_nV is not None:  # d/dz = (1/T) d/dy, times T^2
                z_nV.add_(y_nV, alpha=loss.kd_weight * loss.temperature)
            logits_nV.copy_(z_nV)


def cross_entropy(z_nV: Tensor, targets_n: Tensor, weight: float, gradient: bool) -> Tensor:
    """-log softmax(z)[target] of each position; when asked, z is overwritten with weight * its gradient."""
    gold_n = z_nV.gather(1, targets_n[:, None]).squeeze(1)
    peak_n1 = z_nV.amax(1, keepdim=True)
    sum_n1 = z_nV.sub_(peak_n1).exp_().sum(1, keepdim=True)
    loss_n = (peak_n1 + sum_n1.log()).squeeze(1) - gold_n
    if gradient:
        z_nV.mul_(weight / sum_n1)
        z_nV.scatter_add_(1, targets_n[:, None], z_nV.new_full((len(z_nV), 1), -weight))
    return loss_n
