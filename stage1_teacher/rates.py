"""How fast a capture was: beside the teacher's bare forward pass, and beside what its card can do.

Told at a capture's end; nothing of it goes into the cache. Not for benchmarks (benchmarks/stage1_capture.py looks closer).
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from shared.memory import free_memory, is_out_of_memory
from shared.windows import Window
from stage1_teacher.batches import pack, token_ids
from stage1_teacher.budget import Budget
from stage1_teacher.teacher import TeacherModel

# Dense bfloat16 rate, FLOP/s, as the makers state it (half of what they call "with sparsity"); the first name that occurs.
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
ON_A_CPU = 1024  # tokens of the bare pass: enough there for the rate, and soon over


@dataclass(frozen=True)
class Rates:
    """Figures of one run.

    Attributes:
        tokens: read by this run, of windows and without padding.
        seconds: from the first batch to the last sealed shard.
        bare_tokens_per_second: of the teacher's forward pass, logits included and nothing kept; None where that alone does
            not fit into the memory.
        utilisation: 2 FLOP a weight that is multiplied and token, over the card's dense bfloat16 rate; None on a CPU or an
            unknown card.
        peak_bytes: most memory held: on GPUs by tensors, otherwise by the process.
        batch_tokens: at the end; lowered: how often memory ran out.
    """

    tokens: int
    seconds: float
    bare_tokens_per_second: float | None
    utilisation: float | None
    peak_bytes: int
    batch_tokens: int
    lowered: int

    @property
    def tokens_per_second(self) -> float:
        """Of the whole capture."""
        return self.tokens / self.seconds

    @property
    def of_bare(self) -> float | None:
        """Share of the bare forward pass's rate."""
        return None if self.bare_tokens_per_second is None else self.tokens_per_second / self.bare_tokens_per_second

    def facts(self) -> dict[str, Any]:
        """For --json."""
        return {**asdict(self), "tokens_per_second": self.tokens_per_second, "of_bare": self.of_bare}

    def line(self) -> str:
        """For a reader; what is not known is left out."""
        bare = "" if self.of_bare is None else f", {self.of_bare:.2f} of the bare forward pass"
        share = "" if self.utilisation is None else f", {self.utilisation:.2f} of the card's bfloat16 rate"
        lowered = f", lowered {self.lowered} times for want of memory" if self.lowered else ""
        return (
            f"{self.tokens_per_second:,.0f} tokens/s{bare}{share}; peak memory {self.peak_bytes / 1e9:.2f} GB; "
            f"batches of {self.batch_tokens} tokens{lowered}"
        )


def measure(teacher: TeacherModel, shard: Sequence[Window], tokens: int, seconds: float, budget: Budget) -> Rates:
    """The figures of a run that has just ended.

    Args:
        shard: one that it read; the bare pass reads its middle batch again.
        tokens, seconds: of the run.
    """
    peak, peak_bytes = peak_rate(teacher.device), peak_memory()
    return Rates(
        tokens,
        seconds,
        bare_rate(teacher, shard, budget.now),
        None if peak is None else flops_per_token(teacher) * tokens / seconds / peak,
        peak_bytes,
        budget.now,
        budget.lowered,
    )


@torch.inference_mode()
def bare_rate(teacher: TeacherModel, shard: Sequence[Window], batch_tokens: int) -> float | None:
    """Tokens/s of the bare forward pass over the middle batch of a shard."""
    if teacher.head is None:
        return None
    on_gpu = teacher.device.type == "cuda"
    batches = list(pack(shard, batch_tokens if on_gpu else min(batch_tokens, ON_A_CPU)))
    chosen = [shard[index] for index in batches[len(batches) // 2]]
    tokens_BL = token_ids(chosen)
    try:
        teacher.bare(tokens_BL if on_gpu else tokens_BL[:1, :16])  # the first of its shape is slow
        _wait(teacher)
        start = time.perf_counter()
        teacher.bare(tokens_BL)
        _wait(teacher)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    else:
        return sum(len(window.tokens) for window in chosen) / (time.perf_counter() - start)
    free_memory()
    return None


def _wait(teacher: TeacherModel) -> None:
    if teacher.device.type == "cuda":
        torch.cuda.synchronize(teacher.device)


def flops_per_token(teacher: TeacherModel) -> float:
    """Two for each weight that is multiplied: all but the embedding, where that is not the head too. Attention is left out."""
    embedding = teacher.body.get_input_embeddings().weight
    tied = teacher.head is not None and embedding is teacher.head.weight
    return 2.0 * (teacher.facts.parameters - (0 if tied else embedding.numel()))


def peak_rate(device: torch.device) -> float | None:
    """Dense bfloat16 FLOP/s of a known card."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((rate for card, rate in PEAKS.items() if card in name), None)


def peak_memory() -> int:
    """Bytes: the most that tensors held on all GPUs, or this process held anywhere."""
    if torch.cuda.is_available():
        return sum(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    status = Path("/proc/self/status")
    if status.is_file():  # Linux gives a child process its parent's ru_maxrss
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
