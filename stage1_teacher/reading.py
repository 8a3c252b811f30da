"""The teacher reads one shard's windows; what it believed comes back as records. Not for files: capture.py seals them.

Hidden states first, then the head over chunks of positions, then selection on the same device.
Legend: B windows of a batch, L tokens, D width, N positions that predict something, C positions of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.encoding import Encoding
from cache.record import CachedWindow
from shared.windows import Window
from stage1_teacher.batches import pack, tensors
from stage1_teacher.config import CaptureConfig
from stage1_teacher.fidelity import SUMS, as_stored, measure, sample_positions
from stage1_teacher.selection import HeadChunk, Record
from stage1_teacher.teacher import TeacherModel


@dataclass(frozen=True)
class ShardReading:
    """One shard's records in corpus order, and the sums its summary keeps."""

    windows: list[CachedWindow]
    summary: dict[str, Any]


@torch.inference_mode()
def read_shard(
    teacher: TeacherModel,
    windows: Sequence[Window],
    number: int,
    config: CaptureConfig,
    encoding: Encoding,
    advance: Callable[[int], object],
) -> ShardReading:
    """Run the teacher over `windows`.

    Args:
        number: the shard's, which seeds the sample of positions that are measured.
        advance: called with the tokens of every batch that is done.
    """
    wanted = sample_positions(
        [len(window.tokens) - 1 for window in windows], config.fidelity.positions_per_shard, number
    )
    records: list[CachedWindow | None] = [None] * len(windows)
    sums = [_zero(temperature) for temperature in config.fidelity.temperatures]
    for batch in pack(windows, config.batch_tokens):
        chosen = [windows[index] for index in batch]
        found, truths = _read_batch(teacher, chosen, [wanted[index] for index in batch], config)
        for index, record, truth_SV in zip(batch, found, truths, strict=True):
            records[index] = record
            if wanted[index]:
                _add(sums, as_stored(record, encoding), wanted[index], truth_SV)
        advance(sum(len(window.tokens) for window in chosen))
    whole = [record for record in records if record is not None]
    assert len(whole) == len(windows), "every window was in one batch"
    gold = float(sum(record.gold_P.sum(dtype=np.float64) for record in whole))
    return ShardReading(whole, {"fidelity": sums, "gold_sum": gold})


def _zero(temperature: float) -> dict[str, float]:
    return {"temperature": temperature, "positions": 0, "tail_mass_error_max": 0.0} | dict.fromkeys(SUMS, 0.0)


def _add(sums: list[dict[str, float]], window: CachedWindow, positions: Sequence[int], truth_SV: Tensor) -> None:
    for row in sums:
        for name, value in measure(window, positions, truth_SV, row["temperature"]).items():
            row[name] = max(row[name], value) if name.endswith("_max") else row[name] + value


def _read_batch(
    teacher: TeacherModel, windows: Sequence[Window], wanted: Sequence[Sequence[int]], config: CaptureConfig
) -> tuple[list[CachedWindow], list[Tensor]]:
    """Records of a batch, and the full log-probabilities [S, V] at each window's wanted positions."""
    tokens_BL, mask_BL = tensors(windows)
    hidden_BLD = teacher.hidden(tokens_BL, mask_BL)
    counts = [len(window.tokens) - 1 for window in windows]
    hidden_ND = torch.cat([hidden_BLD[row, :count] for row, count in enumerate(counts)])
    gold_N = torch.cat([torch.from_numpy(window.tokens[1:]).long() for window in windows]).to(hidden_ND.device)
    starts = np.cumsum([0, *counts])
    wanted_N = [int(starts[row]) + place for row, places in enumerate(wanted) for place in places]
    record, truth_SV = _through_head(teacher, hidden_ND, gold_N, wanted_N, config)
    cached = [_window(window, record, int(starts[row]), counts[row]) for row, window in enumerate(windows)]
    return cached, list(torch.split(truth_SV, [len(places) for places in wanted]))


def _through_head(
    teacher: TeacherModel, hidden_ND: Tensor, gold_N: Tensor, wanted_N: Sequence[int], config: CaptureConfig
) -> tuple[Record, Tensor]:
    parts, truths = [], []
    wanted = np.array(wanted_N, dtype=np.int64)
    chunk = HeadChunk(teacher.vocab_size, hidden_ND.device)
    for start in range(0, len(hidden_ND), chunk.rows):
        hidden_CD = hidden_ND[start : start + chunk.rows]
        logprobs_CV = chunk.log_probabilities(partial(teacher.logits, hidden_CD), len(hidden_CD))
        inside = wanted[(wanted >= start) & (wanted < start + len(hidden_CD))] - start
        truths.append(logprobs_CV[torch.from_numpy(inside).to(logprobs_CV.device)].cpu())
        parts.append(chunk.select(gold_N[start : start + chunk.rows], config.selection).cpu())
    columns = (torch.cat([getattr(part, name) for part in parts]) for name in Record.__slots__)
    return Record(*columns), torch.cat(truths)


def _window(window: Window, record: Record, start: int, count: int) -> CachedWindow:
    """Cut one window's positions out of the batch's record and drop the padding of its heads."""
    rows = slice(start, start + count)
    sizes_P = record.sizes_C[rows]
    kept_PK = torch.arange(record.ids_CK.shape[1]) < sizes_P[:, None]
    return CachedWindow(
        id=window.id,
        document=window.document,
        prompt_tokens=window.prompt_tokens,
        tokens=window.tokens,
        head_sizes_P=sizes_P.numpy(),
        head_ids_E=record.ids_CK[rows][kept_PK].numpy(),
        head_logprobs_E=record.logprobs_CK[rows][kept_PK].numpy(),
        tail_PN=record.tail_CN[rows].numpy(),
        gold_P=record.gold_C[rows].numpy(),
        coords_PR=np.zeros((count, 0), np.float32),
    )
