"""A fitted tail's shape as one file: for going on after a crash, and for parts on machines of different kinds.

Two kinds of card add numbers up in different orders, so a shape fitted twice is not the same bytes; all parts of a cache must
share one. The cache's own basis.h5 is what readers need; to make coordinates, the mean and the directions of the hidden
states are needed too. Safetensors, no pickle. Not for fitting (shape.py).
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from cache.basis import read_basis, to_bytes
from cache.manifest import canonical
from cache.shape import BASIS, Basis, TailShape
from cache.writer import differences
from shared.errors import UsageError
from stage1_teacher.shape import Projection

KEPT = "shape.safetensors"  # in a capture's work folder
_FACTS = "facts"


def require_shape_file(given: Path | None) -> None:
    """What --shape names must be there, before a teacher is opened for it.

    Raises:
        UsageError: it is not.
    """
    if given is not None and not given.is_file():
        do = "write it with `python -m stage1_teacher fit CONFIG --out FILE`"
        raise UsageError(f"--shape {given}", expected="a file", got="none", do=do)


@lru_cache(maxsize=2)
def basis_bytes(basis: Basis) -> bytes:
    """The cache's basis.h5; kept, since it takes seconds to compress."""
    return to_bytes(basis)


def describe(projection: Projection, sample_windows: int) -> TailShape:
    """What the manifest says of it."""
    raw = basis_bytes(projection.basis)
    return TailShape(
        directions=projection.directions_DR.shape[1],
        step=projection.step,
        sample_windows=sample_windows,
        explained=float(f"{projection.explained:.8g}"),  # see fidelity.rounded
        bytes=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def shape_bytes(projection: Projection, sample_windows: int, fitted_for: dict[str, Any]) -> bytes:
    """The file: with the facts it was fitted for (teacher, corpus, settings) and a digest of all of it."""
    tensors = {
        "mean": projection.mean_D.cpu().contiguous(),
        "directions": projection.directions_DR.cpu().contiguous(),
        "basis": _as_tensor(basis_bytes(projection.basis)),
    }
    shape = describe(projection, sample_windows).model_dump(mode="json")
    facts = {"fitted_for": fitted_for, "shape": shape, "wide": projection.wide}
    tensors[_FACTS] = _as_tensor(canonical({**facts, "digest": _digest(tensors, facts)}).encode())
    raw: bytes = save_tensors(tensors)
    return raw


def parse_shape(raw: bytes, what: str, fitted_for: dict[str, Any], vocab_size: int, device: torch.device) -> Projection:
    """A shape that was fitted for exactly this.

    Args:
        raw: the file's bytes; `what` is what an error calls them.
        device: where coordinates are computed.
    Raises:
        UsageError: damaged, or fitted for something else; names the first differing fact.
        RunError: its basis is hostile or damaged.
    """
    tensors, facts = _read(raw, what)
    if rows := differences(facts["fitted_for"], json.loads(canonical(fitted_for))):
        key, was, now = rows[0]
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        raise UsageError(f"{what}, {key}{more}", expected=str(now), got=str(was), do="fit it with this very config")
    shape = facts["shape"]
    basis = _basis(tensors["basis"], shape, vocab_size)
    mean_D, directions_DR = (tensors[name].clone().to(device) for name in ("mean", "directions"))
    return Projection(mean_D, directions_DR, basis, shape.step, tuple(facts["wide"]), shape.explained)


def is_for(raw: bytes, what: str, fitted_for: dict[str, Any]) -> bool:
    """Whether it was fitted for exactly this.

    Raises:
        UsageError: damaged.
    """
    return bool(canonical(_read(raw, what)[1]["fitted_for"]) == canonical(fitted_for))


def _read(raw: bytes, what: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        tensors = load_tensors(raw)
        facts: dict[str, Any] = json.loads(tensors.pop(_FACTS).numpy().tobytes())
        digest = facts.pop("digest")
        same = digest == _digest(tensors, facts)
        facts = {
            "shape": TailShape.model_validate(facts["shape"]),
            **{name: facts[name] for name in ("fitted_for", "wide")},
        }
    except (SafetensorError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _damaged(what, str(error)) from None
    if not same:
        raise _damaged(what, "other bytes than were written")
    return tensors, facts


def _damaged(what: str, got: str) -> UsageError:
    do = "delete it and fit again: `python -m stage1_teacher fit CONFIG --out FILE`"
    return UsageError(what, expected="a tail's shape as `fit` wrote it", got=got, do=do)


def _digest(tensors: dict[str, Tensor], facts: dict[str, Any]) -> str:
    digest = hashlib.sha256(canonical(facts).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _as_tensor(raw: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(raw, np.uint8).copy())


def _basis(raw: Tensor, shape: TailShape, vocab_size: int) -> Basis:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, BASIS).write_bytes(raw.numpy().tobytes())
        return read_basis(Path(folder), shape, vocab_size)
