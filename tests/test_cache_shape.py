"""The tail's shape: steps that follow the cost of an error, and a basis file that is read as written or not at all."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from cache_records import basis_bytes, basis_of, identity, records, write_cache

from cache.basis import PIECE, read_basis, to_bytes
from cache.frames import compress, new_compressor
from cache.shape import (
    BASIS,
    CENTRE_STEP,
    CROWD,
    LARGEST_STEP,
    ZERO,
    Basis,
    TailShape,
    predicting,
    quantise_basis,
    step_of,
)
from cache.shard import write_frames
from cache.structure import BASIS as LAYOUT
from cache.verify import verify
from shared.errors import RunError

VOCAB, R = 50, 3


def shape_of(raw: bytes, **other: int) -> TailShape:
    facts = {"directions": R, "bytes": len(raw)} | other
    return TailShape(step=0.1, sample_windows=1, explained=0.5, sha256=hashlib.sha256(raw).hexdigest(), **facts)  # type: ignore[arg-type]


def weighted(basis: Basis, seed: int = 0) -> Basis:
    rng = np.random.default_rng(seed)
    return replace(basis, weights_R2R=rng.integers(-99, 99, (R, 2 * R)).astype(np.int16))


def refused(directory: Path, raw: bytes, message: str, **other: int) -> None:
    (directory / BASIS).write_bytes(raw)
    with pytest.raises(RunError, match=message) as caught:
        read_basis(directory, shape_of(raw, **other), VOCAB)
    assert "\n" not in str(caught.value)


def test_file_round_trip_is_exact(tmp_path: Path) -> None:
    basis = weighted(basis_of(VOCAB, R))
    raw = to_bytes(basis)
    (tmp_path / BASIS).write_bytes(raw)
    back = read_basis(tmp_path, shape_of(raw), VOCAB)
    for name in ("codes_AV", "class_V", "scale_A", "weights_R2R", "centres_AK"):
        np.testing.assert_array_equal(getattr(back, name), getattr(basis, name))
        assert getattr(back, name).dtype == getattr(basis, name).dtype
    assert raw == to_bytes(back)


def test_every_entry_is_within_its_tokens_step() -> None:
    """Half a step, or ZERO of one where the entry became the centre."""
    rng = np.random.default_rng(1)
    mean_V, basis_RV = rng.normal(size=VOCAB), rng.normal(size=(R, VOCAB))
    spread_R, weight_V = np.array([2.0, 0.5, 0.01]), rng.dirichlet(np.full(VOCAB, 0.2))
    stored = quantise_basis(mean_V, basis_RV, spread_R=spread_R, weight_V=weight_V, step=0.1, positions=5000)
    half_V = step_of(stored.class_V) * ZERO
    centre_R = basis_RV @ (weight_V + 1e-3 / VOCAB) / (weight_V + 1e-3 / VOCAB).sum()
    missed_RV = (stored.basis() - (basis_RV - centre_R[:, None])) * spread_R[:, None]
    assert (abs(missed_RV) <= half_V * 1.01 + 1e-6).all()
    middle = mean_V @ (weight_V + 1e-3 / VOCAB) / (weight_V + 1e-3 / VOCAB).sum()
    assert (abs(stored.mean_V - (mean_V - middle)) <= half_V * 1.01 + 1e-6).all()


def test_steps_follow_mass_positions_and_step() -> None:
    """A token with four times the mass, or a corpus four times as long, halves the step: two classes."""
    rng = np.random.default_rng(2)
    weight_V = np.full(VOCAB, 1e-3)
    weight_V[7] *= 4
    plan: dict[str, Any] = {"spread_R": np.ones(R), "weight_V": weight_V, "step": 0.1}
    mean_V, basis_RV = rng.normal(size=VOCAB), rng.normal(size=(R, VOCAB))
    once = quantise_basis(mean_V, basis_RV, positions=1000, **plan)
    assert once.class_V[7] == once.class_V[8] + 2
    more = quantise_basis(mean_V, basis_RV, positions=4000, **plan)
    assert set(more.class_V.astype(int) - once.class_V.astype(int)) == {2}
    coarse = quantise_basis(mean_V, basis_RV, positions=1000, **(plan | {"step": 0.2}))
    assert set(once.class_V.astype(int) - coarse.class_V.astype(int)) == {2}
    wanted = 0.1 / np.sqrt(1000 * (weight_V[8] + 1e-3 * weight_V.mean()))
    assert wanted / 2**0.5 < step_of(once.class_V)[8] * 1.0001 and step_of(once.class_V)[8] < wanted * 2**0.5 * 1.0001


def test_a_crowd_of_unlikely_tokens_has_a_centre() -> None:
    """Tokens that lie together, far from the likely ones, cost nothing but their centre."""
    rng, rare = np.random.default_rng(3), 3 * CROWD
    weight_V = np.concatenate([np.full(20, 0.05), np.full(rare, 1e-9)])
    basis_RV = np.concatenate([rng.normal(size=(R, 20)), 20 + 0.1 * rng.normal(size=(R, rare))], axis=1)
    mean_V = rng.normal(size=20 + rare)
    stored = quantise_basis(mean_V, basis_RV, spread_R=np.ones(R), weight_V=weight_V, step=0.1, positions=1000)
    column = sorted(set(stored.class_V.tolist()), reverse=True).index(int(stored.class_V[-1]))
    assert (abs(stored.centres_AK[1:, column]) * CENTRE_STEP > 3).all()
    assert not stored.codes_AV[1:, 20:].any()
    assert not np.delete(stored.centres_AK, column, axis=1).any(), "few tokens are no crowd"
    middle_R = basis_RV @ (weight_V + 1e-3 * weight_V.mean()) / (weight_V + 1e-3 * weight_V.mean()).sum()
    missed_RV = stored.basis() - (basis_RV - middle_R[:, None])
    assert abs(missed_RV[:, 20:]).max() < step_of(stored.class_V)[-1] * ZERO


def test_likely_ids_come_first() -> None:
    basis = basis_of(VOCAB, R)
    order = basis.order()
    assert sorted(order) == list(range(VOCAB))
    steps = step_of(basis.class_V)[order]
    assert (np.diff(steps) >= 0).all() and steps[0] < LARGEST_STEP
    prior = basis.prior
    ids = np.arange(VOCAB, dtype=np.int32)
    np.testing.assert_array_equal(prior.ids(prior.ranks(ids)), ids)
    with pytest.raises(ValueError, match="outside the vocabulary of 50"):
        prior.ids(np.array([VOCAB]))


def test_prediction_finds_what_tokens_tell() -> None:
    """Coordinates made from the two tokens' rows are predicted to rounding; noise is not."""
    rng = np.random.default_rng(4)
    basis = basis_of(VOCAB, R)
    last_S, best_S = rng.integers(0, VOCAB, 4000), rng.integers(0, VOCAB, 4000)
    shares_VR = basis.basis().T / basis.scale_A[1:]
    mixing_RR = rng.normal(size=(2, R, R)) * 0.3
    coords_SR = (shares_VR[last_S] @ mixing_RR[0] + shares_VR[best_S] @ mixing_RR[1]) / basis.scale_A[1:]
    told = predicting(basis, coords_SR, last_S, best_S).prior.coordinates(last_S, best_S)
    assert ((coords_SR - told).std(0) < 0.15 * coords_SR.std(0)).all()
    noise_SR = rng.normal(size=coords_SR.shape)
    nothing = predicting(basis, noise_SR, last_S, best_S).prior.coordinates(last_S, best_S)
    assert ((noise_SR - nothing).std(0) > 0.95 * noise_SR.std(0)).all()


