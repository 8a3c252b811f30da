"""The tail's shape: once per cache, what turns a position's few coordinates into logits of the whole vocabulary.

Logits are linear in the last hidden state, and the states of one corpus live near few directions, so
z_V = mean_V + c_R @ basis_RV rebuilds them nearly (DESIGN section 4). Coordinates are in units in which an error of 1 in
any of them costs half a nat of KL(teacher || rebuilt), to second order and on average; so one step size serves all.

The basis is stored with a step of its own for each token: fine where the teacher puts mass, coarse where it never
does. What an error in a coefficient costs is known (the token's mass times the coordinate's variance), a coordinate
is paid for at every position and the basis once, so the steps follow from one rule (reverse water-filling, Cover and
Thomas, Elements of Information Theory, 10.3.3) and the basis of a small corpus is small, where eight bits an entry
would cost more than all else. Tokens of one class share a centre in every row, from which their entries are counted: the
unlikely ones, most of a vocabulary, lie far from the likely ones and near each other.
Not for fitting the basis (stage1_teacher/shape.py), nor its file (cache/basis.py), nor the loss
(stage2_student/divergences.py).
Shapes: V vocabulary, R directions, A = R + 1 rows: the mean, then the directions; K classes that occur, finest first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from cache.prior import Prior
from shared.config import StrictModel

BASIS = "basis.h5"
LARGEST_STEP = 4.0  # nats; the step of class 0
CLASSES = 64  # each half an octave finer than the one before
TOP_CODE = 32767
MOST_POSITIONS = 1 << 20  # beyond these a finer basis saves nothing: its bytes are lost in the corpus's
RAREST = 1e-3  # a token the sample never saw counts as this share of the mean
RIDGE = 0.01
WEIGHT_STEP = 2.0**-7  # of the weights that predict coordinates, in standard deviations a nat
CENTRE_STEP = 2.0**-3  # of the classes' centres, in steps of the class
CROWD = 64  # tokens a class must have for its centres to be worth their bytes
ZERO = 0.65  # of a step: entries nearer to their centre are stored as 0; it costs less error than it saves bytes


class TailShape(StrictModel):
    """What the manifest says of the tail's shape."""

    directions: int = Field(description="R, coordinates a position", ge=1, le=1024)
    step: float = Field(description="a code, coordinates (an error of 1 is half a nat of KL)", gt=0, le=1)
    sample_windows: int = Field(description="windows of the corpus the basis was fitted on", ge=1)
    explained: float = Field(description="share of the KL of an even tail that R exact coordinates save", ge=0, le=1)
    bytes: int = Field(description="size of the basis file", ge=1)
    sha256: str = Field(description="of the basis file", pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True, eq=False)
class Basis:
    """The stored basis, as integers: a reader multiplies, a hash never changes.

    Attributes:
        codes_AV: int16; row 0 the mean, the others the directions. class_V: uint8 below CLASSES; a token's step is
        LARGEST_STEP * 2^(-class / 2). scale_A: float32; what the steps of a row are multiplied with: 1, then 1 over
        the spread of each coordinate. weights_R2R: int16, in WEIGHT_STEP: from the logits' share of each direction,
        of a position's last token (R) and of its most
            likely next one (R), to the coordinates that they let expect.
    """

    codes_AV: NDArray[np.int16]
    class_V: NDArray[np.uint8]
    scale_A: NDArray[np.float32]
    weights_R2R: NDArray[np.int16]
    centres_AK: NDArray[np.int16]

    @cached_property
    def _shares_AV(self) -> NDArray[np.float32]:
        """Logits of one spread of each coordinate."""
        shares_AV = self.codes_AV.astype(np.float32)
        for column, number in enumerate(classes_of(self.class_V)):
            shares_AV[:, self.class_V == number] += self.centres_AK[:, column, None] * np.float32(CENTRE_STEP)
        shares_AV *= step_of(self.class_V)
        return shares_AV

    @property
    def mean_V(self) -> NDArray[np.float32]:
        """The mean logits, up to a constant that softmax ignores."""
        mean_V: NDArray[np.float32] = self._shares_AV[0]
        return mean_V

    def basis(self) -> NDArray[np.float32]:
        """float32 [R, V]."""
        basis_RV: NDArray[np.float32] = self._shares_AV[1:] * self.scale_A[1:, None]
        return basis_RV

    def order(self) -> NDArray[np.int32]:
        """int32 [V], ids with the finest step first, which are the likely ones; equal ones by number."""
        return np.argsort(-self.class_V.astype(np.int16), kind="stable").astype(np.int32)

    @cached_property
    def prior(self) -> Prior:
        """What shards are stored relative to."""
        weights_R2R = self.weights_R2R * np.float32(WEIGHT_STEP) / self.scale_A[1:, None]
        after_RR, before_RR = np.split(weights_R2R, 2, axis=1)
        shares_VR = self._shares_AV[1:].T
        return Prior(self.order(), shares_VR @ after_RR.T, shares_VR @ before_RR.T)


