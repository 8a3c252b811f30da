"""How far the student is from the cached teacher at one temperature, and which way down: one function a divergence.

Each takes a block of scaled student logits and the teacher's record of the same positions, returns the divergence of every
position in nats, and leaves its gradient in the block. So a further divergence is one more function here and one more line in
`FORMS`; nothing in head_loss.py changes.

Not for cross-entropy, weights or the T^2 factor (loss.py), nor for the head's matrix products (head_loss.py).
Shapes: n positions in the block, V vocabulary, K head entries (padded), R coordinates of the tail's shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stage2_student.scratch import Scratch

_INF = float("inf")


@dataclass(frozen=True, slots=True)
class TailShape:
    """What rebuilds the tail's logits, once per cache: z_V = mean_V + c_R @ basis_RV (DESIGN section 4)."""

    mean_V: Tensor
    basis_RV: Tensor

    def like(self, tensor: Tensor) -> TailShape:
        """The same on the tensor's device and in its dtype; itself where nothing changes."""
        mean_V, basis_RV = self.mean_V.to(tensor), self.basis_RV.to(tensor)
        return self if mean_V is self.mean_V else TailShape(mean_V, basis_RV)


@dataclass(frozen=True, slots=True)
class Target:
    """The teacher at temperature T, p_T: exact on the head, its total mass on the tail.

    Attributes:
        head_ids_NK: int64; padding repeats the row's first id, so that a scatter never touches a foreign token.
        valid_NK: bool, False on padding.
        log_head_NK: log p_T of the head, -inf on padding.
        log_tail_N: log of p_T's mass outside the head; -inf where the head is the whole vocabulary.
        coords_NR: the tail's coordinates; R = 0 where the cache keeps none.
        beta: 1 / T.
        shape: the cache's tail shape, only where coordinates exist.
    """

    head_ids_NK: Tensor
    valid_NK: Tensor
    log_head_NK: Tensor
    log_tail_N: Tensor
    coords_NR: Tensor
    beta: float
    shape: TailShape | None = None

    def rows(self, start: int, stop: int) -> Target:
        """The same record for positions start..stop (views, nothing is copied)."""
        part = slice(start, stop)
        return Target(
            self.head_ids_NK[part],
            self.valid_NK[part],
            self.log_head_NK[part],
            self.log_tail_N[part],
            self.coords_NR[part],
            self.beta,
            self.shape,
        )


Divergence = Callable[[Tensor, Target, Scratch], Tensor]
"""(y_nV, target, scratch) -> divergence_n. y_nV holds student logits / T and is overwritten with d divergence / d y."""


def _times(mass: Tensor, log_ratio: Tensor) -> Tensor:
    """mass * log_ratio, with 0 * anything = 0 (a term of a KL whose p is 0)."""
    return torch.where(mass > 0, mass * log_ratio, 0.0)


