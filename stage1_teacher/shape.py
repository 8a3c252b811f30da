"""Fit the tail's shape: the few directions of the teacher's hidden states that move its beliefs on this corpus.

Done once, on a sample, before the capture; the result is stored in the cache. Logits are W h. An error e in the
hidden state costs, to second order, KL = e^T F e / 2 nats, with F the Fisher information of the tail at that position
(the head is stored exactly):
    F = sum_tail p_v W_v W_v^T - mu mu^T / m,   mu = sum_tail p_v W_v,   m = tail mass, each at temperature T with a
    factor 1 / T^2.
Its mean G over sampled positions and the temperatures people train at is the metric. With hidden states of mean m and
covariance C, the best R directions are the leading eigenvectors of G^1/2 C G^1/2 (principal components in that
metric); coordinates are c = (h - m) P, logits nearly W m + c B, and an error of 1 in a coordinate costs half a nat. A
tenth of the metric is the plain one, every token of the vocabulary alike, for tokens that the sample never made
likely.
Not for storing (cache/shape.py) nor for choosing R and the step (aim.py). A soft-capped head is not linear: see `why_not`.
Shapes: S sampled positions, D width, R directions, V vocabulary, n rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.manifest import Selection
from cache.shape import Basis, predicting, quantise_basis
from shared.errors import UsageError
from stage1_teacher.selection import top_k_mask
from stage1_teacher.teacher import TeacherModel, exact_products

TEMPERATURES = (1.0, 1.5, 2.0)
POSITIONS = 3072  # of the sample, for metric and prediction: beyond these nothing changes
PLAIN = 0.1  # share of the metric that looks at every token alike
SMALLEST = 1e-10  # eigenvalues of G below this share of the largest are directions that no logit sees
ROWS = 128  # positions, or 64 times as many rows of the head, taken to the device's registers at once
NOISE = 2.0  # standard deviation, in steps, from which on the lowest bit of a coordinate is noise


@dataclass(frozen=True)
class Projection:
    """From hidden states to coordinates.

    Attributes:
        mean_D: float32, m.
        directions_DR: float32, P.
        basis: what a reader needs.
        step: of the coordinates.
        wide: how many coordinates, the first ones, have at least one low bit beside their half byte, at least two, ...
        explained: share of the sample's tail information that the R directions hold.
    """

    mean_D: Tensor
    directions_DR: Tensor
    basis: Basis
    step: float
    wide: tuple[int, ...]
    explained: float

    def coordinates(self, hidden_ND: Tensor) -> Tensor:
        """float32 [N, R]."""
        with exact_products("float32"):
            return (hidden_ND.float() - self.mean_D) @ self.directions_DR


@dataclass(frozen=True)
class Spectrum:
    """All directions of a teacher on a corpus, the weightiest first; `project` takes as many as wanted.

    Attributes:
        mean_D: float64, m.
        mean_V: float64, logits of the mean state.
        spread_D: float64, standard deviation of each coordinate: its square over 2 is the KL that leaving it out costs, nats.
        into_DD: float64, columns are directions: c = (h - m) into.
        out_DD: float64, columns bring coordinates back to hidden states.
        weight_V: float64, what an error in each token's logit costs.
        coords_SD: float64, of the sampled positions.
        last_S: int64, the token each of these has seen last.
        best_S: int64, the token the teacher holds most likely there.
    """

    teacher: TeacherModel
    mean_D: Tensor
    mean_V: NDArray[np.float64]
    spread_D: NDArray[np.float64]
    into_DD: Tensor
    out_DD: Tensor
    weight_V: NDArray[np.float64]
    coords_SD: NDArray[np.float64]
    last_S: NDArray[np.int64]
    best_S: NDArray[np.int64]

    def project(self, directions: int, step: float, positions: int) -> Projection:
        """The first `directions` of them, with a basis for a corpus of `positions` and coordinates of `step`.

        Raises:
            UsageError: more directions than the teacher is wide.
        """
        if directions > len(self.spread_D):
            width = f"at most the teacher's width, {len(self.spread_D)}"
            raise UsageError("shape.directions", expected=width, got=str(directions), do="lower it")
        spread_R = self.spread_D[:directions]
        out_DR = self.out_DD[:, :directions].to(self.teacher.head_weight_VD.device)
        blocks = torch.split(self.teacher.head_weight_VD, ROWS * 64)
        basis_RV = torch.cat([rows_nD.double() @ out_DR for rows_nD in blocks]).T.cpu().numpy()
        basis = quantise_basis(
            self.mean_V, basis_RV, spread_R=spread_R, weight_V=self.weight_V, step=step, positions=positions
        )
        basis = predicting(basis, self.coords_SD[:, :directions], self.last_S, self.best_S)
        missed_SR = self.coords_SD[:, :directions] - basis.prior.coordinates(self.last_S, self.best_S)
        wide = _wide(missed_SR.std(axis=0) / step)
        explained = float((spread_R**2).sum() / (self.spread_D**2).sum())
        into_DR = self.into_DD[:, :directions].float()
        return Projection(self.mean_D.float(), into_DR, basis, step, wide, min(explained, 1.0))


def _wide(steps_R: NDArray[np.float64]) -> tuple[int, ...]:
    """Encoding.wide for coordinates of these standard deviations, in steps: the rest above low bits spreads by NOISE."""
    widest_R = np.maximum.accumulate(steps_R[::-1])[::-1]
    bits_R = np.ceil(np.log2(np.maximum(widest_R / NOISE, 1))).clip(max=12)
    return tuple(int((bits_R >= bits).sum()) for bits in range(1, int(bits_R.max()) + 1))


def why_not(teacher: TeacherModel) -> str:
    """Why this teacher's tail can have no shape, in a sentence; empty where it can."""
    if teacher.softcap is not None:
        return f"its logits are soft-capped at {teacher.softcap:g}, so they are not linear in the hidden state"
    return ""


