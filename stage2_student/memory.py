"""Memory: how much a student needs to train, how much the device has, and whether an error says that it ran out.

Not for what is done about it: train.py refuses a student that is too big, trainer.py halves a batch that is.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Any

import torch

from shared.errors import UsageError
from stage2_student.config import TrainConfig
from stage2_student.students import count_trained, head_weight

WEIGHT_BYTES = 4  # float32
LEARNING_BYTES = 12  # gradient and AdamW's two moments, float32
ACTIVATIONS = 17  # numbers a position, width and block (Korthikanti et al. 2022, arXiv 2205.05198: 34 bytes in 16 bits)
CGROUP = Path("/sys/fs/cgroup")


def peak_bytes(device: torch.device) -> int:
    """The most this process has held: GPU memory in tensors on a GPU, resident memory elsewhere."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_bytes(device: torch.device) -> int | None:
    """What the device can still give; None where the system does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    limits = [free for free in (_available(), _cgroup_room()) if free is not None]
    return min(limits, default=None)


def _available() -> int | None:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    line = next((line for line in path.read_text().splitlines() if line.startswith("MemAvailable:")), None)
    return None if line is None else int(line.split()[1]) * 1024


def _cgroup_room() -> int | None:
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if not limit.is_file() or not used.is_file() or limit.read_text().strip() == "max":
        return None
    return int(limit.read_text()) - int(used.read_text())


def needed_bytes(student: Any, tokens: int, config: TrainConfig) -> int:
    """A quick estimate of what training takes with one window held at once (batches are halved until they fit).

    `estimate.py` knows it better; this one is made at every start, and only refuses what is hopeless.
    Args:
        student: the model, on any device.
        tokens: of the longest window.
        config: of the run.
    """
    trained, weights = count_trained(student), sum(parameter.numel() for parameter in student.parameters())
    shadow = 0 if config.ema is None else WEIGHT_BYTES
    fixed = WEIGHT_BYTES * weights + (LEARNING_BYTES + shadow) * trained
    vocabulary, width = head_weight(student).shape
    head = 2 * vocabulary * width * WEIGHT_BYTES  # a chunk of logits, and the head's gradient (head_loss.py)
    block = ACTIVATIONS * tokens * width * (WEIGHT_BYTES if config.dtype == "float32" else 2)
    blocks = 1 if config.gradient_checkpointing else int(student.config.num_hidden_layers)
    return int(fixed + head + blocks * block)


def require_room(student: Any, config: TrainConfig, tokens: int, free: int | None) -> None:
    """Refuse a student that cannot train on this device even one window at a time.

    Args:
        student: the model.
        config: of the run.
        tokens: of the longest window.
        free: bytes of the device; None: unknown, nothing is refused.
    Raises:
        UsageError: names the presets that fit.
    """
    needed = needed_bytes(student, tokens, config)
    if free is None or needed <= free:
        return
    from stage2_student.estimate import what_fits

    raise UsageError(
        "student",
        expected=f"at most {free / 1e9:.2f} GB to train, what this device has free",
        got=f"about {needed / 1e9:.2f} GB with one window at once",
        do=f"take a smaller one: {what_fits(config, free)}",
    )
