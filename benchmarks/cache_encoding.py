"""Where a cache's bytes go, over a grid of heads and tail shapes, and how far above the entropy of what is stored they are.

    python -m benchmarks.cache_encoding --teacher DIR --mbpp FILE [--tokens 0] [--out DIR]
    python -m benchmarks.cache_encoding --teacher DIR --standard [--tokens 44000]      windows of 512 tokens, not of about 118

The teacher reads MBPP's training rows (or the source of this interpreter's standard library) once; every grid point re-encodes
the same records in memory as one real shard file. A frame's blocks are measured one by one. Where several parts share a block
they share its bytes: noise (low bits, low bytes, leftovers) by its own length, high parts of signed numbers by their entropies.
`rest` is what a file has beside blocks: index, HDF5, frame headers, padding; `basis` its share of the basis file.

The floor is order-0 entropy over the whole corpus, its distributions known for free: head sizes and ranks of the next token
one; ids: best ones, others, tokens that no head held; values: distances from the better one, one distribution a rank
(and best entries where they are stored); tail: log-odds, then at each node what a linear prediction from f(1) and nodes before
misses, the best of this corpus; gold of missed tokens one; coordinates (beside what the prior lets expect) one a direction;
basis: one a class of token and direction, its weights, centres and classes. A coder that sees more can go below it.

What a short window must pay whatever it holds is printed beside: its row of the index, its chunk's entry, frame and block
headers, and the tables of symbols in its blocks: what each block takes above the order-0 entropy of its own bytes, which no
table of its own comes free of. On long windows the same is spread over more tokens.
Not for what the bytes are worth (cache_fidelity.py).
Legend: P positions, E head entries, N nodes, R directions, V vocabulary.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.cache_fidelity_ours import Size, Source
from cache.basis import to_bytes
from cache.encoding import Codes, Encoding, encode_window
from cache.frames import compress, new_compressor
from cache.id_codes import LARGE, MISSED, Heads, decode_heads, low_width
from cache.packing import full, unpack
from cache.prior import Prior
from cache.record import CachedWindow
from cache.shape import Basis
from cache.shard import shard_bytes
from cache.tail import NODES, ONE
from stage1_teacher.fidelity import as_stored

HEADS = ((2, 0.9), (4, 0.9), (8, 0.9), (8, 0.95), (16, 0.9))
SHAPES = ((32, 0.15), (64, 0.1), (64, 0.07), (96, 0.04), (128, 0.025))
CENTRE = (4, 0.9), (64, 0.07)
BAR = 1.15
COLUMNS = ("heads", "ids", "values", "tail", "gold", "coords", "rest", "basis")
BLOCKS = ("heads", "gaps", "ids", "high parts", "noise")


def bits(codes: NDArray[Any]) -> float:
    """Order-0 entropy of all codes together, in bits: their count times the entropy of one."""
    _, counts = np.unique(codes, return_counts=True)
    return float(-(counts * np.log2(counts / len(codes))).sum()) if len(codes) else 0.0


def floor(windows: Sequence[CachedWindow], encoding: Encoding, prior: Prior) -> dict[str, float]:
    """Bits of each part at the floor.

    Args:
        windows: as stored, so every number is a whole number of steps.
        prior: what coordinates are stored relative to.
    """
    sizes_P, gold_P, ids_E, last_P, next_P, coords_PR, tail_PN, logprobs_E = (
        np.concatenate(parts)
        for parts in zip(
            *(
                (w.head_sizes_P, w.gold_P, w.head_ids_E, w.tokens[:-1], w.tokens[1:], w.coords_PR, w.tail_PN, w.head_logprobs_E)
                for w in windows
            ),
            strict=True,
        )
    )  # fmt: skip
    heads = Heads.of(sizes_P)
    best_P, ranks_P = ids_E[heads.starts_P], heads.ranks(next_P, ids_E)
    missed_P = ranks_P == MISSED
    steps_PR = np.rint((coords_PR - prior.coordinates(last_P, best_P)) / encoding.coord_step).astype(np.int32)
    below_P = (logprobs_E[heads.starts_P + sizes_P - 1] - gold_P)[missed_P]
    return {
        "heads": bits(sizes_P * (encoding.k + 1) + ranks_P),
        "ids": bits(best_P) + bits(ids_E[heads.others()]) + bits(next_P[missed_P]),
        "values": _values(logprobs_E, heads, encoding),
        "tail": _tail(tail_PN, sizes_P, encoding),
        "gold": bits(np.rint(below_P / encoding.value_step)),
        "coords": sum(bits(column_P) for column_P in steps_PR.T),
    }


def _values(logprobs_E: NDArray[np.float32], heads: Heads, encoding: Encoding) -> float:
    rank_E = np.arange(len(logprobs_E)) - np.repeat(heads.starts_P, heads.sizes_P)
    gaps_E = np.rint(-np.diff(logprobs_E.astype(np.float64), prepend=0) / encoding.value_step).astype(np.int64)
    gaps_E[heads.starts_P] = np.rint(-logprobs_E[heads.starts_P].astype(np.float64) / encoding.value_step)
    first = 0 if encoding.k >= LARGE else 1  # in small heads the best entry follows from the tail's mass
    return sum(bits(gaps_E[rank_E == rank]) for rank in range(first, int(rank_E.max()) + 1))


def _tail(tail_PN: NDArray[np.float32], sizes_P: NDArray[np.int32], encoding: Encoding) -> float:
    """Log-odds, then node after node what a linear prediction from the ones before misses."""
    whole_P = np.isfinite(tail_PN[:, ONE])
    f_PN, nothing_P = tail_PN[whole_P].astype(np.float64), np.log(encoding.vocab_size - sizes_P[whole_P])
    one_P = f_PN[:, ONE]
    total = bits(np.rint((one_P - np.log(-np.expm1(np.minimum(one_P, -1e-9)))) / encoding.odds_step)) + bits(whole_P)
    known = [np.ones(len(f_PN)), one_P, nothing_P]
    for node in (node for node in reversed(range(len(NODES))) if node != ONE):
        gap_P = f_PN[:, node] - nothing_P - NODES[node] * (one_P - nothing_P)
        design_PK = np.stack(known, axis=1)
        missed_P = gap_P - design_PK @ np.linalg.lstsq(design_PK, gap_P, rcond=None)[0]
        total += bits(np.rint(missed_P / encoding.gap_step))
        known.append(gap_P)
    return total


def basis_floor(basis: Basis) -> float:
    """Bits of the basis: classes, weights, centres, then one distribution for every class of token and row."""
    classes = np.unique(basis.class_V)
    entries = sum(bits(row_V[basis.class_V == number]) for number in classes for row_V in basis.codes_AV)
    return bits(basis.class_V) + bits(basis.weights_R2R.ravel()) + bits(basis.centres_AK.ravel()) + entries


def parts_of(codes: Codes, blocks: Sequence[int], encoding: Encoding, share_C: NDArray[np.float64]) -> dict[str, float]:
    """Bytes of one window's blocks by part.

    Args:
        blocks: compressed bytes of its sections.
        share_C: how the high parts' bytes divide among the columns.
    """
    heads, gaps, ids, pairs, rest = codes.sections
    layout, positions, directions = encoding.columns, codes.positions, encoding.directions
    _, ranks_P = decode_heads(heads, positions, encoding.k)
    coords_C = (np.arange(len(share_C)) >= 2) & (np.arange(len(share_C)) < 2 + directions)
    best_C = np.arange(len(share_C)) == 8 + directions
    symbols = unpack(pairs, 4, len(share_C) * positions).reshape(-1, positions)
    over_C = np.zeros(len(share_C))
    over_C[layout.order_C] = [2 * full(row_P, 4) for row_P in symbols]
    low_C = layout.low_C[:, 0] * positions / 8 + over_C
    large = int((ids >= encoding.direct).sum())
    noise = {
        "coords": low_C[coords_C].sum(),
        "values": 2 * full(gaps, 8) + low_C[best_C].sum(),
        "ids": large * low_width(encoding.vocab_size, encoding.direct) / 8,
        "gold": float((ranks_P == MISSED).sum()),
        "tail": low_C[~coords_C & ~best_C].sum(),
    }
    scale = blocks[4] / max(len(rest), 1)
    found = {part: count * scale for part, count in noise.items()}
    found["coords"] += blocks[3] * share_C[coords_C].sum()
    found["values"] += blocks[1] + blocks[3] * share_C[best_C].sum()
    found["tail"] += blocks[3] * share_C[~coords_C & ~best_C].sum()
    found["ids"] += blocks[2]
    return found | {"heads": blocks[0]}


def shares(rows: Sequence[Codes], encoding: Encoding) -> NDArray[np.float64]:
    """Share of each column in the entropy of all high parts."""
    layout = encoding.columns
    symbols_CP = np.concatenate(
        [
            unpack(row.sections[3], 4, len(layout.low_C) * row.positions).reshape(-1, row.positions)[layout.place_C]
            for row in rows
        ],
        axis=1,
    )
    found = np.array([bits(row_P) for row_P in symbols_CP])
    shares_C: NDArray[np.float64] = found / found.sum()
    return shares_C


def point(source: Source, head: tuple[int, float], shape: tuple[int, float]) -> dict[str, Any]:
    """Bytes a token of one grid point: `stored` and `floor` by part, and what each window pays for being one."""
    size = Size(*head, *shape)
    projection = source.projection(size)
    assert projection is not None
    encoding, records, basis = source.encoding(size, projection), source.records(size, projection), projection.basis
    rows = [encode_window(record, encoding, basis.prior) for record in records]
    raw, padded = len(shard_bytes(records, encoding, {}, basis.prior)), max(sum(map(len, r.sections)) for r in rows)
    compressor, share_C = new_compressor(), shares(rows, encoding)
    blocks = [compress(row.sections, padded, compressor)[1] for row in rows]
    parts = [parts_of(row, block, encoding, share_C) for row, block in zip(rows, blocks, strict=True)]
    stored = {part: sum(one[part] for one in parts) for part in parts[0]}
    stored["rest"] = raw - sum(stored.values())
    lowest = floor([as_stored(record, encoding, basis.prior) for record in records], encoding, basis.prior)
    own = [sum(bits(row.sections[place]) for row in rows) / 8 for place in range(len(BLOCKS) - 1)]
    tables = {
        name: (sum(block[place] for block in blocks) - own[place]) / len(rows) for place, name in enumerate(BLOCKS[:-1])
    }
    tokens, corpus = source.tokens, source.ahead.tokens
    return {
        "name": size.name,
        "windows": len(rows),
        "stored": {part: count / tokens for part, count in stored.items()} | {"basis": len(to_bytes(basis)) / corpus},
        "floor": {part: count / 8 / tokens for part, count in lowest.items()}
        | {"basis": basis_floor(basis) / 8 / corpus},
        "a window's own": {"index, chunk, headers, padding": stored["rest"] / len(rows), **tables},
    }


def line(name: str, cells: dict[str, float]) -> str:
    """A row of a table and its sum."""
    return f"{name:<26}" + "".join(f"{cells.get(part, 0.0):>8.2f}" for part in COLUMNS) + f"{sum(cells.values()):>9.2f}"


def explain(one: dict[str, Any], tokens: int) -> str:
    """Ratios by part, and what a window pays for being one."""
    lines = ["\nstored over floor, " + one["name"]]
    lines += [
        f"  {part:<8}{one['stored'][part] / max(lowest, 1e-9):>6.2f} x"
        for part, lowest in one["floor"].items()
        if lowest
    ]
    own, length = one["a window's own"], tokens / one["windows"]
    lines.append(f"bytes a window pays for being one ({length:.0f} tokens), and a token")
    lines += [f"  {name:<32}{count:>7.1f}{count / length:>8.3f}" for name, count in own.items()]
    without = sum(one["stored"].values()) - sum(own.values()) / length
    lines.append(f"without them: {without / sum(one['floor'].values()):.3f} x the floor")
    return "\n".join(lines)


def source_of(options: argparse.Namespace) -> Source:
    """The teacher and its text."""
    if options.standard:
        corpus = {"path": sysconfig.get_paths()["stdlib"], "glob": "*.py"}
        return Source(options.teacher, corpus, 512, options.tokens or 44_000)
    return Source(options.teacher, {"recipe": "mbpp", "path": str(options.mbpp.resolve())}, 2048, options.tokens)


def main() -> None:
    """Tables, ratio by part, bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="model directory or hub id")
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("--mbpp", type=Path, help="mbpp.jsonl")
    text.add_argument("--standard", action="store_true", help="the standard library's source")
    parser.add_argument(
        "--tokens", type=int, default=0, help="about how many are captured; 0: all, or 44,000 of --standard"
    )
    parser.add_argument("--out", type=Path, help="folder for encoding.json")
    options = parser.parse_args()
    source = source_of(options)
    head, shape = CENTRE
    grid = [*((one, shape) for one in HEADS), *((head, one) for one in SHAPES if one != shape)]
    print(f"bytes a token, stored and (below) at the floor; {source.tokens} tokens in {len(source.windows)} windows")
    print(f"{'':<26}" + "".join(f"{part:>8}" for part in COLUMNS) + f"{'all':>9}")
    found = []
    for place in grid:
        found.append(point(source, *place))
        print(line(found[-1]["name"], found[-1]["stored"]))
        print(line("", found[-1]["floor"]), flush=True)
    print(explain(next(one for one, place in zip(found, grid, strict=True) if place == CENTRE), source.tokens))
    for one in found:
        ratio = sum(one["stored"].values()) / sum(one["floor"].values())
        print(f"  {'PASS' if ratio <= BAR else 'FAIL'}  {one['name']}: {ratio:.3f} x the floor <= {BAR}")
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "encoding.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
