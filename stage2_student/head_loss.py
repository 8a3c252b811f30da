"""From hidden states to a loss through the student's head, without ever holding all logits in float32.

The forward pass walks over chunks of positions: one matrix product gives the chunk's logits, an objective turns them in place
into d loss / d logits, two more products give the gradients of hidden states and head. So loss and gradient need one pass over
the head, and the backward pass only scales what is already there.

Not for what the loss is: an `Objective` (loss.py) says that, block by block.
Shapes: N positions that count, D width, V vocabulary, n positions of a chunk or block.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from stage2_student.scratch import Scratch

BLOCK_BYTES = 4 << 20  # float32 work per block and thread: small enough for a CPU's cache, large enough to thread well
GPU_BLOCK_BYTES = 256 << 20  # on a GPU a block is only a bound on memory; large ones keep it busy


class Objective(Protocol):
    """What the loss is. One object serves one call."""

    def block(self, logits_nV: Tensor, start: int, gradient: bool, scratch: Scratch) -> None:
        """Add the loss of positions start.. to the sums; when asked, overwrite the logits with the loss's gradient."""

    def sums(self) -> Tensor:
        """[S], sums over all positions seen; the first is the loss."""


def head_loss(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    objective: Objective,
    *,
    scratch: Scratch,
    dtype: torch.dtype | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The objective's sums over all positions; the first is differentiable towards hidden states and head, once.

    Args:
        hidden_ND: the student's last hidden states, only at positions that count.
        weight_VD: the student's output embedding.
        objective: the loss.
        scratch: buffers that live across steps.
        dtype: of the matrix products and the stored logits (bfloat16 in mixed precision); hidden's own by default.
        chunk: positions held at once; by default as many as fill the memory of the head's own gradient.
    """
    gradient = torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_VD.requires_grad)
    dtype = dtype or hidden_ND.dtype
    chunk = chunk or default_chunk(weight_VD, dtype)
    sums: Tensor = _HeadLoss.apply(  # type: ignore[no-untyped-call]
        hidden_ND, weight_VD, objective, scratch, dtype, chunk, gradient
    )
    return sums


def default_chunk(weight_VD: Tensor, dtype: torch.dtype) -> int:
    """Positions whose logits take as many bytes as the head's gradient in float32, at least 256."""
    return max(256, weight_VD.shape[1] * 4 // dtype.itemsize)


def block_rows(logits_nV: Tensor) -> int:
    """Positions worked on at once in float32."""
    budget = GPU_BLOCK_BYTES if logits_nV.is_cuda else BLOCK_BYTES * torch.get_num_threads()
    return max(1, budget // (4 * logits_nV.shape[1]))


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        objective: Objective,
        scratch: Scratch,
        dtype: torch.dtype,
        chunk: int,
        gradient: bool,
    ) -> Tensor:
        hidden_low_ND, weight_low_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
        count = len(hidden_ND)
        head = ctx.needs_input_grad[1]  # not where adapters alone are trained
        grads = _Gradients(hidden_low_ND, weight_low_VD, single=count <= chunk, head=head) if gradient else None
        for start in range(0, count, chunk):
            rows_nD = hidden_low_ND[start : start + chunk]
            logits_nV = scratch.take("logits", (len(rows_nD), len(weight_VD)), weight_low_VD)
            torch.mm(rows_nD, weight_low_VD.T, out=logits_nV)
            _in_blocks(objective, logits_nV, start, gradient, scratch)
            if grads is not None:
                grads.add(logits_nV, start, scratch)
        if grads is not None:
            ctx.save_for_backward(grads.hidden_ND, grads.weight_VD)
            ctx.dtypes = hidden_ND.dtype, weight_VD.dtype
        return objective.sums()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0][0]
        hidden_ND, weight_VD = ctx.saved_tensors
        hidden_dtype, weight_dtype = ctx.dtypes
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = hidden_ND.to(hidden_dtype) * scale.to(hidden_dtype) if needs_hidden else None
        grad_weight = weight_VD.to(weight_dtype, copy=True).mul_(scale.to(weight_dtype)) if needs_weight else None
        return grad_hidden, grad_weight, None, None, None, None, None


def _in_blocks(objective: Objective, logits_nV: Tensor, start: int, gradient: bool, scratch: Scratch) -> None:
    rows = block_rows(logits_nV)
    for first in range(0, len(logits_nV), rows):
        objective.block(logits_nV[first : first + rows], start + first, gradient, scratch)


class _Gradients:
    """The two gradients as they grow, chunk by chunk; the head's only where it is wanted.

    With one chunk the head's gradient is a single product and keeps its dtype; with several it is summed in float32, since
    sums in bfloat16 lose what small chunks add.
    """

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, *, single: bool, head: bool) -> None:
        self._hidden_in_ND, self._weight_in_VD, self._single = hidden_ND, weight_VD, single
        self.hidden_ND = torch.empty_like(hidden_ND)
        sum_dtype = weight_VD.dtype if single else torch.promote_types(weight_VD.dtype, torch.float32)
        self.weight_VD = torch.zeros_like(weight_VD, dtype=sum_dtype) if head else None

    def add(self, grad_logits_nV: Tensor, start: int, scratch: Scratch) -> None:
        stop = start + len(grad_logits_nV)
        torch.mm(grad_logits_nV, self._weight_in_VD, out=self.hidden_ND[start:stop])
        if self.weight_VD is None:
            return
        rows_nD = self._hidden_in_ND[start:stop]
        if self._single:
            torch.mm(grad_logits_nV.T, rows_nD, out=self.weight_VD)
        else:
            part_VD = scratch.take("head gradient", self._weight_in_VD.shape, self._weight_in_VD)
            self.weight_VD.add_(torch.mm(grad_logits_nV.T, rows_nD, out=part_VD))