def classes_of(class_V: NDArray[np.integer]) -> list[int]:
    """The classes that occur, finest first."""
    found: list[int] = np.unique(class_V)[::-1].tolist()
    return found


def step_of(class_V: NDArray[np.integer]) -> NDArray[np.float32]:
    """float32 [V], nats: the step of each class."""
    steps: NDArray[np.float32] = (LARGEST_STEP * 2.0 ** (class_V / -2)).astype(np.float32)
    return steps


def quantise_basis(
    mean_V: NDArray[np.floating],
    basis_RV: NDArray[np.floating],
    *,
    spread_R: NDArray[np.floating],
    weight_V: NDArray[np.floating],
    step: float,
    positions: int,
) -> Basis:
    """Integers with the steps that cost least KL for the bytes.

    An error d in entry (j, v) costs weight_v * spread_j^2 * d^2 / 2 nats a position and its bits are paid once; an
    error d in a coordinate costs d^2 / 2 and its bits are paid at every position. Equal slopes: d_jv = step /
    (spread_j sqrt(positions weight_v)).

    Args:
        spread_R: standard deviation of each coordinate over the corpus.
        weight_V: mean over positions and temperatures of p_T(v) / T^2 in the tail: what an error in a token's logit costs.
        step: of the coordinates.
        positions: of the whole corpus.
    """
    weight_V = weight_V + RAREST * weight_V.mean()
    whole_AV = np.concatenate([mean_V[None], basis_RV * spread_R[:, None]]).astype(np.float64)
    whole_AV -= (whole_AV @ weight_V / weight_V.sum())[:, None]  # a constant that softmax ignores
    wanted_V = step / np.sqrt(min(positions, MOST_POSITIONS) * weight_V)
    wanted_V = np.maximum(wanted_V, np.abs(whole_AV).max(axis=0) / TOP_CODE)
    class_V = np.clip(np.floor(-2 * np.log2(wanted_V / LARGEST_STEP)), 0, CLASSES - 1).astype(np.uint8)
    codes_AV, centres_AK = _around_centres(whole_AV / step_of(class_V), class_V)
    scale_A = np.concatenate([[1.0], 1 / np.maximum(spread_R, 1e-30)]).astype(np.float32)
    return Basis(codes_AV, class_V, scale_A, np.zeros((len(spread_R), 2 * len(spread_R)), np.int16), centres_AK)


def _around_centres(
    steps_AV: NDArray[np.float64], class_V: NDArray[np.uint8]
) -> tuple[NDArray[np.int16], NDArray[np.int16]]:
    """(Codes, centres): what lies near its class's centre becomes 0."""
    classes = classes_of(class_V)
    centres_AK = np.zeros((len(steps_AV), len(classes)), np.int16)
    for column, number in enumerate(classes):
        tokens = class_V == number
        if tokens.sum() >= CROWD:
            centres = np.rint(steps_AV[:, tokens].mean(axis=1) / CENTRE_STEP)
            centres_AK[:, column] = np.clip(centres, -TOP_CODE, TOP_CODE)
            steps_AV[:, tokens] -= centres_AK[:, column, None] * CENTRE_STEP
    codes_AV = np.clip(np.rint(steps_AV), -TOP_CODE, TOP_CODE)
    codes_AV[np.abs(steps_AV) < ZERO] = 0
    return codes_AV.astype(np.int16), centres_AK


def predicting(
    basis: Basis, coords_SR: NDArray[np.floating], last_S: NDArray[np.integer], best_S: NDArray[np.integer]
) -> Basis:
    """The same basis with the weights that predict best, by ridge regression on S sampled positions.

    Args:
        coords_SR: their coordinates.
        last_S: the token each position has seen last.
        best_S: the token its teacher holds most likely.
    """
    shares_VR = basis._shares_AV[1:].T
    known_SX = np.concatenate([shares_VR[last_S], shares_VR[best_S]], axis=1).astype(np.float64)
    wanted_SR = coords_SR * basis.scale_A[1:].astype(np.float64)
    gram_XX = known_SX.T @ known_SX
    gram_XX += np.eye(len(gram_XX)) * (RIDGE * np.trace(gram_XX) / len(gram_XX) + 1e-12)
    weights_R2R = np.linalg.solve(gram_XX, known_SX.T @ wanted_SR).T
    codes_R2R = np.clip(np.rint(weights_R2R / WEIGHT_STEP), -TOP_CODE, TOP_CODE).astype(np.int16)
    return replace(basis, weights_R2R=codes_R2R)