def _exp_sum(y_nV: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite y with exp(y - peak); give the row sums and log sum exp. A row of -inf alone gives 0 and -inf."""
    peak_n1 = y_nV.amax(1, keepdim=True).clamp_min_(torch.finfo(y_nV.dtype).min)
    sum_n = y_nV.sub_(peak_n1).exp_().sum(1)
    return sum_n, peak_n1.squeeze(1) + sum_n.log()


def _take_head(y_nV: Tensor, target: Target) -> Tensor:
    """The head's scaled logits, -inf on padding."""
    return y_nV.gather(1, target.head_ids_NK).masked_fill_(~target.valid_NK, -_INF)


def bucket(y_nV: Tensor, target: Target, scratch: Scratch) -> Tensor:
    """KL(p_T || q_T) over head + one cell for all the rest; a lower bound of the full KL.

    The head is taken out before the sum, so the tail's mass is a sum of its own terms (never 1 - sum, which cancels), around
    its own peak (so a confident student's tail does not underflow).
    Gradient: q - p on the head, q_j * (1 - p_tail / q_tail) on the tail (DESIGN section 4).
    """
    head_nK = _take_head(y_nV, target)
    y_nV.scatter_(1, target.head_ids_NK, -_INF)
    sum_n, log_tail_n = _exp_sum(y_nV)
    log_z_n = torch.logaddexp(head_nK.logsumexp(1), log_tail_n)
    log_q_nK, log_q_tail_n = head_nK - log_z_n[:, None], log_tail_n - log_z_n
    p_nK, p_tail_n = target.log_head_NK.exp(), target.log_tail_N.exp()
    slope_n = torch.where(sum_n > 0, (log_q_tail_n.exp() - p_tail_n) / sum_n, 0.0)
    y_nV.mul_(slope_n[:, None])
    y_nV.scatter_add_(1, target.head_ids_NK, log_q_nK.exp() - p_nK)
    return _times(p_nK, target.log_head_NK - log_q_nK).sum(1) + _times(p_tail_n, target.log_tail_N - log_q_tail_n)


def renormalised(y_nV: Tensor, target: Target, scratch: Scratch) -> Tensor:
    """KL(p' || q_T) with p' = the head scaled up to mass 1 and nothing outside it. For comparison only.

    This is what plain top-k caches train on; it teaches the student that the tail is impossible (Anshumann et al., ACL 2025,
    arXiv 2503.16870). Gradient: q - p'.
    """
    head_nK = _take_head(y_nV, target)
    sum_n, log_z_n = _exp_sum(y_nV)
    log_p_nK = target.log_head_NK - target.log_head_NK.logsumexp(1, keepdim=True)
    p_nK = log_p_nK.exp()
    y_nV.mul_(sum_n.reciprocal()[:, None])
    y_nV.scatter_add_(1, target.head_ids_NK, -p_nK)
    return _times(p_nK, log_p_nK - (head_nK - log_z_n[:, None])).sum(1)


def full(y_nV: Tensor, target: Target, scratch: Scratch) -> Tensor:
    """KL(p_T || q_T) over the whole vocabulary, the teacher's tail rebuilt here from its coordinates.

    Head exact; tail logits mean + c @ basis, shifted so that their mass is the stored one. Gradient: q - p.
    """
    assert target.shape is not None, "the cache keeps no tail shape"
    head_nK = _take_head(y_nV, target)
    log_p_nV = _rebuilt_log_tail(target, scratch.take("tail log p", y_nV.shape, y_nV))
    p_nV = torch.exp(log_p_nV, out=scratch.take("tail p", y_nV.shape, y_nV))
    # On the head p_nV is 0 and log_p_nV is -inf; 0 * 0 there keeps the product a number.
    log_p_nV.scatter_(1, target.head_ids_NK, 0.0)
    tail_n = log_p_nV.sub_(y_nV).mul_(p_nV).sum(1)
    sum_n, log_z_n = _exp_sum(y_nV)
    p_nK = target.log_head_NK.exp()
    y_nV.mul_(sum_n.reciprocal()[:, None]).sub_(p_nV)
    y_nV.scatter_add_(1, target.head_ids_NK, -p_nK)
    head_n = _times(p_nK, target.log_head_NK - head_nK).sum(1)
    return head_n + tail_n + log_z_n  # sum p = 1, so the student's log Z counts once


def _rebuilt_log_tail(target: Target, out_nV: Tensor) -> Tensor:
    """log p_T on the tail, -inf on the head, written into out_nV."""
    assert target.shape is not None
    torch.addmm(
        target.shape.mean_V, target.coords_NR, target.shape.basis_RV, beta=target.beta, alpha=target.beta, out=out_nV
    )
    out_nV.scatter_(1, target.head_ids_NK, -_INF)
    shift_n = target.log_tail_N - out_nV.logsumexp(1)
    return out_nV.add_(torch.nan_to_num(shift_n, nan=0.0)[:, None])  # nan: no tail at all, -inf - -inf


FORMS: dict[str, Divergence] = {"full": full, "bucket": bucket, "renormalised": renormalised}
"""What a config may name."""
