"""How exactly a few stored numbers give the tail's mass at any temperature: our nodes and spline against other ones.

    python benchmarks/cache_tail_nodes.py --teacher DIR --corpus FILE

Reads FILE (JSON lines: every row's strings; anything else: the text) with the teacher, takes positions at random, and
compares the tail's probability at 24 temperatures in [0.7, 5] with the float64 sum over the whole vocabulary, for four kinds
of head. The last columns round f to the codes a cache stores. `leftover^beta` scales the mass at T = 1, as others do. Not for
what a student makes of it (stage 2's benchmarks).
Legend: P positions, V vocabulary, S knots.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cache.encoding import Encoding
from cache.tail import NODES, _second_derivatives
from cache.tail_codes import decode_odds, encode_odds, odds_of

Floats = NDArray[np.float64]
TEMPERATURES = (0.7, 0.72, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1, 1.2, 1.35, 1.5, 1.7, 1.85, 2.0, 2.2, 2.5, 2.8, 3.0, 3.33, 3.7,
                4.0, 4.5, 5.0)  # fmt: skip
HEADS = {"k 8": (8, 1.0), "k 16": (16, 1.0), "k 16, top_p 0.9": (16, 0.9), "k 64, top_p 0.99": (64, 0.99)}
SETS = {
    "ours": NODES,
    "ours without 1.15": (0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.45),
    "ours without 0.4": (0.25, 0.55, 0.7, 0.85, 1.0, 1.15, 1.45),
    "every second of ours": (0.25, 0.55, 0.85, 1.0, 1.45),
    "five": (0.25, 0.5, 0.75, 1.0, 1.4),
    "seven": (0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.45),
    "nine": (0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.15, 1.3, 1.45),
}


def spline(knots: Floats, beta: float) -> Floats:
    """Weights [S] of the not-a-knot cubic spline through `knots`."""
    piece = int(np.clip(np.searchsorted(knots, beta, side="right") - 1, 0, len(knots) - 2))
    width = knots[piece + 1] - knots[piece]
    right = (beta - knots[piece]) / width
    weights, left, bends = np.zeros(len(knots)), 1 - right, _second_derivatives(knots)
    weights[piece], weights[piece + 1] = left, right
    return weights + width**2 / 6 * ((left**3 - left) * bends[piece] + (right**3 - right) * bends[piece + 1])


def polynomial(knots: Floats, beta: float) -> Floats:
    """Weights [S] of the one polynomial through all of them (Lagrange)."""
    return np.array([np.prod([(beta - other) / (knot - other) for other in knots if other != knot]) for knot in knots])


def straight(knots: Floats, beta: float) -> Floats:
    """Weights [S] of straight lines from knot to knot."""
    return np.array([np.interp(beta, knots, row) for row in np.eye(len(knots))])


INTERPOLANTS: dict[str, Callable[[Floats, float], Floats]] = {
    "spline": spline, "polynomial": polynomial, "lines": straight,
}  # fmt: skip


@dataclass(frozen=True)
class Truth:
    """One kind of head: float64 sums over head and tail at every beta asked for."""

    sizes_P: Floats
    vocab: int
    tail: dict[float, Floats]
    head: dict[float, Floats]

    def knots(self, nodes: tuple[float, ...], rounded: bool) -> Floats:
        """f [S, P] at 0 and the nodes; `rounded` as a cache stores it."""
        nothing, steps = np.log(self.vocab - self.sizes_P), Encoding(vocab_size=self.vocab, k=1)
        if not rounded:
            return np.stack([nothing, *(self.tail[node] for node in nodes)])
        mass, _ = decode_odds(encode_odds(odds_of(self.tail[1.0]), steps.odds_step), steps.odds_step)
        rows = [nothing]
        for node in nodes:
            chord = nothing + node * (mass - nothing)
            rows.append(
                mass if node == 1 else chord + np.rint((self.tail[node] - chord) / steps.gap_step) * steps.gap_step
            )
        return np.stack(rows)

    def errors(self, estimate: dict[float, Floats]) -> Floats:
        """|tail probability - true one| [temperatures, P]."""
        rows = []
        for temperature in TEMPERATURES:
            beta = 1 / temperature
            ours, true = (1 / (1 + np.exp(self.head[beta] - f)) for f in (estimate[beta], self.tail[beta]))
            rows.append(np.abs(ours - true))
        return np.stack(rows)


def read_text(path: Path) -> list[str]:
    """Texts of a corpus file."""
    if path.suffix != ".jsonl":
        return [path.read_text(encoding="utf-8")]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return ["\n".join(value for value in row.values() if isinstance(value, str)) for row in rows]


@torch.inference_mode()
def log_probabilities(teacher: str, texts: list[str], positions: int) -> torch.Tensor:
    """float64 [P, V]: at most 8 random positions of random texts, until there are enough."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32, use_safetensors=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    rng, found = np.random.default_rng(0), 0
    parts: list[torch.Tensor] = []
    while found < positions:
        ids = tokenizer(texts[int(rng.integers(len(texts)))]).input_ids
        start = int(rng.integers(max(1, len(ids) - 256)))
        ids = ids[start : start + 256]
        if not ids:
            continue
        places = rng.choice(len(ids), min(8, len(ids), positions - found), replace=False)
        parts.append(model(torch.tensor([ids])).logits[0, places].double().log_softmax(1))
        found += len(places)
    return torch.cat(parts)