@torch.inference_mode()
def analyse(teacher: TeacherModel, hidden_SD: Tensor, last_S: Tensor, selection: Selection) -> Spectrum:
    """All directions for this sample; the same numbers for the same input on the same machine.

    Args:
        hidden_SD: last hidden states of sampled positions, on the head's device.
        last_S: int64, the token each of these has seen last.
        selection: what the head will keep; the shape serves the rest.
    """
    every = max(1, len(hidden_SD) // POSITIONS)
    few_SD, few_S = hidden_SD[::every][:POSITIONS], last_S[::every][:POSITIONS]
    metric_DD, weight_V, best_S = _metric(teacher, few_SD, selection)
    root_DD, inverse_DD = _roots(metric_DD)
    states_SD = hidden_SD.double()
    mean_D = states_SD.mean(dim=0)
    values_D, vectors_DD = torch.linalg.eigh(root_DD @ torch.cov(states_SD.T) @ root_DD)
    chosen_DD = _signed(vectors_DD.flip(1))
    mean_V = torch.cat([rows_nD.double() @ mean_D for rows_nD in torch.split(teacher.head_weight_VD, ROWS * 64)])
    if teacher.head_bias_V is not None:
        mean_V += teacher.head_bias_V
    into_DD = root_DD @ chosen_DD
    return Spectrum(
        teacher,
        mean_D,
        mean_V.cpu().numpy(),
        values_D.flip(0).clamp_min(0).sqrt().cpu().numpy(),
        into_DD,
        inverse_DD @ chosen_DD,
        weight_V.cpu().numpy(),
        ((few_SD.double() - mean_D) @ into_DD).cpu().numpy(),
        few_S.cpu().numpy(),
        best_S.cpu().numpy(),
    )


def fit(
    teacher: TeacherModel,
    hidden_SD: Tensor,
    last_S: Tensor,
    directions: int,
    *,
    selection: Selection,
    step: float,
    positions: int,
) -> Projection:
    """`analyse` and `project` at once."""
    return analyse(teacher, hidden_SD, last_S, selection).project(directions, step, positions)


def _metric(teacher: TeacherModel, sample_SD: Tensor, selection: Selection) -> tuple[Tensor, Tensor, Tensor]:
    """(G float64 [D, D]; mean over sample and temperatures of p_T / T^2 in the tail, float64 [V]; most likely ids [S])."""
    weight_VD = teacher.head_weight_VD.float()
    best: list[Tensor] = []
    mass_V = torch.zeros(len(weight_VD), dtype=torch.float64, device=weight_VD.device)
    means: list[Tensor] = []
    for hidden_nD in torch.split(sample_SD, ROWS):
        logits_nV = torch.empty(len(hidden_nD), len(weight_VD), device=weight_VD.device)
        teacher.logits(hidden_nD.to(weight_VD.dtype), logits_nV)
        best.append(logits_nV.argmax(dim=1))
        head_nV = top_k_mask(logits_nV, selection)
        for temperature in TEMPERATURES:
            tail_nV = (logits_nV / temperature).softmax(dim=1).masked_fill_(head_nV, 0) / temperature**2
            mass_V += tail_nV.sum(dim=0, dtype=torch.float64)
            weight_n1 = tail_nV.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
            with exact_products("float32"):  # whatever this process chose: the basis's hash must not depend on it
                means.append((tail_nV @ weight_VD) / weight_n1.sqrt())
    count = len(sample_SD) * len(TEMPERATURES)
    mean_MD = torch.cat(means).double()
    fisher_DD = (_weighted(weight_VD, mass_V) - mean_MD.T @ mean_MD) / count
    even_V = torch.full_like(mass_V, 1 / len(mass_V))
    centre_D = weight_VD.mean(dim=0, dtype=torch.float64)
    plain_DD = _weighted(weight_VD, even_V) - torch.outer(centre_D, centre_D)
    scale = fisher_DD.trace() / plain_DD.trace()
    return (1 - PLAIN) * fisher_DD + PLAIN * scale * plain_DD, mass_V / count, torch.cat(best)


def _weighted(weight_VD: Tensor, mass_V: Tensor) -> Tensor:
    """sum_v mass_v W_v W_v^T, float64 [D, D], a few thousand rows at a time."""
    blocks = zip(torch.split(weight_VD, ROWS * 64), torch.split(mass_V, ROWS * 64), strict=True)
    total_DD = torch.zeros(weight_VD.shape[1], weight_VD.shape[1], dtype=torch.float64, device=weight_VD.device)
    for rows_nD, mass_n in blocks:
        total_DD += (rows_nD.double() * mass_n[:, None]).T @ rows_nD.double()
    return total_DD


def _roots(metric_DD: Tensor) -> tuple[Tensor, Tensor]:
    """G^1/2 and its inverse."""
    values_D, vectors_DD = torch.linalg.eigh(metric_DD)
    values_D = values_D.clamp_min(float(values_D.max()) * SMALLEST)
    return (vectors_DD * values_D.sqrt()) @ vectors_DD.T, (vectors_DD * values_D.rsqrt()) @ vectors_DD.T


def _signed(vectors_DD: Tensor) -> Tensor:
    """Eigenvectors are known up to sign: make the largest entry of each positive."""
    peak_1D = vectors_DD.abs().argmax(dim=0, keepdim=True)
    return vectors_DD * vectors_DD.gather(0, peak_1D).sign()
