"""Documents that came before: the same text, or nearly the same by MinHash and locality-sensitive hashing.

After Broder 1997 (MinHash), Indyk and Motwani 1998 (bands) and Li and König 2010 (8 bits of each minimum are enough to
verify a candidate), as text-dedup does for The Stack, but in a stream: the first of a cluster stays, and what is remembered
is bounded. Own arithmetic, in whole numbers only: which documents are dropped decides which windows a cache has, so it must
be the same on every machine and with every version of a library (datasketch changed its permutations in 2.0; the tests
compare with it). Not for windows that repeat (shared/windows.py) nor for evaluation tasks (shared/decontaminate.py).
Legend: S shingles, P permutations, B bands of R rows each.
"""

from __future__ import annotations

import hashlib
import math
import re
import zlib

import numpy as np
from numpy.typing import NDArray

from shared.seen import FirstHolders

PERMUTATIONS = 128  # the estimate of a similarity s has a standard error of sqrt(s (1 - s) / 128): 0.03 at s = 0.85
SHINGLE = 5  # tokens in a row; BigCode's choice for The Stack, but here operators and brackets are tokens too
MISSED = 0.01  # share of pairs exactly as similar as the threshold that no band brings together
NOTHING = 0xFFFFFFFF  # every minimum over no shingle
_CHUNK = 512  # shingles at a time: [512, 128] uint32 stay in a core's cache
_TOKEN = re.compile(rb"\w+|[^\w\s]")
_ODD = np.uint64(0x9E3779B97F4A7C15)

_RAW = np.frombuffer(hashlib.shake_256(b"codestill near duplicates").digest(8 * PERMUTATIONS), "<u4").astype(np.uint32)
_FACTOR_P, _OFFSET_P = _RAW[:PERMUTATIONS] | np.uint32(1), _RAW[PERMUTATIONS:]  # h -> factor * h + offset, a bijection


def text_hash(text: str) -> int:
    """64 bits of a text; how its lines end, blanks before that, and blank lines around the text do not count."""
    lines = "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")
    return int.from_bytes(hashlib.blake2b(lines.encode(), digest_size=8).digest(), "little")


def signature(text: str) -> NDArray[np.uint32]:
    """uint32 [P]: the least value of each permutation over the hashed shingles; of no shingle the largest number."""
    shingles_S = shingle_hashes(text)
    least_P = np.full(PERMUTATIONS, NOTHING, np.uint32)
    for start in range(0, len(shingles_S), _CHUNK):
        hashed_SP = shingles_S[start : start + _CHUNK, None] * _FACTOR_P + _OFFSET_P  # modulo 2^32
        np.minimum(least_P, hashed_SP.min(axis=0), out=least_P)
    return least_P


def shingle_hashes(text: str) -> NDArray[np.uint32]:
    """uint32 [S]: every run of SHINGLE tokens, hashed; of a shorter text the whole as one run."""
    tokens = np.array([*map(zlib.crc32, _TOKEN.findall(text.encode()))], np.uint64)
    length = min(SHINGLE, len(tokens))
    if length == 0:
        return np.empty(0, np.uint32)
    runs_S = np.zeros(len(tokens) - length + 1, np.uint64)
    for place in range(length):
        runs_S = runs_S * _ODD + tokens[place : place + len(runs_S)]
    return (_mixed(runs_S) >> np.uint64(32)).astype(np.uint32)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser: every bit of the input moves every bit of the output."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def bands_for(threshold: float) -> tuple[int, int]:
    """(B, R) with B * R <= P: the most rows a band with which a pair at the threshold is missed by at most MISSED."""
    for rows in range(PERMUTATIONS, 1, -1):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISSED:
            return PERMUTATIONS // rows, rows
    return PERMUTATIONS, 1


class NearDuplicates:
    """The documents that were kept, to compare the next one with.

    Args:
        threshold: Jaccard similarity of the sets of shingles, estimated, from which on two documents are nearly the same.
        remember: documents that are remembered at most, about 1 kB each; when there are so many, the older half is
            forgotten.
    """

    def __init__(self, threshold: float, remember: int) -> None:
        self._bands, self._rows = bands_for(threshold)
        chance = 1 / 256  # two unequal minima have 8 equal bits
        self._needed = math.ceil(PERMUTATIONS * (threshold * (1 - chance) + chance) - 1e-9)
        self._half = max(1, remember // 2)
        self._older, self._newer = _Remembered(), _Remembered()

    def like(self, text: str, name: str) -> str | None:
        """The name of an earlier document that is nearly the same; None if there is none, and then this one is kept.

        A text without any token is like nothing.
        """
        signature_P = signature(text)
        if signature_P.min() == NOTHING:
            return None
        keys = self._keys(signature_P)
        bits_P = ((signature_P * np.uint32(0x9E3779B1)) >> np.uint32(24)).astype(np.uint8)
        for remembered in (self._older, self._newer):
            if (found := remembered.like(keys, bits_P, self._needed)) is not None:
                return found
        if len(self._newer.names) == self._half:
            self._older, self._newer = self._newer, _Remembered()
        self._newer.add(keys, bits_P, name)
        return None

    def _keys(self, signature_P: NDArray[np.uint32]) -> list[int]:
        """B numbers; two documents share one where all R rows of that band are equal."""
        rows_BR = signature_P[: self._bands * self._rows].reshape(self._bands, self._rows).astype(np.uint64)
        keys_B = np.arange(1, self._bands + 1, dtype=np.uint64)
        for row in range(self._rows):
            keys_B = keys_B * _ODD + rows_BR[:, row]
        found: list[int] = _mixed(keys_B).tolist()
        return found


class _Remembered:
    """Documents by number: names, 8 bits of each minimum, and which was the first with a band's key."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._bits = np.empty((1024, PERMUTATIONS), np.uint8)
        self._first = FirstHolders()

    def like(self, keys: list[int], bits_P: NDArray[np.uint8], needed: int) -> str | None:
        candidates = sorted({holder for key in keys if (holder := self._first.holder(key)) is not None})
        equal = np.count_nonzero(self._bits[candidates] == bits_P, axis=1)
        found = next((number for number, count in zip(candidates, equal, strict=True) if count >= needed), None)
        return None if found is None else self.names[found]

    def add(self, keys: list[int], bits_P: NDArray[np.uint8], name: str) -> None:
        number = len(self.names)
        if number == len(self._bits):
            self._bits = np.concatenate([self._bits, np.empty_like(self._bits)])
        self._bits[number] = bits_P
        self.names.append(name)
        for key in keys:
            self._first.add_holder(key, number)
