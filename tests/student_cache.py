"""A small real cache for stage 2's tests: random teacher logits over a byte vocabulary. Not a test file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from safetensors.torch import load_file
from tiny_model import byte_tokenizer

from cache.encoding import Encoding
from cache.manifest import Identity, Selection, Teacher
from cache.record import CachedWindow
from cache.tail import NODES
from cache.writer import PROGRESS_FOLDER, writing
from shared.config import load_config
from shared.files import read_jsonl
from shared.tokenizer import fingerprint
from stage2_student import watch
from stage2_student.config import TrainConfig

VOCAB = 260  # 257 tokens and three rows of padding


def cached_window(
    number: int, tokens: NDArray[np.int32], logits_PV: torch.Tensor, *, k: int = 8, prompt: int = 3
) -> CachedWindow:
    """What a capture keeps of these logits: heads of 1 to k ids, f(beta) exact at every node."""
    logp = logits_PV.double().log_softmax(1)
    values, ids = logp.sort(1, descending=True)
    sizes = torch.arange(len(logp)) % k + 1
    inside = torch.arange(logp.shape[1]) < sizes[:, None]
    outside = values.masked_fill(inside, -torch.inf)
    return CachedWindow(
        id=f"{number:016x}",
        document=f"document {number}",
        prompt_tokens=prompt,
        tokens=tokens,
        head_sizes_P=sizes.int().numpy(),
        head_ids_E=ids[inside].int().numpy(),
        head_logprobs_E=values[inside].float().numpy(),
        tail_PN=torch.stack([(beta * outside).logsumexp(1) for beta in NODES], 1).float().numpy(),
        gold_P=logp[torch.arange(len(logp)), torch.from_numpy(tokens[1:]).long()].float().numpy(),
        coords_PR=np.zeros((len(logp), 0), np.float32),
    )


def make_windows(count: int, *, longest: int = 24, seed: int = 0, k: int = 8) -> list[CachedWindow]:
    """Windows of 6 to `longest` tokens whose teacher follows a fixed random table, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    table_VV = 3 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(99))
    windows = []
    for _ in range(count):
        length = int(torch.randint(6, longest + 1, (1,), generator=generator))
        tokens = [int(torch.randint(0, 257, (1,), generator=generator))]
        while len(tokens) < length:
            row = table_VV[tokens[-1], :257].softmax(0)
            tokens.append(int(torch.multinomial(row, 1, generator=generator)))
        ids = np.asarray(tokens, np.int32)
        number = int(torch.randint(0, 2**62, (1,), generator=generator)) * 4 + 1
        windows.append(cached_window(number, ids, table_VV[torch.from_numpy(ids[:-1]).long()], k=k))
    return windows


def identity(k: int = 8, weights: str = "0" * 64, windows_per_shard: int = 1000) -> Identity:
    """An identity of a cache of the byte tokenizer."""
    teacher = Teacher(
        id="table",
        revision=None,
        weights=weights,
        architecture="Table",
        parameters=1,
        dtype="float32",
        quantisation=None,
    )
    return Identity(
        teacher=teacher,
        tokenizer=fingerprint(byte_tokenizer()),
        corpus={},
        windows={},
        selection=Selection(k=k, top_p=1.0),
        encoding=Encoding(vocab_size=VOCAB, k=k),
        windows_per_shard=windows_per_shard,
    )


def make_cache(
    directory: Path, windows: list[CachedWindow], *, weights: str = "0" * 64, k: int = 8, windows_per_shard: int = 1000
) -> Path:
    """Write a finished cache with the byte tokenizer's files."""
    directory.mkdir(parents=True, exist_ok=True)
    with writing(directory, identity(k, weights, windows_per_shard)) as writer:
        folder = directory / PROGRESS_FOLDER / "tokenizer"
        byte_tokenizer().save_pretrained(folder)
        for number, start in enumerate(range(0, len(windows), windows_per_shard)):
            writer.seal(number, windows[start : start + windows_per_shard], {})
        writer.finish(folder, counts={}, fidelity=(), teacher_loss=1.0, made_with={})
    return directory


STUDENT = {"architecture": {"layers": 1, "width": 16, "heads": 2, "positions": 32, "dropout": 0.1}}


def make_caches(folder: Path) -> Path:
    """`cache` to learn from, `validation` of the same teacher, `stranger` of another."""
    make_cache(folder / "cache", make_windows(44, seed=3))
    make_cache(folder / "validation", make_windows(8, seed=4))
    make_cache(folder / "stranger", make_windows(8, seed=5), weights="1" * 64)
    return folder


def make_config(folder: Path, caches: Path, changes: dict[str, Any]) -> TrainConfig:
    """A config of a student that trains in a second, with `changes`, read back from a file as a user's would be."""
    fields = {
        "out": str(folder / "out"),
        "cache": str(caches / "cache"),
        "validation": {"cache": str(caches / "validation")},
        "student": STUDENT,
        "form": "bucket",  # these caches keep no tail shape
        "temperature": 1.5,
        "kd_weight": 0.7,
        "ce_weight": 0.3,
        "epochs": 2,
        "batch_size": 4,
        "gradient_accumulation": 2,
        "learning_rate": 1e-2,
        "log_every": 2,
        "device": "cpu",
    }
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(fields | changes))
    return load_config(TrainConfig, path)


def curve(out: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without the clock."""
    return [
        {key: value for key, value in row.items() if key not in watch.SPEED}
        for row in read_jsonl(out / "metrics.jsonl")
    ]


class Crash(BaseException):
    """Stands in for kill -9: nothing catches it."""


def crash_after(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Die after so many rows of metrics.jsonl, in the middle of writing the next one."""
    real, seen = watch.append_jsonl, []

    def append(path: Path, new: list[dict[str, Any]]) -> None:
        real(path, new)
        seen.extend(new)
        if len(seen) == rows:
            with path.open("a") as file:
                file.write('{"step": 9, "spl')  # torn
            raise Crash

    monkeypatch.setattr(watch, "append_jsonl", append)


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model.safetensors")


def same_weights(one: Path, other: Path) -> bool:
    ours, theirs = weights(one), weights(other)
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def validations(out: Path) -> dict[int, float]:
    return {row["step"]: row["kd"] for row in curve(out) if row["split"] == "validation"}


def require_close(one: Path, other: Path, *, rel: float) -> None:
    for row, twin in zip(curve(one), curve(other), strict=True):
        assert row["loss"] == pytest.approx(twin["loss"], rel=rel)
        assert row.get("grad_norm", 0.0) == pytest.approx(twin.get("grad_norm", 0.0), rel=10 * rel)
