"""What a training run will take before it starts: parameters, memory, steps and (estimate_time.py) seconds.

    memory = weights + gradients + AdamW's two states + moving average + activations + head's loss + tail shape + process

    weights      4 bytes a parameter; gradients 4, AdamW's states 8 and the moving average (`ema`) 4 a trained one
    activations  what autograd keeps of one batch of the longest windows, counted on a skeleton of the student (skeleton.py);
                 with gradient checkpointing what is kept between blocks and one block's own
    head's loss  head_loss.py's: a chunk's logits, four tensors of the head's size (its gradient, a chunk's part, the scaled
                 copy on the way back, the input embedding's gradient), six blocks of work; in mixed precision a low copy of
                 head and hidden states
    tail shape   the cache's basis, for `form: full`
    process      what Python, torch and transformers take in this process before any student; on a GPU the CUDA context

It is the upper end: batches of shorter windows take less. The manifest is enough; where the shards lie beside it, the
windows' lengths are exact; they are of the cache's tokens, for a student with another tokenizer too.
Not for measuring seconds.
Shapes: V vocabulary, D width, N positions of a batch.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.manifest import Manifest
from cache.reader import Cache
from shared.errors import UsageError
from shared.tokenizer import TokenizerFingerprint
from stage2_student.batch import split_by_hash
from stage2_student.config import TrainConfig
from stage2_student.head_loss import BLOCK_BYTES, GPU_BLOCK_BYTES
from stage2_student.other_tokenizer import open_own
from stage2_student.skeleton import saved_for_backward, shaped, without_memory
from stage2_student.student_config import StudentConfig
from stage2_student.student_families import PRESETS
from stage2_student.students import count_parameters, count_trained, head_weight, longest_window
from stage2_student.sweep_runs import cache_of

CUDA_CONTEXT = 500_000_000  # bytes; the driver's own, 300 to 600 MB by driver and GPU
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Counts:
    """What the run goes through.

    Attributes:
        lengths_W: int [W], tokens of each training window; all of mean length where only the manifest is at hand.
        scored: windows of the validation side.
        longest: tokens of the longest window, or the most that the capture allowed.
        steps: optimizer steps; early stopping may end before.
        exact: whether the lengths are the windows' own.
    """

    lengths_W: NDArray[np.int64]
    scored: int
    longest: int
    steps: int
    exact: bool

    @property
    def tokens(self) -> int:
        """Training tokens of one epoch."""
        return int(self.lengths_W.sum())


@dataclass(frozen=True, slots=True)
class Estimate:
    """What `estimate` tells. Bytes by part in `memory`; `room` is the device's; seconds None where nothing could be timed."""

    parameters: int
    trained: int
    memory: dict[str, int]
    device: str
    room: int
    counts: Counts
    epochs: float
    seconds: float | None = None

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self.room

    def as_json(self) -> dict[str, Any]:
        """For --json; scripts rely on parameters, memory_bytes, seconds."""
        counts = self.counts
        return {
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "memory_bytes": self.memory_bytes,
            "memory": self.memory,
            "seconds": self.seconds,
            "device": self.device,
            "device_bytes": self.room,
            "fits": self.fits,
            "steps": counts.steps,
            "epochs": self.epochs,
            "windows": len(counts.lengths_W),
            "tokens": counts.tokens,
            "validation_windows": counts.scored,
            "longest_window": counts.longest,
            "exact_counts": counts.exact,
        }


def estimate(config: TrainConfig) -> Estimate:
    """Everything but the time.

    Raises:
        UsageError: no cache there, no such device, or a student that cannot be.
        RunError: a manifest is damaged.
    """
    manifest, counts = cache_of(config.cache, config.shards), count(config)
    device = device_of(config)
    vocabulary = vocabulary_of(config)
    with without_memory():
        student = shaped(config.student, *vocabulary, fused=device == "cuda")
        memory = memory_of(student, config, manifest, counts.longest, device)
        parameters, trained = count_parameters(student), count_trained(student)
    epochs = round(counts.steps / steps_an_epoch(config, len(counts.lengths_W)), 3)
    return Estimate(parameters, trained, memory, device, room(device), counts, epochs)


def vocabulary_of(config: TrainConfig) -> tuple[int | None, TokenizerFingerprint]:
    """Rows of the student's head (None: a pretrained one keeps its own) and its tokenizer, the cache's or another."""
    own = open_own(config)
    if own is not None:
        return own.rows, own.facts
    manifest = cache_of(config.cache, config.shards)
    return manifest.vocab_size, manifest.tokenizer


def steps_an_epoch(config: TrainConfig, windows: int) -> int:
    """Optimizer steps of one pass; the last one may hold fewer batches."""
    return math.ceil(math.ceil(windows / config.batch_size) / config.gradient_accumulation)


def steps_of(config: TrainConfig, windows: int) -> int:
    """Optimizer steps of the whole run in one process."""
    return config.max_steps or (config.epochs or 1) * steps_an_epoch(config, windows)


