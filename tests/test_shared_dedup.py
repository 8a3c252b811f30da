"""Near and exact duplicates: estimates against the truth and against datasketch, clusters, bounds, fixed numbers."""

from __future__ import annotations

import hashlib
import math
import random
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from datasketch import MinHash

from shared.corpus import CorpusConfig, read_documents
from shared.dedup import (
    _FACTOR_P,
    _OFFSET_P,
    PERMUTATIONS,
    SHINGLE,
    NearDuplicates,
    bands_for,
    shingle_hashes,
    signature,
    text_hash,
)
from shared.seen import FirstHolders

VOCABULARY = [f"{letter}{other}{third}" for letter in "abcdefgh" for other in "klmnopqr" for third in "stuvwxyz"]


def text_of(rng: random.Random, tokens: int) -> list[str]:
    return rng.choices(VOCABULARY, k=tokens)


def changed(rng: random.Random, words: list[str], places: int) -> list[str]:
    """The same words but for so many places, each at least a shingle from the next."""
    other = list(words)
    for place in rng.sample(range(0, len(words), SHINGLE + 1), places):
        other[place] = "zzz" + other[place]
    return other


def jaccard(first: str, second: str) -> float:
    one, two = set(shingle_hashes(first).tolist()), set(shingle_hashes(second).tolist())
    return len(one & two) / len(one | two)


