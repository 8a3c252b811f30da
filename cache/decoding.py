"""From bytes back to CachedWindows, several at a time: the inverse of cache/encoding.py.

What belongs to a position does not ask whose position it is: windows lie behind one another in every array and are decoded
as if they were one, so that what a call of numpy costs is paid once for all of them. Not for compression (cache/frames.py)
and not for files (cache/reader.py). FORMAT.md says the same in words.
Legend: W windows, P positions of all of them, E head entries of all, R directions, C columns (cache/columns.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache.columns import FULL, OTHERS, decode_columns, high_parts, whole
from cache.encoding import Codes, Encoding
from cache.id_codes import LARGE, MISSED, Heads, decode_heads, decode_ids, heads_size, low_width
from cache.packing import Bytes, beside, join, packed_size, spans
from cache.prior import Prior
from cache.record import CachedWindow
from cache.tail_codes import NO_TAIL, decode_gaps, log_of_rest, look_up_odds
from cache.value_codes import around, below_best

_NOTHING = np.zeros(0, "<u2")


class _Cutter:
    """Takes one piece after another from a window's bytes."""

    def __init__(self, codes: Codes) -> None:
        self._raw = join(codes.sections)
        self._place = 0

    def take(self, count: int) -> Bytes:
        start, self._place = self._place, self._place + count
        if self._place > len(self._raw):
            raise ValueError("fewer bytes than its own numbers ask for")
        return self._raw[start : self._place]

    def words(self, count: int) -> NDArray[np.uint16]:
        """Pairs of bytes."""
        return np.frombuffer(self.take(2 * count).tobytes(), "<u2") if count else _NOTHING

    def end(self) -> None:
        """What is left is padding."""
        if self._place < len(self._raw) and self._raw[self._place :].any():
            raise ValueError("bytes behind its end")


@dataclass(frozen=True, slots=True)
class _Pieces:
    """What lies between a window's heads and its leftovers. The ids are the first token, tokens outside their heads, each
    head's best, and the others."""

    gaps: Bytes
    ids: tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]
    high: NDArray[np.int32]
    low: Bytes
    gold: Bytes


def decode_window(
    codes: Codes, encoding: Encoding, prior: Prior | None = None, *, window_id: str, document: str, prompt_tokens: int
) -> CachedWindow:
    """The inverse of encode_window, up to half a step of each number.

    Raises:
        ValueError: the codes cannot have come from encode_window (a damaged or hostile file).
    """
    return decode_windows([codes], encoding, prior, [(window_id, document, prompt_tokens)])[0]