def truth(sorted_PV: torch.Tensor, k: int, top_p: float, betas: list[float]) -> Truth:
    """Sums over head and tail. `sorted_PV` is float64, falling along V."""
    sizes_P = (sorted_PV[:, :k].exp().cumsum(1) < top_p).sum(1).add(1).clamp(max=k) if top_p < 1 else (
        torch.full((len(sorted_PV),), k))  # fmt: skip
    inside_PV = torch.arange(sorted_PV.shape[1]) < sizes_P[:, None]
    tail_PV, head_PK = (
        sorted_PV.masked_fill(inside_PV, -torch.inf),
        sorted_PV[:, :k].masked_fill(~inside_PV[:, :k], -torch.inf),
    )
    return Truth(
        sizes_P.double().numpy(),
        sorted_PV.shape[1],
        {beta: (beta * tail_PV).logsumexp(1).numpy() for beta in betas},
        {beta: (beta * head_PK).logsumexp(1).numpy() for beta in betas},
    )


def row(name: str, how: str, errors: Floats, rounded: Floats | None) -> str:
    worst = TEMPERATURES[int(errors.max(axis=1).argmax())]
    line = f"{name:<26}{how:<12}{errors.max():>10.5f}{worst:>7g}{errors.mean():>10.5f}"
    return line + (f"{rounded.max():>14.5f}{rounded.mean():>10.5f}" if rounded is not None else "")


def table(found: Truth) -> list[str]:
    """All sets and interpolants for one kind of head."""
    lines = [f"{'nodes':<26}{'between':<12}{'worst':>10}{'at T':>7}{'mean':>10}{'worst, stored':>14}{'mean':>10}"]
    for name, nodes in SETS.items():
        knots, exact_f, stored_f = np.array((0.0, *nodes)), found.knots(nodes, False), found.knots(nodes, True)
        for how, weights in INTERPOLANTS.items():
            at = {beta: weights(knots, beta) for beta in (1 / temperature for temperature in TEMPERATURES)}
            exact, stored = (found.errors({beta: w @ f for beta, w in at.items()}) for f in (exact_f, stored_f))
            if how == "spline" or name in ("ours", "five"):
                lines.append(row(f"{name} ({len(nodes)})", how, exact, stored))
    lines.append(
        row("leftover^beta (1)", "power", found.errors({1 / t: found.tail[1.0] / t for t in TEMPERATURES}), None)
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="model directory or hub id")
    parser.add_argument("--corpus", required=True, type=Path, help="JSON lines or plain text")
    parser.add_argument("--positions", type=int, default=300)
    options = parser.parse_args()
    logp_PV = log_probabilities(options.teacher, read_text(options.corpus), options.positions)
    sorted_PV = logp_PV.sort(dim=1, descending=True).values
    betas = sorted(
        {1 / temperature for temperature in TEMPERATURES} | {node for nodes in SETS.values() for node in nodes}
    )
    print(f"{len(sorted_PV)} positions, vocabulary {sorted_PV.shape[1]}, {len(TEMPERATURES)} temperatures in [0.7, 5]")
    for name, (k, top_p) in HEADS.items():
        print(f"\nhead: {name}")
        print("\n".join(table(truth(sorted_PV, k, top_p, betas))))


if __name__ == "__main__":
    main()