def pairs(count: int) -> list[tuple[str, str]]:
    rng, found = random.Random(1), []
    for number in range(count):
        words = text_of(rng, rng.randrange(60, 400))
        found.append((" ".join(words), " ".join(changed(rng, words, number % (len(words) // (SHINGLE + 1))))))
    return found


def test_estimates_are_as_good_as_datasketchs() -> None:
    """No bias, and the error that 128 permutations must have; the same for datasketch on the same shingles."""
    ours, theirs, expected = [], [], []
    for first, second in pairs(120):
        truth = jaccard(first, second)
        ours.append(float((signature(first) == signature(second)).mean()) - truth)
        sketches = []
        for text in (first, second):
            sketches.append(MinHash(PERMUTATIONS, seed=7, hashfunc=int, scheme="affine32"))
            sketches[-1].update_batch(shingle_hashes(text).tolist())
        theirs.append(sketches[0].jaccard(sketches[1]) - truth)
        expected.append(truth * (1 - truth) / PERMUTATIONS)
    spread = math.sqrt(float(np.mean(expected)))
    for errors in (ours, theirs):
        assert abs(float(np.mean(errors))) < 4 * spread / math.sqrt(len(errors))
        assert 0.7 * spread < float(np.sqrt(np.mean(np.square(errors)))) < 1.3 * spread


def by_hand(text: str) -> list[int]:
    """The signature in plain whole numbers, as shared/dedup.py says it."""
    raw = hashlib.shake_256(b"codestill near duplicates").digest(8 * PERMUTATIONS)
    numbers = struct.unpack(f"<{2 * PERMUTATIONS}I", raw)
    tokens = [zlib.crc32(token) for token in re.findall(rb"\w+|[^\w\s]", text.encode())]
    shingles = []
    for start in range(len(tokens) - SHINGLE + 1):
        value = 0
        for token in tokens[start : start + SHINGLE]:
            value = (value * 0x9E3779B97F4A7C15 + token) % 2**64
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            value = (value ^ value >> shift) * factor % 2**64
        shingles.append((value ^ value >> 31) >> 32)
    pairs = zip(numbers[:PERMUTATIONS], numbers[PERMUTATIONS:], strict=True)
    return [min(((factor | 1) * shingle + offset) % 2**32 for shingle in shingles) for factor, offset in pairs]


def test_the_arithmetic_is_fixed() -> None:
    """Which documents go must be the same on every machine and in every release."""
    text = "def größe(x):\n    return x + 1\n" * 40 + "print(größe(2))\n"
    assert signature(text).tolist() == by_hand(text)
    assert signature(text).dtype == np.uint32
    assert text_hash("x = 1\n") == int.from_bytes(hashlib.blake2b(b"x = 1", digest_size=8).digest(), "little")


def test_operators_are_tokens_and_layout_is_not() -> None:
    assert len(shingle_hashes("a + b")) == 1 and len(shingle_hashes("")) == 0
    assert len(shingle_hashes("f(a, b) - 1")) == 8 - SHINGLE + 1
    same, other = "def f(a, b): return a + b", "def f(a, b): return a - b"
    assert jaccard(same, same.replace(" ", "\n\t")) == 1 > jaccard(same, other)
    assert jaccard("größe = 'ä'", "größe = 'ö'") < 1


def test_no_pair_above_the_threshold_is_lost_to_the_bands() -> None:
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99, 1.0):
        bands, rows = bands_for(threshold)
        assert bands * rows <= PERMUTATIONS
        assert (1 - threshold**rows) ** bands <= 0.01
    assert bands_for(0.85) == (16, 8)
    rng = random.Random(2)
    words = text_of(rng, 300)
    for _ in range(40):  # each changed in one place: 5 of 296 shingles
        near = NearDuplicates(0.85, 10)
        assert near.like(" ".join(words), "first") is None
        assert near.like(" ".join(changed(rng, words, 1)), "second") == "first"


def test_the_first_of_a_cluster_stays_and_others_pass() -> None:
    rng = random.Random(3)
    near = NearDuplicates(0.85, 100)
    originals = [text_of(rng, 200) for _ in range(20)]
    for number, words in enumerate(originals):
        assert near.like(" ".join(words), f"d{number}") is None
    for number, words in enumerate(originals):
        assert near.like(" ".join(changed(rng, words, 1)), "again") == f"d{number}"
        assert near.like(" ".join(changed(rng, words, 20)), "far") is None  # about 0.36 alike


def test_what_is_only_somewhat_alike_is_verified_and_passes() -> None:
    """Similarity 0.55 shares a band of two rows nearly always; the estimate keeps the document."""
    rng = random.Random(4)
    near, words = NearDuplicates(0.7, 100), text_of(rng, 600)
    assert near.like(" ".join(words), "first") is None
    other = " ".join(changed(rng, words, 34))
    assert 0.5 < jaccard(" ".join(words), other) < 0.6
    assert near.like(other, "second") is None
    assert near.like(" ".join(changed(rng, other.split(), 0)), "third") == "second"


def test_the_older_half_is_forgotten() -> None:
    rng = random.Random(5)
    near, texts = NearDuplicates(0.9, 8), [" ".join(text_of(rng, 40)) for _ in range(9)]
    assert [near.like(text, str(number)) for number, text in enumerate(texts)] == [None] * 9
    assert [near.like(text, "again") for text in texts[4:]] == ["4", "5", "6", "7", "8"]  # the half before and this one
    assert near.like(texts[0], "again") is None


def test_memory_is_what_is_stated() -> None:
    rng, near = np.random.default_rng(0), NearDuplicates(0.85, 10**6)
    remembered, worst = near._newer, 0.0
    for number in range(1500):
        signature_P = rng.integers(0, 2**32, PERMUTATIONS, dtype=np.uint32)
        remembered.add(near._keys(signature_P), np.zeros(PERMUTATIONS, np.uint8), f"rows.jsonl:{number}")
        table = remembered._first
        held = remembered._bits.nbytes + len(table._slots) * (table._slots.itemsize + table._holders.itemsize)
        worst = max(worst, held / (number + 1)) if number > 1000 else 0.0
    assert 500 < worst < 950  # and the name


def test_the_table_agrees_with_a_dict() -> None:
    rng, table, reference = random.Random(6), FirstHolders(), dict[int, int]()
    keys = [rng.getrandbits(64) for _ in range(3000)] + [2**64 - 1, 5, 5 + 1024, 5 + 2048]
    for holder, key in enumerate([*keys, *rng.sample(keys, 1000)]):
        assert table.holder(key) == reference.get(key)
        table.add_holder(key, holder)
        reference.setdefault(key, holder)
    assert all(table.holder(key) == holder for key, holder in reference.items())
    assert table.holder(rng.getrandbits(64)) is None


def test_exact_means_but_for_line_ends_and_blanks_at_them() -> None:
    assert text_hash("a = 1\nb = 2\n") == text_hash("a = 1  \r\nb = 2") == text_hash("\na = 1\t\nb = 2\n\n")
    hashes = [
        text_hash(text) for text in ("a = 1\nb = 2", "a = 1\n\nb = 2", "a = 1\n b = 2", "A = 1\nb = 2", "a=1\nb = 2")
    ]
    assert len(set(hashes)) == 5


def test_a_text_without_tokens_is_like_nothing() -> None:
    near = NearDuplicates(0.5, 10)
    assert [near.like(text, "d") for text in ("", " \n", "", "x", "x")] == [None, None, None, None, "d"]


def test_real_code_pages_are_near_duplicates(shared_data: Path) -> None:
    """The standard library's code pages differ in few lines; MBPP's solutions are no near duplicates of each other."""
    import encodings

    folder = Path(encodings.__file__).parent
    near, texts = NearDuplicates(0.85, 1000), sorted(folder.glob("cp*.py"))
    found = {path.stem: like for path in texts if (like := near.like(path.read_text("utf-8"), path.stem))}
    assert found["cp1140"] == "cp037" and found["cp858"] == "cp850"  # the euro sign came
    assert "cp1251" not in found
    mbpp = NearDuplicates(0.85, 1000)
    documents = list(read_documents(CorpusConfig(recipe="mbpp", path=shared_data / "mbpp.jsonl")))
    alike = {document.id: like for document in documents if (like := mbpp.like(document.text, document.id))}
    for document_id, like in alike.items():
        first, second = (next(d.text for d in documents if d.id == name) for name in (document_id, like))
        assert jaccard(first, second) > 0.75
    assert len(alike) < 0.05 * len(documents)


@pytest.mark.parametrize("tokens", [1, 4, 5, 511, 512, 513, 1030])
def test_chunks_do_not_show(tokens: int) -> None:
    words = " ".join(text_of(random.Random(tokens), tokens))
    hashed = shingle_hashes(words)
    halves = [hashed[::2], hashed[1::2]]
    direct = [(half[:, None] * _FACTOR_P + _OFFSET_P).min(axis=0) for half in halves if len(half)]
    assert np.array_equal(signature(words), np.minimum.reduce(direct))