def decode_windows(
    windows: Sequence[Codes], encoding: Encoding, prior: Prior | None, labels: Sequence[tuple[str, str, int]]
) -> list[CachedWindow]:
    """decode_window of each, to the last bit. They share memory.

    Args:
        windows: at least one.
        encoding, prior: of all of them.
        labels: id, document and prompt tokens of each.
    Raises:
        ValueError: one of them cannot have come from encode_window.
    """
    raws, counts_W = [_Cutter(codes) for codes in windows], [codes.positions for codes in windows]
    entries_W = [codes.entries for codes in windows]
    heads, ranks_P = _heads(raws, counts_W, entries_W, encoding)
    missed = (ranks_P == MISSED).nonzero()[0]
    missed_W = _each(missed, counts_W)
    parts = [_pieces(*its, encoding, prior) for its in zip(raws, counts_W, entries_W, missed_W, strict=True)]
    high, gaps, gold = _whole(raws, parts)

    first, own, best, others = (join(ids) for ids in zip(*(part.ids for part in parts), strict=True))
    ids_E = heads.spread(best, others, np.int32)
    hit_P = heads.starts_P + np.maximum(ranks_P, 1)
    hit_P -= 1
    tokens_W = _tokens(first, _next_tokens(own, ids_E, hit_P, missed, heads), counts_W)

    values_CP = decode_columns(high, [part.low for part in parts], encoding.columns, counts_W)
    one_P, mass_P = _masses(values_CP[0], heads, encoding)
    nothing_P = log_of_rest(encoding.vocab_size, encoding.k).take(heads.sizes_P)
    tail_PN = decode_gaps(_residuals(values_CP, encoding), one_P, nothing_P, encoding.gap_step, counts_W)
    if encoding.k < LARGE:
        logprobs_E = around(gaps, mass_P, heads, encoding.value_step)
    else:
        logprobs_E = below_best(gaps, values_CP[-1], heads, encoding.value_step)
    gold_P = logprobs_E.take(hit_P)
    last = logprobs_E.take(heads.starts_P[missed] + (heads.sizes_P[missed] - 1))
    gold_P[missed] = last - gold * encoding.value_step
    coords_PR = _coordinates(values_CP, encoding)
    if prior is not None:
        coords_PR += prior.coordinates(join([tokens[:-1] for tokens in tokens_W]), ids_E[heads.starts_P])

    return [
        CachedWindow(
            id=window_id,
            document=document,
            prompt_tokens=prompt_tokens,
            tokens=tokens,
            head_sizes_P=heads.sizes_P[its],
            head_ids_E=ids_E[entries],
            head_logprobs_E=logprobs_E[entries],
            tail_PN=tail_PN[its],
            gold_P=gold_P[its],
            coords_PR=coords_PR[its],
        )
        for (window_id, document, prompt_tokens), tokens, its, entries in zip(
            labels, tokens_W, spans(counts_W), spans(entries_W), strict=True
        )
    ]


def _heads(
    raws: Sequence[_Cutter], counts_W: Sequence[int], entries_W: Sequence[int], encoding: Encoding
) -> tuple[Heads, Bytes]:
    """(Where each head's entries lie; the rank of each next token)."""
    rows = heads_size(encoding.k)
    stored = beside([raw.take(rows * count) for raw, count in zip(raws, counts_W, strict=True)], counts_W)
    sizes_P, ranks_P = decode_heads(stored.reshape(-1), stored.shape[1], encoding.k)
    heads, lasts = Heads.of(sizes_P), [end - 1 for end in accumulate(counts_W)]
    found = (heads.starts_P[lasts] + sizes_P[lasts]).tolist()
    if found != list(accumulate(entries_W)) or (
        encoding.k > encoding.vocab_size and sizes_P.max() > encoding.vocab_size
    ):
        raise ValueError("head sizes do not add up to the number of head ids")
    return heads, ranks_P


def _each(places: NDArray[np.int64], counts_W: Sequence[int]) -> list[int]:
    """How many of `places`, rising, lie in each window."""
    if len(counts_W) == 1:
        return [len(places)]
    ends = places.searchsorted(list(accumulate(counts_W)))
    return [end - start for start, end in pairwise([0, *ends.tolist()])]


def _pieces(
    raw: _Cutter, positions: int, entries: int, missed: int, encoding: Encoding, prior: Prior | None
) -> _Pieces:
    """What follows a window's heads. In FORMAT.md's order."""
    gaps = raw.take(entries - positions)
    first = raw.take(1 + missed + entries)
    layout = encoding.columns
    high_size, low_size = layout.sizes(positions)
    high = high_parts(raw.take(high_size), len(layout.low_C) * positions)
    low = raw.take(low_size)
    ids_I = _ids(first, raw, encoding, prior)
    gold = raw.take(missed)
    best, others = 1 + missed, 1 + missed + positions
    return _Pieces(gaps, (ids_I[:1], ids_I[1:best], ids_I[best:others], ids_I[others:]), high, low, gold)


