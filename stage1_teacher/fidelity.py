"""How good is the record? Measured on sampled positions while the teacher's full logits are still there.

Compares the true p_T with what a reader rebuilds from the stored, quantised record: the head, the tail's mass from the
nodes, and within the tail the stored shape (an even tail where the cache keeps none).
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
from cache.shape import Basis
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


class Rebuilder:
    """p_T from a stored record alone, as a reader of the cache would have it.

    Args:
        vocab_size: V.
        basis: the tail's shape; None spreads the tail's mass evenly.
    """

    def __init__(self, vocab_size: int, basis: Basis | None) -> None:
        self._mean_V = torch.zeros(vocab_size) if basis is None else torch.from_numpy(basis.mean_V)
        self._basis_RV = torch.zeros(0, vocab_size) if basis is None else torch.from_numpy(basis.basis())

    def log_p(self, window: CachedWindow, position: int, beta: float) -> Tensor:
        """log p_T, float64 [V]."""
        ids_K, head_K = _head(window, position, beta)
        z_V = (beta * (self._mean_V + torch.from_numpy(window.coords_PR[position]) @ self._basis_RV)).double()
        z_V[ids_K] = -torch.inf
        rest = torch.tensor(log_tail(window, position, len(z_V) - len(ids_K), beta), dtype=torch.float64)
        if len(ids_K) < len(z_V):
            z_V += rest - z_V.logsumexp(dim=0)
        log_z = torch.logaddexp(head_K.logsumexp(dim=0), rest)
        z_V[ids_K] = head_K
        return z_V - log_z


def _head(window: CachedWindow, position: int, beta: float) -> tuple[Tensor, Tensor]:
    """(ids, beta * log-probabilities in float64) of one position's head."""
    start = int(window.head_sizes_P[:position].sum())
    head = slice(start, start + int(window.head_sizes_P[position]))
    return (
        torch.from_numpy(window.head_ids_E[head]).long(),
        beta * torch.from_numpy(window.head_logprobs_E[head]).double(),
    )


def new_sums(temperature: float) -> dict[str, float]:
    """Nothing measured yet."""
    return {"temperature": temperature, "positions": 0, "tail_mass_error_max": 0.0} | dict.fromkeys(SUMS, 0.0)


def add_to(
    sums: list[dict[str, float]], rebuild: Rebuilder, window: CachedWindow, positions: Sequence[int], truth_SV: Tensor
) -> None:
    """Measure a window's sampled positions at every temperature and add them to the sums (`*_max`: the worst).

    Args:
        window: as stored.
        positions: S of its positions.
        truth_SV: the teacher's log-probabilities at T = 1 there, any float type.
    """
    for row in sums:
        for position, truth_V in zip(positions, truth_SV, strict=True):
            found = measure(rebuild, window, position, truth_V.double(), row["temperature"])
            for name in SUMS:
                row[name] += found[name]
            row["tail_mass_error_max"] = max(row["tail_mass_error_max"], found["tail_mass_error"])
            row["positions"] += 1


def measure(
    rebuild: Rebuilder, window: CachedWindow, position: int, truth_V: Tensor, temperature: float
) -> dict[str, float]:
    """What the record loses at one position and one temperature."""
    ids_K, _ = _head(window, position, 1.0)
    true_V = (truth_V / temperature).log_softmax(dim=0)
    rebuilt_V = rebuild.log_p(window, position, 1 / temperature)
    kept, rebuilt_kept = (float(values_V[ids_K].exp().sum()) for values_V in (true_V, rebuilt_V))
    return {
        "kept_mass": kept,
        "tail_mass_error": abs(kept - rebuilt_kept),
        "kl": max(float((true_V.exp() * (true_V - rebuilt_V)).sum()), 0.0),
        "total_variation": float((true_V.exp() - rebuilt_V.exp()).abs().sum()) / 2,
    }


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
