"""Windows: ids, cutting, counting, and the whole line from a file to windows."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shared.corpus import CorpusConfig
from shared.errors import UsageError
from shared.tokenizer import load_tokenizer
from shared.windows import (
    EncodedDocument,
    LongDocuments,
    SeenIds,
    Window,
    WindowConfig,
    WindowCounts,
    cut_windows,
    read_windows,
    window_id,
)


def encoded(tokens: list[int], prompt_tokens: int = 0, name: str = "d") -> EncodedDocument:
    return EncodedDocument(name, np.asarray(tokens, dtype=np.int32), prompt_tokens)


def cut(documents: list[EncodedDocument], max_length: int, long: LongDocuments) -> tuple[list[Window], WindowCounts]:
    counts = WindowCounts()
    return list(cut_windows(documents, max_length, long, counts)), counts


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and an end: lengths can be counted by hand."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate([*letters, "<end>"])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def test_the_id_is_the_documented_hash() -> None:
    tokens = np.asarray([1, 49151, 7], dtype=np.int32)
    assert window_id(tokens, 2) == hashlib.sha256(struct.pack("<4I", 1, 49151, 7, 2)).hexdigest()[:16]
    assert window_id(tokens, 2) == "788c88aee8a21633"
    assert len({window_id(tokens, 0), window_id(tokens, 1), window_id(tokens[:2], 0)}) == 3


def test_split_makes_every_token_after_the_first_a_target_exactly_once() -> None:
    rng = random.Random(2)
    for _ in range(300):
        length, max_length = rng.randrange(2, 200), rng.randrange(2, 40)
        prompt = rng.randrange(length + 1)
        tokens = [rng.randrange(49152) for _ in range(length)]
        windows, counts = cut([encoded(tokens, prompt)], max_length, "split")
        if counts.dropped:
            continue  # a repeat by chance (max_length 2)
        targets = [int(token) for window in windows for token in window.tokens[1:]]
        assert targets == tokens[1:]
        assert all(2 <= len(window.tokens) <= max_length for window in windows)
        assert all(a.tokens[-1] == b.tokens[0] for a, b in pairwise(windows))
        taught = [
            int(t) for window in windows for i, t in enumerate(window.tokens) if i > 0 and i >= window.prompt_tokens
        ]
        assert taught == tokens[max(prompt, 1) :]  # the prompt's mask survives the cut
        assert counts.tokens == sum(len(window.tokens) for window in windows) == length + len(windows) - 1


def test_with_bos_every_window_begins_with_it_and_every_token_is_a_target_exactly_once() -> None:
    rng, bos = random.Random(3), 49152
    for _ in range(300):
        length, max_length = rng.randrange(2, 200), rng.randrange(3, 40)
        prompt = rng.randrange(length + 1)
        tokens = [bos, *(rng.randrange(49152) for _ in range(length - 1))]
        document = EncodedDocument("d", np.asarray(tokens, np.int32), prompt, np.asarray([bos], np.int32))
        windows, counts = cut([document], max_length, "split")
        if counts.dropped:
            continue  # a repeat by chance
        assert [int(token) for window in windows for token in window.tokens[1:]] == tokens[1:]
        assert all(window.tokens[0] == bos and 2 <= len(window.tokens) <= max_length for window in windows)
        taught = [
            int(t) for window in windows for i, t in enumerate(window.tokens) if i > 0 and i >= window.prompt_tokens
        ]
        assert taught == tokens[max(prompt, 1) :]
        assert windows[0].id == window_id(np.asarray(tokens[:max_length], np.int32), min(prompt, max_length))


def test_what_fits_is_one_window() -> None:
    for long in ("refuse", "split", "drop"):
        windows, counts = cut([encoded([5, 6, 7], 1)], 3, long)
        assert [(window.tokens.tolist(), window.prompt_tokens, window.document) for window in windows] == [
            ([5, 6, 7], 1, "d")
        ]
        assert windows[0].tokens.dtype == np.int32
        assert (counts.windows, counts.tokens, counts.longest, dict(counts.dropped)) == (1, 3, 3, {})


def test_refuse_names_the_document_and_the_way_out() -> None:
    with pytest.raises(UsageError) as caught:
        cut([encoded([1, 2]), encoded([1, 2, 3, 4], name="mbpp/7")], 3, "refuse")
    assert str(caught.value) == (
        "document mbpp/7: expected at most 3 tokens, got 4; raise max_length, or set long_documents to split or drop"
    )


def test_drops_are_counted_by_reason() -> None:
    documents = [
        encoded([1, 2, 3, 4]),
        encoded([9]),
        encoded([1, 2]),
        encoded([1, 2], name="again"),
        encoded([1, 2], 1),
    ]
    windows, counts = cut(documents, 3, "drop")
    assert [window.document for window in windows] == ["d", "d"]
    assert counts.dropped == {"too_long": 1, "too_short": 1, "duplicate_window": 1}
    assert (counts.windows, counts.tokens, counts.longest) == (2, 4, 4)


def test_cutting_streams() -> None:
    def endless() -> Iterator[EncodedDocument]:
        for number in range(10**9):
            yield encoded([number, number + 1])

    windows = cut_windows(endless(), 8, "refuse", WindowCounts())
    assert [int(next(windows).tokens[0]) for _ in range(3)] == [0, 1, 2]


def test_seen_ids_agree_with_a_set() -> None:
    rng, seen, reference = random.Random(3), SeenIds(), set[int]()
    values = [rng.getrandbits(64) for _ in range(5000)] + [2**64 - 1, 5, 5 + 1024, 5 + 2048]
    for value in [*values, *rng.sample(values, 2000), *values[-4:]]:
        assert seen.add(value) == (value not in reference)
        reference.add(value)


def write(path: Path, rows: list[dict[str, Any]]) -> CorpusConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return CorpusConfig(path=path, prompt="{q}", completion="{a}", licence="l")


def test_from_a_file_to_windows(tmp_path: Path) -> None:
    copied = "one two three four five six seven eight nine ten eleven twelve thirteen"
    task = {"task_id": 1, "text": copied, "code": "x"}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n")
    corpus = write(
        tmp_path / "c.jsonl",
        [
            {"q": "ab", "a": "cde", "l": "MIT"},
            {"q": "ab", "a": "cde", "l": None},
            {"q": " ", "a": "\n", "l": "MIT"},
            {"q": copied, "a": "", "l": "MIT"},
            {"q": "", "a": "x" * 30, "l": "MIT"},
        ],
    )
    config = WindowConfig.model_validate(
        {"max_length": 20, "long_documents": "drop", "decontaminate": {"against": [{"path": tmp_path / "tasks.jsonl"}]}}
    )
    windows, counts = read_windows(corpus, byte_tokenizer(), config)
    (window,) = list(windows)
    assert (window.document, len(window.tokens), window.prompt_tokens) == ("c.jsonl:1", 6, 2)
    assert window.tokens[-1] == byte_tokenizer().eos_token_id
    assert (counts.documents, counts.windows, counts.tokens, counts.longest) == (5, 1, 6, 31)
    assert counts.dropped == {"duplicate_window": 1, "too_short": 1, "contaminated": 1, "too_long": 1}
    assert counts.licences == {"MIT": 4, "": 1}
    assert counts.decontamination is not None
    assert counts.decontamination.examples == [("c.jsonl:4", "tasks.jsonl/1")]


def test_nothing_left_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    corpus = write(tmp_path / "c.jsonl", [{"q": "", "a": "x" * 30, "l": None}, {"q": "", "a": "", "l": None}])
    windows, _ = read_windows(corpus, byte_tokenizer(), WindowConfig(max_length=8, long_documents="drop"))
    with pytest.raises(UsageError) as caught:
        list(windows)
    assert str(caught.value) == (
        "corpus: expected at least one window, got none of 2 documents (too_long 1, too_short 1); "
        "look at what was dropped: raise max_length, split, or compare with other tasks"
    )


def test_the_same_corpus_gives_the_same_ids(tmp_path: Path) -> None:
    corpus = CorpusConfig.model_validate({"embedded": {"count": 20, "seed": 1}})
    runs = [[w.id for w in read_windows(corpus, byte_tokenizer(), WindowConfig(max_length=2000))[0]] for _ in range(2)]
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == len(runs[0]) > 0


def test_real_mbpp_train(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "starcoder2-tokenizer"))
    corpus = CorpusConfig(recipe="mbpp", path=shared_data / "mbpp.jsonl")
    windows, counts = read_windows(corpus, tokenizer, WindowConfig())
    found = list(windows)
    assert (counts.documents, counts.windows, counts.tokens, counts.longest) == (374, 374, 43994, 346)
    assert all(window.tokens[-1] == 0 and window.tokens.tolist().count(0) == 1 for window in found)
    first = found[0]
    assert tokenizer.decode(first.tokens[: first.prompt_tokens]).endswith('== 3\n"""\n')
    assert tokenizer.decode(first.tokens[first.prompt_tokens :]).startswith("class Pair(object): \n\tdef __init__")
    halves, counts = read_windows(corpus, tokenizer, WindowConfig(max_length=128, long_documents="split"))
    assert sum(len(window.tokens) - 1 for window in halves) == 43994 - 374  # every token after a document's first
    assert counts.windows > 374 and not counts.dropped
