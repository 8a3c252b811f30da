"""Fit the tail's shape: the few directions of the teacher's hidden states that move its logits on this corpus.

Done once, on a sample, before the capture; the result is stored in the cache. With hidden states h of mean m and covariance
C, and the metric G = (W - mean W)^T (W - mean W) / V, in which a state's length is the root mean square of its logits (up to
the constant that softmax ignores), the best R directions are the leading eigenvectors of G^1/2 C G^1/2 (principal components in
that metric). A state's coordinates are c = (h - m) P, its logits nearly W m + c B.
Not for storing (cache/shape.py). A soft-capped head is not linear, so there this refuses.
Shapes: S sampled positions, D width, R directions, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cache.shape import Basis, quantise_basis
from shared.errors import UsageError
from stage1_teacher.teacher import TeacherModel

SMALLEST = 1e-10  # eigenvalues of G below this share of the largest are directions that no logit sees
ROWS = 8192  # rows of the head taken to float64 at once


@dataclass(frozen=True)
class Projection:
    """From hidden states to coordinates.

    Attributes:
        mean_D: float32, m.
        directions_DR: float32, P.
        basis: what a reader needs.
        explained: share of the sample's logit variance that the R directions hold.
    """

    mean_D: Tensor
    directions_DR: Tensor
    basis: Basis
    explained: float

    def coordinates(self, hidden_ND: Tensor) -> Tensor:
        """float32 [N, R]."""
        return (hidden_ND.float() - self.mean_D) @ self.directions_DR


def require_linear(teacher: TeacherModel) -> None:
    """Raises UsageError for a teacher whose logits are not linear in its hidden state."""
    if teacher.softcap is not None:
        raise UsageError(
            f"teacher {teacher.facts.id}",
            expected="logits linear in the hidden state, which the tail's shape needs",
            got=f"logits soft-capped at {teacher.softcap:g}",
            do="set shape: null to keep the tail's mass alone",
        )


def fit(teacher: TeacherModel, hidden_SD: Tensor, directions: int) -> Projection:
    """The best `directions` directions for this sample; the same bytes for the same input on the same machine.

    Args:
        hidden_SD: last hidden states of sampled positions, on the head's device.
        directions: R, at most D.
    Raises:
        UsageError: more directions than the teacher is wide.
    """
    if directions > hidden_SD.shape[1]:
        width = f"at most the teacher's width, {hidden_SD.shape[1]}"
        raise UsageError("shape.directions", expected=width, got=str(directions), do="lower it")
    weight_VD = teacher.head_weight_VD
    root_DD, inverse_DD = _roots(_metric(weight_VD))
    states_SD = hidden_SD.double()
    mean_D = states_SD.mean(dim=0)
    covariance_DD = torch.cov(states_SD.T)
    values_D, vectors_DD = torch.linalg.eigh(root_DD @ covariance_DD @ root_DD)
    chosen_DR = _signed(vectors_DD.flip(1)[:, :directions])
    explained = float(values_D.flip(0)[:directions].clamp_min(0).sum() / values_D.clamp_min(0).sum())
    mean_V = weight_VD.double() @ mean_D
    if teacher.head_bias_V is not None:
        mean_V += teacher.head_bias_V
    basis_RV = (weight_VD.double() @ (inverse_DD @ chosen_DR)).T
    basis = quantise_basis(_numpy(mean_V), _numpy(basis_RV))
    return Projection(mean_D.float(), (root_DD @ chosen_DR).float(), basis, min(explained, 1.0))


def _numpy(tensor: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    return tensor.cpu().numpy()


def _metric(weight_VD: Tensor) -> Tensor:
    """G, float64 [D, D], a few thousand rows at a time."""
    mean_D = weight_VD.mean(dim=0, dtype=torch.float64)
    total_DD = torch.zeros(weight_VD.shape[1], weight_VD.shape[1], dtype=torch.float64, device=weight_VD.device)
    for rows_nD in torch.split(weight_VD, ROWS):
        centred_nD = rows_nD.double() - mean_D
        total_DD += centred_nD.T @ centred_nD
    return total_DD / len(weight_VD)


def _roots(metric_DD: Tensor) -> tuple[Tensor, Tensor]:
    """G^1/2 and its inverse."""
    values_D, vectors_DD = torch.linalg.eigh(metric_DD)
    values_D = values_D.clamp_min(float(values_D.max()) * SMALLEST)
    return (vectors_DD * values_D.sqrt()) @ vectors_DD.T, (vectors_DD * values_D.rsqrt()) @ vectors_DD.T


def _signed(vectors_DR: Tensor) -> Tensor:
    """Eigenvectors are known up to sign: make the largest entry of each positive."""
    peak_1R = vectors_DR.abs().argmax(dim=0, keepdim=True)
    return vectors_DR * vectors_DR.gather(0, peak_1R).sign()