def test_every_flipped_byte_is_refused(tmp_path: Path) -> None:
    raw = to_bytes(basis_of(VOCAB, R))
    for place in range(0, len(raw), 7):
        (tmp_path / BASIS).write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(RunError, match=r"basis\.h5: expected sha256"):
            read_basis(tmp_path, shape_of(raw), VOCAB)


def hostile(**change: Any) -> bytes:
    """A basis file with its own hash but other content: by default a sound one of zeros."""
    classes = change.get("classes", np.zeros(VOCAB, np.uint8))
    scale = change.get("scale", np.ones(R + 1, "<f4"))
    numbers = change.get("numbers", np.zeros(2 * R * R, np.uint8))  # weights, centres, groups of one class
    parts = [classes, scale.view(np.uint8), numbers, np.zeros(R + 1, np.uint8), change.get("groups", np.zeros(R + 1))]
    stream = np.concatenate([*parts, change.get("more", np.zeros(0))]).astype(np.uint8)
    frame = compress([stream], len(stream), new_compressor())[0]
    with h5py.File("basis", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        file.attrs["format"] = np.bytes_(change.get("format", LAYOUT.format))
        file.attrs["version"] = np.uint32(LAYOUT.version)
        checksum = np.array([change.get("checksum", zlib.crc32(frame))], "<u4")
        file.create_dataset("checksum", data=checksum, track_times=False)
        write_frames(file, "stream", len(stream), [frame])
        if "extra" in change:
            file["extra"] = np.zeros(3)
        file.flush()
        return bytes(file.id.get_file_image())


def test_hostile_files_under_their_own_hash(tmp_path: Path) -> None:
    (tmp_path / BASIS).write_bytes(hostile())
    assert read_basis(tmp_path, shape_of(hostile()), VOCAB).order().tolist() == list(range(VOCAB))
    refused(tmp_path, b"not HDF5", "expected a readable HDF5 structure")
    refused(tmp_path, hostile(format="codestill-shard"), "another format")
    refused(tmp_path, hostile(extra=True), "objects of other names")
    refused(tmp_path, hostile(scale=np.full(R + 1, np.nan, "<f4")), "scales that are not positive numbers")
    refused(tmp_path, hostile(scale=np.zeros(R + 1, "<f4")), "scales that are not positive numbers")
    refused(tmp_path, hostile(classes=np.full(VOCAB, 64)), "a class of 64")
    refused(tmp_path, hostile(classes=np.zeros(VOCAB - 1)), "scales that are not|a stream that ends too early")
    refused(tmp_path, hostile(numbers=np.full(2 * R * R, 255)), "a stream that ends too early")
    refused(tmp_path, hostile(groups=np.full(R + 1, 48)), "a group of 48")
    refused(tmp_path, hostile(groups=np.full(R + 1, 17)), "a stream that ends too early")
    refused(tmp_path, hostile(more=np.ones(1)), "bytes behind the stream's end")
    refused(tmp_path, hostile(checksum=1), "a checksum that does not fit")
    refused(tmp_path, hostile(), "a stream that ends too early|scales that are not", directions=R + 1)
    refused(tmp_path, hostile(), "expected a file of", bytes=10**9)


def test_a_stream_longer_than_any_basis_needs_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    refused(tmp_path, hostile(more=np.zeros(PIECE)), "a stream of 1 pieces of")


def test_more_than_any_reader_accepts_is_refused_before_it_is_read(tmp_path: Path) -> None:
    raw = hostile()
    (tmp_path / BASIS).write_bytes(raw)
    with pytest.raises(RunError, match="more than any reader accepts"):
        read_basis(tmp_path, shape_of(raw, directions=1024), 2**30)


def test_a_basis_of_several_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cache.basis.PIECE", 100)
    basis = weighted(basis_of(VOCAB, R))
    raw = to_bytes(basis)
    (tmp_path / BASIS).write_bytes(raw)
    with h5py.File(tmp_path / BASIS) as file:
        assert file["stream"].shape[0] > 3
    np.testing.assert_array_equal(read_basis(tmp_path, shape_of(raw), VOCAB).codes_AV, basis.codes_AV)


def test_link_is_refused(tmp_path: Path) -> None:
    raw = to_bytes(basis_of(VOCAB, R))
    (tmp_path / "elsewhere").write_bytes(raw)
    (tmp_path / BASIS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match="got none, a link, or another size"):
        read_basis(tmp_path, shape_of(raw), VOCAB)


def test_verify_hashes_the_basis_and_opens_it_only_when_asked_to(tmp_path: Path) -> None:
    plan = identity(directions=R)
    write_cache(tmp_path / "cache", records(3, directions=R), plan)
    assert verify(tmp_path / "cache", "deep") == []
    raw = basis_bytes(plan)
    assert raw is not None
    (tmp_path / "cache" / BASIS).write_bytes(raw[::-1])
    assert [(problem.shard, problem.kind) for problem in verify(tmp_path / "cache")] == [(BASIS, "hash")]
    (tmp_path / "cache" / BASIS).unlink()
    assert [(problem.shard, problem.kind) for problem in verify(tmp_path / "cache")] == [(BASIS, "missing")]