def _whole(
    raws: Sequence[_Cutter], parts: Sequence[_Pieces]
) -> tuple[NDArray[np.int32], NDArray[Any], NDArray[np.int32]]:
    """(High parts, gaps, gold) of all windows, with what the full ones among them leave over. Then each window ends."""
    kinds_W: list[list[NDArray[Any]]]
    kinds_W = [[part.high for part in parts], [part.gaps for part in parts], [part.gold for part in parts]]
    high, gaps, gold = (join(kind_W) for kind_W in kinds_W)
    full = [(codes == top).nonzero()[0] for codes, top in ((high, FULL), (gaps, 255), (gold, 255))]
    counts = [_each(places, [len(its) for its in kind_W]) for places, kind_W in zip(full, kinds_W, strict=True)]
    over = [[raw.words(count) for count in its] for raw, its in zip(raws, zip(*counts, strict=True), strict=True)]
    for raw in raws:
        raw.end()
    over_high, over_gaps, over_gold = (join(its) for its in zip(*over, strict=True))
    high[full[0]] = whole(over_high)
    if len(over_gaps):
        gaps = gaps.astype(np.int32)
        gaps[full[1]] += over_gaps
    gold = gold.astype(np.int32)
    gold[full[2]] += over_gold
    return high, gaps, gold


def _ids(first: Bytes, raw: _Cutter, encoding: Encoding, prior: Prior | None) -> NDArray[Any]:
    """All ids of a window, [I]."""
    large = int(np.count_nonzero(first >= encoding.direct)) if encoding.direct else len(first)
    low, further = raw.take(large), packed_size(large * (low_width(encoding.vocab_size, encoding.direct) - 8), 1)
    ids_I = decode_ids(first, low, raw.take(further), encoding.vocab_size, encoding.direct)
    if ids_I.max() >= encoding.vocab_size:
        raise ValueError(f"token id outside the vocabulary of {encoding.vocab_size}")
    return ids_I if prior is None else prior.ids(ids_I)


def _next_tokens(
    own: NDArray[Any], ids_E: NDArray[np.int32], hit_P: NDArray[np.int64], missed: NDArray[np.int64], heads: Heads
) -> NDArray[np.int32]:
    """The token each position predicts, [P]; one that is said to be outside the head must be."""
    next_P = ids_E.take(hit_P)
    if len(missed):
        wanted = own.astype(np.int32)
        next_P[missed] = wanted
        if heads.hold(missed, wanted, ids_E):
            raise ValueError("a token said to be outside the head that is in it")
    return next_P


def _tokens(first_W: NDArray[Any], next_P: NDArray[np.int32], counts_W: Sequence[int]) -> list[NDArray[np.int32]]:
    """Each window's tokens."""
    tokens = np.empty(len(next_P) + len(first_W), np.int32)
    found = [tokens[its] for its in spans([1 + count for count in counts_W])]
    for own, first, its in zip(found, first_W.tolist(), spans(counts_W), strict=True):
        own[0], own[1:] = first, next_P[its]
    return found


def _masses(
    odds_P: NDArray[np.int32], heads: Heads, encoding: Encoding
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(f(1), log of the head's mass)."""
    if encoding.k >= encoding.vocab_size and (odds_P[heads.sizes_P == encoding.vocab_size] != NO_TAIL).any():
        raise ValueError("a tail beside a head that is the whole vocabulary")
    return look_up_odds(odds_P, encoding.odds_step)


def _coordinates(values_CP: NDArray[np.int32], encoding: Encoding) -> NDArray[np.float32]:
    """What is stored of them, [P, R]."""
    coords_PR = np.empty((values_CP.shape[1], encoding.directions), np.float32)
    if encoding.directions:
        np.multiply(values_CP[2 : 2 + encoding.directions].T, encoding.coord_step, out=coords_PR, casting="unsafe")
    return coords_PR


def _residuals(values_CP: NDArray[np.int32], encoding: Encoding) -> NDArray[np.int32]:
    """At the first node and at the others, [1 + OTHERS, P]."""
    if not encoding.directions:
        return values_CP[1 : 2 + OTHERS]
    return np.concatenate([values_CP[1:2], values_CP[2 + encoding.directions :][:OTHERS]])