def count(config: TrainConfig) -> Counts:
    """Windows and steps; exact where the shards lie beside the manifest."""
    manifest, choice = cache_of(config.cache, config.shards), config.validation
    fraction = choice.fraction or 0.0
    scored = cache_of(choice.cache).total("windows") if choice.cache is not None else 0
    exact = _shards_are_there(config.cache, manifest)
    if exact:
        assert isinstance(config.cache, Path)
        lengths_W, held_out, longest = _split(config.cache, config.shards, fraction)
        scored += held_out
    else:
        windows = manifest.total("windows")
        scored += round(windows * fraction)
        mean = max(2, round(manifest.total("tokens") / windows))
        lengths_W = np.full(max(1, windows - round(windows * fraction)), mean)
        longest = int(str(manifest.identity.windows.get("max_length", mean)))
    if not len(lengths_W):
        raise UsageError(
            "validation.fraction", expected="windows on both sides", got="none to learn from", do="lower it"
        )
    return Counts(lengths_W, scored, longest, steps_of(config, len(lengths_W)), exact)


@cache
def _split(place: Path, shards: tuple[int, ...] | None, fraction: float) -> tuple[NDArray[np.int64], int, int]:
    """Lengths of the training windows, how many validation windows, and the longest of all; read once a process."""
    windows = Cache(place, cache_of(place, shards))
    kept, held_out = split_by_hash(windows, fraction)
    return windows.lengths[kept].astype(np.int64), len(held_out), int(windows.lengths.max())


def _shards_are_there(place: Path | str, manifest: Manifest) -> bool:
    return isinstance(place, Path) and all((place / shard.name).is_file() for shard in manifest.shards)


def device_of(config: TrainConfig) -> str:
    """cpu or cuda: where the run would train on this machine."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device", expected="a CUDA device", got="none that torch sees", do="set device to auto or cpu")
    return "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"


def memory_of(student: Any, config: TrainConfig, manifest: Manifest, longest: int, device: str) -> dict[str, int]:
    """Bytes by part, see the top of the file; `student` is a skeleton, inside `without_memory`."""
    weights = sum(weight.numel() * weight.element_size() for weight in student.parameters())
    trained = 4 * count_trained(student)
    positions = min(longest - 1, longest_window(student) or longest - 1)
    return {
        "weights": weights,
        "gradients": trained,
        "optimizer": 2 * trained,
        "moving_average": 0 if config.ema is None else trained,
        "activations": _activations(student, config, positions),
        "head_loss": _head_loss(student, config, positions, device),
        "tail_shape": _tail_shape(config, manifest),
        "process": CUDA_CONTEXT if device == "cuda" else _resident(),
    }


def _activations(student: Any, config: TrainConfig, positions: int) -> int:
    low = DTYPES[config.dtype]
    kept = saved_for_backward(student, config.batch_size, positions, low=low)
    if not config.gradient_checkpointing:
        return kept
    blocks = getattr(student.config, "num_hidden_layers", None) or 1
    return kept // blocks + config.batch_size * positions * head_weight(student).shape[1] * 4 * (blocks + 1)


def _head_loss(student: Any, config: TrainConfig, positions: int, device: str) -> int:
    vocabulary, width = head_weight(student).shape
    # trainer.py leaves the head's products in float32 under float16
    low = 2 if config.dtype == "bfloat16" else 4
    count = config.batch_size * positions
    chunk = min(count, max(256, width * 4 // low))
    logits = chunk * vocabulary * low
    head = vocabulary * width * (4 + low + 4 + 4 + (low if low < 4 else 0))
    hidden = count * width * (4 + 2 * low)
    work = GPU_BLOCK_BYTES if device == "cuda" else BLOCK_BYTES * torch.get_num_threads()
    return int(logits + head + hidden + 6 * min(work, chunk * vocabulary * 4))


def _tail_shape(config: TrainConfig, manifest: Manifest) -> int:
    shape = manifest.identity.shape
    if config.form != "full" or shape is None:
        return 0
    return (shape.directions + 1) * manifest.vocab_size * 4 * (1 if config.dtype == "float32" else 2)


@cache
def _resident() -> int:
    """Resident bytes of this process before its first student; 0 where the system does not say."""
    from transformers import Trainer  # noqa: F401, training has it loaded

    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


def room(device: str) -> int:
    """Bytes that the device has: the GPU's memory, or this machine's, or the container's."""
    if device == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    limit = Path("/sys/fs/cgroup/memory.max")
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    named = limit.read_text().strip() if limit.is_file() else "max"
    return min(whole, int(named)) if named.isdigit() else whole


def what_fits(config: TrainConfig, most: int | None = None) -> str:
    """Which presets would train in `most` bytes with these settings, for people: the ends of an error's sentence.

    Args:
        config: of the student that does not fit.
        most: bytes that are free; all that the device has by default. What a process takes on the CPU does not count.
    """
    most = room(device_of(config)) if most is None else most
    sizes = {name: _beside_process(estimate(_with(config, name))) for name in PRESETS}
    fitting = {name: size for name, size in sizes.items() if size <= most}
    if fitting:
        return "these fit: " + ", ".join(f"{name} ({size / 1e9:.1f} GB)" for name, size in fitting.items())
    smallest, batch = min(sizes, key=lambda name: sizes[name]), config.batch_size
    return f"no preset fits at batch_size {batch}; the smallest is {smallest} ({sizes[smallest] / 1e9:.1f} GB)"


def _beside_process(known: Estimate) -> int:
    return known.memory_bytes - (known.memory["process"] if known.device == "cpu" else 0)


def _with(config: TrainConfig, preset: str) -> TrainConfig:
    return config.model_copy(
        update={"student": StudentConfig.model_validate({"preset": preset}), "other_tokenizer": None}
    )
