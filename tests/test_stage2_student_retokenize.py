"""The same text in other tokens: bytes of tokens, aligned positions, prompts, ends. Not for what is learnt from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from text_cache import OTHER, fallback_tokenizer, text_windows, texts, window_of
from tiny_model import byte_tokenizer
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from shared.errors import RunError
from shared.tokenizer import load_tokenizer
from stage2_student.retokenize import CollateRetold, Retokenizer
from stage2_student.spelling import spelling_of

KINDS = {"bytes": byte_tokenizer, "subwords": lambda: load_tokenizer(str(OTHER)), "fallback": fallback_tokenizer}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return KINDS[request.param]()


def retokenizer(student: PreTrainedTokenizerFast, most: int | None = None) -> Retokenizer:
    theirs = byte_tokenizer()
    return Retokenizer(spelling_of(theirs), spelling_of(student), (theirs.eos_token_id, None), student, most)


def test_tokens_spell_the_text(tokenizer: PreTrainedTokenizerFast) -> None:
    spelling = spelling_of(tokenizer)
    for text in ("def f(a):\n\treturn a  # né 中 \U0001f600\r\n", "x", "   y  "):
        written = spelling.bytes_of(tokenizer(text).input_ids)
        assert written.removeprefix(b" " * spelling.invents_space) == text.encode()
    assert spelling.lengths_V[tokenizer.eos_token_id] == 0
    assert len(spelling.pieces) == len(tokenizer)


def test_added_text_tokens_are_text_and_unknown_kinds_have_no_spelling() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["    ", "né"])
    spelling = spelling_of(tokenizer)
    assert spelling.pieces[-2:] == (b"    ", "né".encode())
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    assert spelling_of(PreTrainedTokenizerFast(tokenizer_object=words)) is None


def test_with_the_same_tokenizer_every_position_is_aligned_with_itself() -> None:
    retell = retokenizer(byte_tokenizer())
    for window in text_windows(3):
        told = retell(window)
        assert told.aligned_Q.all() and told.cut_bytes == 0
        for name in ("tokens", "head_sizes_P", "head_ids_E", "head_logprobs_E", "tail_PN", "gold_P"):
            assert np.array_equal(getattr(told.window, name), getattr(window, name)), name
        assert told.window.prompt_tokens == window.prompt_tokens


def test_positions_are_aligned_exactly_where_both_have_read_the_same_text(tokenizer: PreTrainedTokenizerFast) -> None:
    retell = retokenizer(tokenizer)
    ours, theirs = retell.ours, retell.theirs
    for window, (text, prompt_chars) in zip(text_windows(4), texts(4), strict=True):
        told = retell(window)
        ids = told.window.tokens.tolist()
        written = ours.bytes_of(ids).removeprefix(b" " * ours.invents_space)
        assert written == text.encode()
        assert ids[-1] == tokenizer.eos_token_id
        read = {theirs.bytes_of(window.tokens[: place + 1].tolist()): place for place in range(len(window.tokens) - 1)}
        known = [
            read.get(ours.bytes_of(ids[: place + 1]).removeprefix(b" " * ours.invents_space), -1)
            for place in range(len(ids) - 1)
        ]
        assert told.aligned_Q.tolist() == [place >= 0 for place in known]
        assert told.aligned_Q.sum() > len(ids) / 2
        sizes = told.window.head_sizes_P[told.aligned_Q]
        assert sizes.tolist() == window.head_sizes_P[[place for place in known if place >= 0]].tolist()
        assert np.array_equal(told.window.tail_PN[told.aligned_Q], window.tail_PN[[p for p in known if p >= 0]])
        prompt = ours.bytes_of(ids[: told.window.prompt_tokens]).removeprefix(b" " * ours.invents_space)
        assert len(prompt) <= len(text[:prompt_chars].encode())
        assert len(ours.bytes_of(ids[: told.window.prompt_tokens + 1])) - ours.invents_space > len(prompt)


def test_heads_follow_their_position() -> None:
    window = text_windows(1)[0]
    told = retokenizer(KINDS["subwords"]())(window)
    ends = told.window.head_sizes_P.cumsum()
    starts, sources = ends - told.window.head_sizes_P, window.head_sizes_P.cumsum()
    logps = {tuple(window.head_logprobs_E[e - s : e]) for s, e in zip(window.head_sizes_P, sources, strict=True)}
    for place in np.flatnonzero(told.aligned_Q):
        assert tuple(told.window.head_logprobs_E[starts[place] : ends[place]]) in logps


def test_a_piece_of_a_document_keeps_no_end_and_no_half_letters() -> None:
    """A window that was split off starts and ends anywhere, here inside é and 中."""
    raw = "é = 1\nprint(é, 2) # 中".encode()[1:-1]
    tokens = [byte_tokenizer()("é").input_ids[1], *byte_tokenizer()(" = 1\nprint(é, 2) # 中").input_ids[:-1]]
    student = KINDS["subwords"]()
    told = retokenizer(student)(window_of(tokens))
    spelling = spelling_of(student)
    assert spelling_of(byte_tokenizer()).bytes_of(tokens) == raw
    assert spelling.bytes_of(told.window.tokens.tolist()).decode() == " = 1\nprint(é, 2) # "
    assert student.eos_token_id not in told.window.tokens
    assert told.aligned_Q.mean() > 0.5


def test_a_window_without_text_is_two_ends() -> None:
    told = retokenizer(KINDS["subwords"]())(window_of([byte_tokenizer()("é").input_ids[1]] * 2))
    assert told.window.tokens.tolist() == [0, 0]
    assert not told.aligned_Q.any()


def test_a_tokenizer_that_changes_the_text_teaches_by_text_alone() -> None:
    lower = byte_tokenizer()
    lower.backend_tokenizer.normalizer = normalizers.Lowercase()
    window = window_of([*byte_tokenizer()("Class A:\n    pass\n").input_ids, 0])
    told = retokenizer(lower)(window)
    assert spelling_of(lower).bytes_of(told.window.tokens.tolist()) == b"class a:\n    pass\n"
    assert not told.aligned_Q.any()


def test_a_longer_text_is_cut_at_the_students_positions() -> None:
    student, window = KINDS["subwords"](), text_windows(1)[0]
    whole, cut = retokenizer(student)(window), retokenizer(student, most=6)(window)
    assert np.array_equal(cut.window.tokens, whole.window.tokens[:6])
    assert np.array_equal(cut.aligned_Q, whole.aligned_Q[:5])
    assert cut.cut_bytes == len(spelling_of(student).bytes_of(whole.window.tokens[6:].tolist())) > 0
    assert cut.window.prompt_tokens <= 6


def test_batches_carry_what_is_aligned_and_the_bytes_of_each_target() -> None:
    student, windows = KINDS["subwords"](), text_windows(3)
    retell, spelling = retokenizer(student), spelling_of(KINDS["subwords"]())
    batch = CollateRetold(True, 0, spelling.lengths_V, retell=retell)(windows)
    told = [retell(window) for window in windows]
    counted = [np.arange(1, len(one.window.tokens)) >= one.window.prompt_tokens for one in told]
    assert (
        batch["aligned"].tolist()
        == np.concatenate([one.aligned_Q[mask] for one, mask in zip(told, counted, strict=True)]).tolist()
    )
    targets = np.concatenate([one.window.tokens[1:][mask] for one, mask in zip(told, counted, strict=True)])
    assert batch["targets"].tolist() == targets.tolist()
    assert batch["target_bytes"].sum() == len(spelling.bytes_of(targets.tolist()))
    assert len(batch["head_sizes"]) == len(batch["targets"]) == len(batch["counted"])
    damage = RunError("shard 1", expected="a", got="b", do="c")
    assert CollateRetold(False, 0, spelling.lengths_V, retell=retell)([windows[0], damage]) == {"failure": damage}


def test_two_real_tokenizers_agree_on_real_programs(shared_data: object) -> None:
    """StarCoder2's against the shipped teacher's, on text of the former."""
    theirs, student = load_tokenizer(str(shared_data / "starcoder2-tokenizer")), KINDS["subwords"]()
    retell = Retokenizer(spelling_of(theirs), spelling_of(student), (0, None), student)
    text = (shared_data / "README.md").read_text()[:3000]
    window = replace(
        window_of([1] * (len(theirs(text).input_ids) + 1)), tokens=np.asarray([*theirs(text).input_ids, 0])
    )
    told = retell(window)
    assert spelling_of(theirs).bytes_of(window.tokens.tolist()) == text.encode()
    boundaries = retell.theirs.lengths_V[window.tokens[:-1]].cumsum()
    ends = retell.ours.lengths_V[told.window.tokens[:-1]].cumsum()
    assert told.aligned_Q.sum() == len(set(boundaries) & set(ends)) > 300


def test_a_space_that_the_caches_tokenizer_invented_is_no_text() -> None:
    theirs, student, text = fallback_tokenizer(), byte_tokenizer(), "def né():\n    return 1\n"
    ids = [*theirs(text).input_ids, theirs.eos_token_id]
    window = replace(window_of([1] * len(ids)), tokens=np.asarray(ids, np.int32), prompt_tokens=3)
    ends = (theirs.eos_token_id, theirs.bos_token_id)
    told = Retokenizer(spelling_of(theirs), spelling_of(student), ends, student)(window)
    assert ids[0] == theirs.bos_token_id
    assert spelling_of(student).bytes_of(told.window.tokens.tolist()) == text.encode()
    boundaries = spelling_of(theirs).lengths_V[ids[1:-1]].cumsum() - 1
    assert np.flatnonzero(told.aligned_Q).tolist() == [end - 1 for end in boundaries.tolist() if end]
    assert told.window.prompt_tokens == boundaries[1]
