"""The tail's shape: once per cache, what turns a position's few coordinates into logits of the whole vocabulary.

Logits are linear in the last hidden state, and the states of one corpus live near few directions, so
z_V = mean_V + c_R @ basis_RV rebuilds them nearly (DESIGN section 4). Coordinates are in units in which an error of 1 in
any of them is a root-mean-square error of 1 nat over the vocabulary's logits; so one step size serves all.
Not for fitting the basis (stage1_teacher/shape.py) nor for the loss that uses it (stage2_student/divergences.py).
Shapes: V vocabulary, R directions.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from shared.config import StrictModel
from shared.errors import RunError

BASIS = "basis.safetensors"
MAX_HEADER_BYTES = 4096  # three tensors and their names


class TailShape(StrictModel):
    """What the manifest says of the tail's shape."""

    directions: int = Field(description="R, coordinates a position", ge=1, le=1024)
    step: float = Field(description="nats (root-mean-square over the logits) a code", gt=0, le=1)
    sample_windows: int = Field(description="windows of the corpus the basis was fitted on", ge=1)
    explained: float = Field(description="share of the logits' variance on those that R directions hold", ge=0, le=1)
    bytes: int = Field(description="size of basis.safetensors", ge=1)
    sha256: str = Field(description="of basis.safetensors", pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class Basis:
    """The stored basis, as integers: a reader multiplies, a hash never changes.

    Attributes:
        mean_V: float32, the mean logits.
        codes_RV: int8.
        scale_R: float32; basis_RV = codes_RV * scale_R[:, None].
    """

    mean_V: NDArray[np.float32]
    codes_RV: NDArray[np.int8]
    scale_R: NDArray[np.float32]

    def basis(self) -> NDArray[np.float32]:
        """float32 [R, V]."""
        basis_RV: NDArray[np.float32] = self.codes_RV * self.scale_R[:, None]
        return basis_RV

    def to_bytes(self) -> bytes:
        """The safetensors file."""
        from safetensors.numpy import save

        tensors: dict[str, NDArray[np.generic]] = {"mean": self.mean_V, "codes": self.codes_RV, "scale": self.scale_R}
        raw: bytes = save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
        return raw


def quantise_basis(mean_V: NDArray[np.floating], basis_RV: NDArray[np.floating]) -> Basis:
    """Eight bits an entry, one scale a direction: half the bytes of float16, and no loss that KL shows."""
    scale_R = np.abs(basis_RV).max(axis=1).astype(np.float32) / 127
    scale_R[scale_R == 0] = 1.0
    codes_RV = np.rint(basis_RV / scale_R[:, None]).astype(np.int8)
    return Basis(mean_V.astype(np.float32), codes_RV, scale_R)


def read_basis(directory: Path, shape: TailShape, vocab_size: int) -> Basis:
    """Open a cache's basis and check it against the manifest.

    Raises:
        RunError: missing, of another size or hash, or with other tensors than a basis has.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = directory / BASIS
    remedy = "run `python -m cache verify` on the cache and get the files it names again"
    largest = vocab_size * (shape.directions + 4) + 4 * shape.directions + MAX_HEADER_BYTES
    if path.is_symlink() or not path.is_file() or path.stat().st_size != shape.bytes or shape.bytes > largest:
        got = "none, a link, or another size"
        raise RunError(f"{path}", expected=f"a file of {min(shape.bytes, largest)} bytes", got=got, do=remedy)
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != shape.sha256:
        raise RunError(f"{path}", expected=f"sha256 {shape.sha256[:12]}...", got="another", do=remedy)
    try:
        tensors = load(raw)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:  # a type that numpy does not have is a KeyError
        raise RunError(f"{path}", expected="a safetensors file", got=str(error), do=remedy) from None
    expected = {"mean": ((vocab_size,), "float32"), "codes": ((shape.directions, vocab_size), "int8"),
                "scale": ((shape.directions,), "float32")}  # fmt: skip
    found = {name: (array.shape, str(array.dtype)) for name, array in tensors.items()}
    if found != expected or not all(np.isfinite(tensors[name]).all() for name in ("mean", "scale")):
        raise RunError(
            f"{path}", expected="tensors mean, codes and scale of the manifest's size", got="others", do=remedy
        )
    return Basis(tensors["mean"], tensors["codes"], tensors["scale"])
