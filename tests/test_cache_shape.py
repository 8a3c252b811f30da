"""The basis file of a cache that keeps its tail's shape: what is written is read, and nothing else is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from cache_records import BASIS as NO_BASIS
from cache_records import identity, records, write_cache
from safetensors.numpy import save

from cache.shape import BASIS, TailShape, quantise_basis, read_basis
from cache.verify import verify
from shared.errors import RunError

VOCAB, R = 50, 3


def shape_of(raw: bytes, **other: int) -> TailShape:
    facts = {"directions": R, "bytes": len(raw)} | other
    return TailShape(step=0.1, sample_windows=1, explained=0.5, sha256=hashlib.sha256(raw).hexdigest(), **facts)  # type: ignore[arg-type]


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    basis = quantise_basis(rng.normal(size=VOCAB), rng.normal(size=(R, VOCAB)))
    return {"mean": basis.mean_V, "codes": basis.codes_RV, "scale": basis.scale_R}


def refused(directory: Path, raw: bytes, message: str, **other: int) -> None:
    (directory / BASIS).write_bytes(raw)
    with pytest.raises(RunError, match=message) as caught:
        read_basis(directory, shape_of(raw, **other), VOCAB)
    assert "\n" not in str(caught.value)


def test_round_trip_within_half_a_scale(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    mean_V, basis_RV = rng.normal(size=VOCAB), rng.normal(size=(R, VOCAB))
    basis_RV[1] = 0
    stored = quantise_basis(mean_V, basis_RV)
    raw = stored.to_bytes()
    (tmp_path / BASIS).write_bytes(raw)
    back = read_basis(tmp_path, shape_of(raw), VOCAB)
    assert (abs(back.basis() - basis_RV) <= abs(basis_RV).max(1, keepdims=True) / 254 + 1e-6).all()
    np.testing.assert_array_equal(back.mean_V, mean_V.astype(np.float32))
    assert raw == quantise_basis(mean_V, basis_RV).to_bytes()


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    raw = save(tensors())
    for place in range(len(raw)):
        (tmp_path / BASIS).write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(RunError, match=r"basis\.safetensors: expected sha256"):
            read_basis(tmp_path, shape_of(raw), VOCAB)


def test_hostile_files_under_their_own_hash(tmp_path: Path) -> None:
    good = tensors()
    refused(tmp_path, b"not safetensors", "expected a safetensors file")
    refused(tmp_path, b"\xff" * 100, "expected a safetensors file")
    refused(tmp_path, save({**good, "mean": good["mean"].astype(np.float64)}), "tensors mean, codes and scale")
    refused(tmp_path, save({**good, "more": good["mean"]}), "tensors mean, codes and scale|expected a file of")
    refused(tmp_path, save({**good, "mean": np.full(VOCAB, np.nan, np.float32)}), "tensors mean, codes and scale")
    refused(tmp_path, save(good), "tensors mean, codes and scale", directions=R + 1)
    refused(tmp_path, save(good), "expected a file of", bytes=10**9)
    refused(tmp_path, save({**good, "more": np.zeros(10_000)}), "expected a file of")


def test_link_is_refused(tmp_path: Path) -> None:
    raw = save(tensors())
    (tmp_path / "elsewhere").write_bytes(raw)
    (tmp_path / BASIS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="got none, a link, or another size"):
        read_basis(tmp_path, shape_of(raw), VOCAB)


def test_verify_hashes_the_basis_and_opens_it_only_when_asked_to(tmp_path: Path) -> None:
    write_cache(tmp_path / "cache", records(3, directions=R), identity(directions=R))
    assert verify(tmp_path / "cache", "hash") == []
    assert [(problem.shard, problem.kind) for problem in verify(tmp_path / "cache", "deep")] == [(BASIS, "structure")]
    (tmp_path / "cache" / BASIS).write_bytes(NO_BASIS[::-1])
    assert [(problem.shard, problem.kind) for problem in verify(tmp_path / "cache")] == [(BASIS, "hash")]
    (tmp_path / "cache" / BASIS).unlink()
    assert [(problem.shard, problem.kind) for problem in verify(tmp_path / "cache")] == [(BASIS, "missing")]
