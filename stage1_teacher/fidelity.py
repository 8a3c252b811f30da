"""How good is the record? Measured on sampled positions while the teacher's full logits are still there.

Compares the true p_T with what a reader rebuilds from the stored, quantised record: the head, the tail's mass from the
nodes, and within the tail the stored shape (an even tail where the cache keeps none).
Sums travel in each shard's summary, so a capture that goes on after a crash reports the same.

The gradient of KL(p_T || q_T) with respect to a student's logits is (q_T - p_T) / T, so it needs a student. Ours is the teacher
at twice the temperature, q_T = p_2T: it knows the teacher's order of tokens and is unsure of it, as a student in the midst of
its training is. It takes nothing but the logits at hand, is the same on every run, and flatters nobody: against an even q the
gradient is nearly p_T itself, its head above all, and every record would look right.
Legend: S sampled positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cache.decoding import decode_window
from cache.encoding import Encoding, encode_window
from cache.prior import Prior
from cache.record import CachedWindow
from cache.shape import Basis
from cache.tail import node_weights

SUMS = (
    "kept_mass",
    "tail_mass_error",
    "kl",
    "total_variation",
    "gradient_angle",
    "gradient_norm_ratio",
    "gradient_rms",
)
STUDENT = 2.0  # the reference student is the teacher at this many times the temperature
SHORTEST = 1e-9  # a gradient below this is the rounding of float64: there is nothing to learn


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


def as_stored(window: CachedWindow, encoding: Encoding, prior: Prior | None = None) -> CachedWindow:
    """The window as a reader will see it, rounded to the cache's steps."""
    return decode_window(
        encode_window(window, encoding, prior),
        encoding,
        prior,
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
        self._last: tuple[CachedWindow, int, Tensor] | None = None  # asked for again at the next temperature

    def log_p(self, window: CachedWindow, position: int, beta: float) -> Tensor:
        """log p_T, float64 [V]."""
        ids_K, head_K = _head(window, position, beta)
        z_V = (beta * self._logits(window, position)).double()
        z_V[ids_K] = -torch.inf
        rest = torch.tensor(log_tail(window, position, len(z_V) - len(ids_K), beta), dtype=torch.float64)
        if len(ids_K) < len(z_V):
            z_V += rest - z_V.logsumexp(dim=0)
        log_z = torch.logaddexp(head_K.logsumexp(dim=0), rest)
        z_V[ids_K] = head_K
        return z_V - log_z

    def _logits(self, window: CachedWindow, position: int) -> Tensor:
        """Of the tail's shape alone, float32 [V]."""
        if self._last is None or self._last[0] is not window or self._last[1] != position:
            z_V = self._mean_V + torch.from_numpy(window.coords_PR[position]) @ self._basis_RV
            self._last = (window, position, z_V)
        return self._last[2]


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
    for position, truth_V in zip(positions, truth_SV, strict=True):
        for row in sums:
            found = measure(rebuild, window, position, truth_V.double(), row["temperature"])
            for name in SUMS:
                row[name] += found[name]
            row["tail_mass_error_max"] = max(row["tail_mass_error_max"], found["tail_mass_error"])
            row["positions"] += 1


def rounded(sums: dict[str, float]) -> dict[str, float]:
    """To 8 digits: a float64's last ones depend on how many threads added it up, and all machines must write the same."""
    return {name: value if isinstance(value, int) else float(f"{value:.8g}") for name, value in sums.items()}


def measure(
    rebuild: Rebuilder, window: CachedWindow, position: int, truth_V: Tensor, temperature: float
) -> dict[str, float]:
    """What the record loses at one position and one temperature."""
    ids_K, _ = _head(window, position, 1.0)
    true_V = (truth_V / temperature).log_softmax(dim=0)
    rebuilt_V = rebuild.log_p(window, position, 1 / temperature)
    p_V, rebuilt_p_V = true_V.exp(), rebuilt_V.exp()
    kept, rebuilt_kept = float(p_V[ids_K].sum()), float(rebuilt_p_V[ids_K].sum())
    return {
        "kept_mass": kept,
        "tail_mass_error": abs(kept - rebuilt_kept),
        "kl": max(float((p_V * (true_V - rebuilt_V)).sum()), 0.0),
        "total_variation": float((p_V - rebuilt_p_V).abs().sum()) / 2,
        **gradients(p_V, rebuilt_p_V, (true_V / STUDENT).softmax(dim=0)),
    }


def gradients(true_p_V: Tensor, rebuilt_p_V: Tensor, student_q_V: Tensor) -> dict[str, float]:
    """The student's gradient under the rebuilt teacher against that under the true one, q - p; float64.

    The factor 1/T is left out: it changes no angle and no ratio.
    Returns:
        gradient_angle in degrees; gradient_norm_ratio, rebuilt over true; gradient_rms, the error's root mean square over
        the vocabulary relative to that of the true gradient.
    """
    true_V, rebuilt_V = student_q_V - true_p_V, student_q_V - rebuilt_p_V
    scale = max(float(true_V.norm()), SHORTEST)
    return {
        "gradient_angle": _degrees(true_V, rebuilt_V),
        "gradient_norm_ratio": 1 + (float(rebuilt_V.norm()) - float(true_V.norm())) / scale,
        "gradient_rms": float((rebuilt_V - true_V).norm()) / scale,
    }


def _degrees(first_V: Tensor, second_V: Tensor) -> float:
    """Angle between two vectors, exact where an arc cosine has no digits left (Kahan, "How futile are mindless ...", 2006).

    90 where only one of them points anywhere, 0 where neither does.
    """
    lengths = float(first_V.norm()), float(second_V.norm())
    if min(lengths) < SHORTEST:
        return 0.0 if max(lengths) < SHORTEST else 90.0
    first_V, second_V = first_V / lengths[0], second_V / lengths[1]
    return math.degrees(2 * math.atan2(float((first_V - second_V).norm()), float((first_V + second_V).norm())))


def log_tail(window: CachedWindow, position: int, others: int, beta: float) -> float:
    """f(beta) of one position; -inf where the head is the whole vocabulary."""
    if others == 0:
        return -math.inf
    weights = node_weights(beta)
    return float(weights[0] * math.log(others) + weights[1:] @ window.tail_PN[position].astype(np.float64))
