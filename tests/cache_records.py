"""Random records and small caches for the cache's tests: no torch, no tokenizer library, no teacher. Not a test file."""

from __future__ import annotations

import hashlib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.basis import to_bytes
from cache.encoding import Encoding
from cache.manifest import Identity, Manifest, Selection, Teacher
from cache.record import CachedWindow
from cache.shape import Basis, TailShape, quantise_basis
from cache.tail import NODES
from cache.writer import PROGRESS_FOLDER, writing
from shared.tokenizer import TokenizerFingerprint
from shared.windows import window_id

TOKENIZER = {"tokenizer.json": b'{"a": 1}\n', "tokenizer_config.json": b"{}\n"}


def log_mass(logp_PV: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
    """log sum exp(beta * l) over each row in float64; -inf for an empty one."""
    with np.errstate(invalid="ignore", divide="ignore"):
        top_P1 = np.maximum(logp_PV.max(axis=1, keepdims=True), -1e300)
        return np.log(np.exp(beta * (logp_PV - top_P1)).sum(axis=1)) + beta * top_P1[:, 0]


def log_softmax(logits_PV: NDArray[np.float64]) -> NDArray[np.float64]:
    return logits_PV - log_mass(logits_PV, 1.0)[:, None]


def cut_head(
    logp_PV: NDArray[np.float64], sizes_P: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.float64]]:
    """Ids by falling probability [P, V], which of them are head [P, V], and log-probabilities of the tail alone [P, V]."""
    order_PV = np.argsort(-logp_PV, axis=1, kind="stable")
    head_PV = np.arange(logp_PV.shape[1]) < sizes_P[:, None]
    return order_PV, head_PV, np.where(head_PV, -np.inf, np.take_along_axis(logp_PV, order_PV, 1))


def record(
    rng: np.random.Generator,
    *,
    positions: int = 6,
    vocab: int = 50,
    k: int = 8,
    scale: float = 3.0,
    sizes_P: NDArray[np.int64] | None = None,
    tokens: NDArray[np.int32] | None = None,
    document: str = "doc",
    directions: int = 0,
) -> CachedWindow:
    """What a capture would keep of random logits; every value is float64 arithmetic rounded once to float32."""
    logp_PV = log_softmax(scale * rng.normal(size=(positions, vocab)))
    sizes_P = rng.integers(1, min(k, vocab) + 1, positions) if sizes_P is None else sizes_P
    tokens = rng.integers(0, vocab, positions + 1).astype(np.int32) if tokens is None else tokens
    order_PV, head_PV, tail_PV = cut_head(logp_PV, sizes_P)
    prompt = int(rng.integers(0, positions + 1))
    return CachedWindow(
        id=window_id(tokens, prompt),
        document=document,
        prompt_tokens=prompt,
        tokens=tokens,
        head_sizes_P=sizes_P.astype(np.int32),
        head_ids_E=order_PV[head_PV].astype(np.int32),
        head_logprobs_E=np.take_along_axis(logp_PV, order_PV, 1)[head_PV].astype(np.float32),
        tail_PN=np.stack([log_mass(tail_PV, beta) for beta in NODES], axis=1).astype(np.float32),
        gold_P=logp_PV[np.arange(positions), tokens[1:]].astype(np.float32),
        coords_PR=rng.normal(size=(positions, directions)).astype(np.float32),
    )


def records(count: int, *, seed: int = 0, **shape: Any) -> list[CachedWindow]:
    rng = np.random.default_rng(seed)
    return [
        record(rng, document=f"document {number}", **({"positions": int(rng.integers(1, 9))} | shape))
        for number in range(count)
    ]


def basis_of(vocab: int, directions: int, seed: int = 3) -> Basis:
    """A random basis of a corpus of 1000 positions."""
    rng = np.random.default_rng(seed)
    basis = quantise_basis(
        rng.normal(size=vocab),
        rng.normal(size=(directions, vocab)),
        spread_R=np.sort(rng.uniform(0.1, 2.0, directions))[::-1],
        weight_V=rng.dirichlet(np.ones(vocab)),
        step=0.1,
        positions=1000,
    )
    weights_R2R = rng.integers(-99, 99, (directions, 2 * directions)).astype(np.int16)
    return replace(basis, weights_R2R=weights_R2R)


def basis_bytes(plan: Identity) -> bytes | None:
    """The basis file that `identity` names."""
    return to_bytes(basis_of(plan.encoding.vocab_size, plan.encoding.directions)) if plan.shape else None


def identity(
    *, vocab: int = 50, k: int = 8, windows_per_shard: int = 2, teacher: str = "table", directions: int = 0
) -> Identity:
    raw = to_bytes(basis_of(vocab, max(directions, 1)))
    shape = TailShape(
        directions=max(directions, 1),
        step=0.1,
        sample_windows=1,
        explained=0.9,
        bytes=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
    )
    return Identity(
        teacher=Teacher(
            id=teacher,
            revision=None,
            weights="0" * 64,
            architecture="Table",
            parameters=1,
            dtype="float32",
            quantisation=None,
        ),
        tokenizer=TokenizerFingerprint(
            size=vocab, vocab_sha256="1" * 64, bos=None, eos=0, pad=None, unk=None, special={}, probe_sha256="2" * 64
        ),
        corpus={"path": "text.jsonl"},
        windows={"max_length": 16},
        selection=Selection(k=k, top_p=1.0),
        encoding=Encoding(
            vocab_size=vocab, k=k, directions=directions, wide=(directions // 2,) if directions > 1 else ()
        ),
        shape=shape if directions else None,
        windows_per_shard=windows_per_shard,
    )


def write_cache(directory: Path, windows: list[CachedWindow], plan: Identity | None = None) -> Manifest:
    """Write a finished cache, as stage 1 does: shards that are already sealed are passed over."""
    plan = plan or identity()
    size = plan.windows_per_shard
    with writing(directory, plan, basis_bytes(plan)) as writer:
        for number, start in enumerate(range(0, len(windows), size)):
            if number not in writer.sealed:
                writer.seal(number, windows[start : start + size], {"shard": number})
        folder = directory / PROGRESS_FOLDER / "tokenizer"
        folder.mkdir(exist_ok=True)
        for name, raw in TOKENIZER.items():
            (folder / name).write_bytes(raw)
        counts = {"documents": len(windows), "windows": len(windows)}
        return writer.finish(folder, counts=counts, fidelity=(), teacher_loss=1.5, made_with={"numpy": "any"})


def same(first: CachedWindow, second: CachedWindow) -> bool:
    """Every field equal, to the last bit."""
    pairs = [(getattr(first, field.name), getattr(second, field.name)) for field in fields(CachedWindow)]
    return all(
        np.array_equal(one, two) and one.dtype == two.dtype if isinstance(one, np.ndarray) else one == two
        for one, two in pairs
    )


def files_of(directory: Path) -> dict[str, bytes]:
    """Relative name -> bytes of everything below."""
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}
