"""How good is the record? Measured on sampled positions while the teacher's full logits are still there.

Compares the true p_T with what a reader rebuilds from the stored, quantised record: the head, the tail's mass from the
nodes, and the tail's mass spread evenly, since without stored coordinates nothing else is known of its shape.
Sums travel in each shard's summary, so a capture that goes on after a crash reports the same.
Legend: S sampled positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cache.encoding import Encoding, decode_window, encode_window
from cache.manifest import Fidelity
from cache.record import CachedWindow
from cache.tail import node_weights

SUMS = ("kept_mass", "tail_mass_error", "kl", "total_variation")


def sample_positions(counts: Sequence[int], wanted: int, shard: int) -> list[list[int]]:
    """For each window of a shard, which of its positions are measured: `wanted` in all, the same on every run."""
    total = sum(counts)
    chosen = np.random.default_rng(shard).choice(total, size=min(wanted, total), replace=False)
    ends = np.cumsum(counts)
    rows: list[list[int]] = [[] for _ in counts]
    for place in sorted(int(place) for place in chosen):
        window = int(np.searchsorted(ends, place, side="right"))
        rows[window].append(place - (int(ends[window - 1]) if window else 0))
    return rows


def as_stored(window: CachedWindow, encoding: Encoding) -> CachedWindow:
    """The window as a reader will see it, rounded to the cache's steps."""
    return decode_window(
        encode_window(window, encoding),
        encoding,
        window_id=window.id,
        document=window.document,
        prompt_tokens=window.prompt_tokens,
    )


def measure(window: CachedWindow, positions: Sequence[int], truth_SV: Tensor, temperature: float) -> dict[str, float]:
    """Sums over the sampled positions (`*_max`: the worst) of what the record loses at one temperature.

    Args:
        window: as stored.
        positions: S of its positions.
        truth_SV: the teacher's log-probabilities at T = 1 there, any float type.
    """
    found = [
        _measure_position(window, position, truth_SV[row].double(), temperature)
        for row, position in enumerate(positions)
    ]
    sums = {name: math.fsum(row[name] for row in found) for name in SUMS}
    sums["tail_mass_error_max"] = max((row["tail_mass_error"] for row in found), default=0.0)
    sums["positions"] = len(found)
    return sums


def _measure_position(window: CachedWindow, position: int, truth_V: Tensor, temperature: float) -> dict[str, float]:
    beta = 1 / temperature
    start = int(window.head_sizes_P[:position].sum())
    size = int(window.head_sizes_P[position])
    head = slice(start, start + size)
    ids = torch.from_numpy(window.head_ids_E[head]).long()
    true_V = (beta * truth_V).log_softmax(dim=0)
    rebuilt_V = _rebuild(window, position, head, ids, len(truth_V), beta)
    kept, rebuilt_kept = (float(values_V[ids].exp().sum()) for values_V in (true_V, rebuilt_V))
    return {
        "kept_mass": kept,
        "tail_mass_error": abs(kept - rebuilt_kept),
        "kl": max(float((true_V.exp() * (true_V - rebuilt_V)).sum()), 0.0),
        "total_variation": float((true_V.exp() - rebuilt_V.exp()).abs().sum()) / 2,
    }


def _rebuild(window: CachedWindow, position: int, head: slice, ids: Tensor, vocab_size: int, beta: float) -> Tensor:
    """log p_T, float64 [V], from the record alone."""
    head_K = beta * torch.from_numpy(window.head_logprobs_E[head]).double()
    others = vocab_size - len(ids)
    rest = log_tail(window, position, others, beta)
    log_z = torch.logsumexp(torch.cat([head_K, torch.tensor([rest], dtype=torch.float64)]), dim=0)
    rebuilt_V = torch.full((vocab_size,), rest - math.log(max(others, 1)), dtype=torch.float64)
    rebuilt_V[ids] = head_K
    return rebuilt_V - log_z


def log_tail(window: CachedWindow, position: int, others: int, beta: float) -> float:
    """f(beta) of one position; -inf where the head is the whole vocabulary."""
    if others == 0:
        return -math.inf
    weights = node_weights(beta)
    return float(weights[0] * math.log(others) + weights[1:] @ window.tail_PN[position].astype(np.float64))


def add_up(summaries: Sequence[dict[str, Any]]) -> tuple[Fidelity, ...]:
    """The manifest's fidelity report from the `fidelity` part of every shard's summary."""
    report = []
    for place, first in enumerate(summaries[0]["fidelity"]):
        rows = [summary["fidelity"][place] for summary in summaries]
        count = sum(row["positions"] for row in rows)
        means = {name: math.fsum(row[name] for row in rows) / count for name in SUMS}
        worst = max(row["tail_mass_error_max"] for row in rows)
        facts = {"temperature": first["temperature"], "positions": count, "tail_mass_error_max": worst}
        report.append(Fidelity(**facts, **means))
    return tuple(report)
