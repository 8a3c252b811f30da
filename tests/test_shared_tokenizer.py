"""Tokenizers: BOS and EOS exactly once, the prompt's border, special tokens in text, and telling two tokenizers apart."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from shared.errors import UsageError
from shared.tokenizer import (
    check_model_vocabulary,
    encode_document,
    fingerprint,
    front_of,
    load_tokenizer,
    require_same,
    why_not_opened,
)

END = "<|endoftext|>"
REFUSED: Any = SimpleNamespace(request=None, headers={}, status_code=403)  # all that the hub's errors ask of a response
TRAINING_TEXT = [
    "def add(a, b):\n    return a + b\n",
    "for i in range(10):\n    print(i)\n",
    "return the sum of a list\n",
] * 3


def small_tokenizer(vocab_size: int = 300, **tokens: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE as GPT-2's, trained on the spot; no BOS is added."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TRAINING_TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **(tokens or {"eos_token": END}))


def llama_tokenizer(**options: Any) -> LlamaTokenizer:
    """A tokenizer of Llama's own class: BOS in front, sentencepiece-like spaces."""
    letters = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["<unk>", "<s>", "</s>", *letters, "▁", *"abdefinrtu<>/s|", "▁a", "▁b", "re", "▁re", "fi"]
    merges = [("▁", "a"), ("▁", "b"), ("r", "e"), ("▁", "re"), ("f", "i")]
    return LlamaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=merges, **options)


def test_no_bos_where_the_tokenizer_adds_none_and_one_eos() -> None:
    tokenizer = small_tokenizer(bos_token=END, eos_token=END)
    ids, prompt_tokens = encode_document(tokenizer, "def add(a, b):\n", 0)
    assert ids.dtype == np.int32
    assert ids.tolist().count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids[:-1]) == "def add(a, b):\n"
    assert prompt_tokens == 0


@pytest.mark.parametrize("add_eos_token", [False, True])
def test_llama_gets_exactly_one_bos_and_one_eos(add_eos_token: bool) -> None:
    tokenizer = llama_tokenizer(add_bos_token=True, add_eos_token=add_eos_token)
    ids, prompt_tokens = encode_document(tokenizer, "a b", 0)
    assert tokenizer.convert_ids_to_tokens(ids.tolist()) == ["<s>", "▁a", "▁b", "</s>"]
    assert prompt_tokens == 0
    assert encode_document(tokenizer, "a b", 1)[1] == 2  # BOS and "a"
    for text in ("<s>a", "a</s>", "</s></s>"):  # spelled out in the text: no second BOS, no early end
        spelled = encode_document(tokenizer, text, 0)[0].tolist()
        assert (spelled.count(1), spelled.count(2)) == (1, 1)
        assert (spelled[0], spelled[-1]) == (1, 2)


@pytest.mark.parametrize("kind", ["LlamaTokenizerFast", "PreTrainedTokenizerFast"])
def test_a_bos_that_only_the_config_asks_for_is_added_once(tmp_path: Path, kind: str) -> None:
    """As DeepSeek-Coder's files are: a byte-level tokenizer.json that adds nothing, and `add_bos_token`."""
    plain = small_tokenizer(bos_token="<|begin|>", eos_token=END)
    plain.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    asked = json.loads(path.read_text()) | {"add_bos_token": True, "tokenizer_class": kind}
    path.write_text(json.dumps(asked))
    tokenizer = load_tokenizer(str(tmp_path))
    bos = tokenizer.bos_token_id
    assert front_of(tokenizer).tolist() == [bos] == tokenizer("")["input_ids"]
    ids, prompt_tokens = encode_document(tokenizer, "add(a)", 3)
    assert ids.tolist() == [bos, *encode_document(plain, "add(a)", 0)[0].tolist()]
    assert prompt_tokens == 1 + encode_document(plain, "add(a)", 3)[1]
    assert encode_document(tokenizer, "<|begin|>add(a)", 0)[0].tolist().count(bos) == 1
    tokenizer.save_pretrained(tmp_path / "again")
    again = load_tokenizer(str(tmp_path / "again"))
    assert fingerprint(again) == fingerprint(tokenizer) != fingerprint(plain)
    assert encode_document(again, "add(a)", 0)[0].tolist() == ids.tolist()


def test_what_stands_before_every_text() -> None:
    assert front_of(llama_tokenizer(add_bos_token=True)).tolist() == [1]
    for tokenizer in (llama_tokenizer(), small_tokenizer(), small_tokenizer(bos_token=END, eos_token=END)):
        assert front_of(tokenizer).size == 0


@pytest.mark.parametrize(
    ("kind", "got", "do"),
    [
        (
            GatedRepoError,
            "a gated one",
            "accept its terms on its hub page, then log in: `hf auth login`, or set HF_TOKEN",
        ),
        (RepositoryNotFoundError, "no such repository", "for a private one log in with `hf auth login`"),
        (RevisionNotFoundError, "no such revision", "a branch, a tag or a full commit"),
        (ConnectionError, "OSError: we could not connect", "check the name and the network, or give a local directory"),
    ],
)
def test_what_the_hub_refuses_is_said_in_plain_words(kind: Any, got: str, do: str) -> None:
    try:
        try:
            raise kind("403", response=REFUSED) if kind is not ConnectionError else kind("refused")
        except (OSError, ValueError) as cause:
            raise OSError("we could not connect\nto the hub") from cause
    except OSError as error:
        said = why_not_opened(error)
    assert got in said[0]
    assert do in said[1]


def test_an_added_sep_is_replaced_by_eos() -> None:
    tokenizer = small_tokenizer(eos_token=END)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]"})
    ends = [("[CLS]", tokenizer.cls_token_id), ("[SEP]", tokenizer.sep_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    ids = encode_document(tokenizer, "a b", 0)[0].tolist()
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.eos_token_id)
    assert tokenizer.sep_token_id not in ids


def test_empty_text_is_nothing_but_the_end() -> None:
    for tokenizer in (small_tokenizer(), llama_tokenizer(add_bos_token=True)):
        ids, prompt_tokens = encode_document(tokenizer, "", 0)
        assert (ids.tolist(), prompt_tokens) == ([tokenizer.eos_token_id], 0)


def test_a_token_that_straddles_the_border_belongs_to_the_solution() -> None:
    tokenizer = llama_tokenizer(add_bos_token=True)
    text = "ab refi"  # tokens: <s> ▁a b ▁re fi </s>
    assert tokenizer.convert_ids_to_tokens(encode_document(tokenizer, text, 0)[0].tolist())[1:-1] == [
        "▁a",
        "b",
        "▁re",
        "fi",
    ]
    assert [encode_document(tokenizer, text, chars)[1] for chars in range(1, 8)] == [2, 3, 3, 3, 4, 4, 5]


def test_prompt_tokens_decode_to_a_prefix_of_the_prompt() -> None:
    rng, tokenizer = random.Random(11), small_tokenizer()
    for _ in range(300):
        text = "".join(rng.choices("def ad(b):\n\treturn  é中😀", k=rng.randrange(1, 60)))
        chars = rng.randrange(len(text) + 1)
        ids, prompt_tokens = encode_document(tokenizer, text, chars)
        assert tokenizer.decode(ids[:-1]) == text
        decoded = tokenizer.decode(ids[:prompt_tokens]).rstrip("�")
        assert text[:chars].startswith(decoded)
        longer = tokenizer.decode(ids[: prompt_tokens + 1])
        assert len(longer) > chars or "�" in longer or prompt_tokens == len(ids) - 1 or chars == 0


def test_a_tokenizer_without_end_of_text() -> None:
    with pytest.raises(UsageError) as caught:
        encode_document(small_tokenizer(unk_token=END), "a", 0)
    assert str(caught.value).endswith(
        "expected an end-of-text token, got none; "
        "set eos_token in its tokenizer_config.json, so that a student can learn to stop"
    )


def test_the_fingerprint_survives_saving(tmp_path: Path) -> None:
    for name, tokenizer in (("small", small_tokenizer()), ("llama", llama_tokenizer(add_bos_token=True))):
        tokenizer.save_pretrained(tmp_path / name)
        again = load_tokenizer(str(tmp_path / name))
        assert fingerprint(again) == fingerprint(tokenizer)
        assert encode_document(again, "a b", 1)[0].tolist() == encode_document(tokenizer, "a b", 1)[0].tolist()


def test_the_first_fact_that_differs_is_named() -> None:
    def differs(other: PreTrainedTokenizerFast) -> str:
        with pytest.raises(UsageError) as caught:
            require_same(
                fingerprint(small_tokenizer()), fingerprint(other), what="student s1", do="train with the teacher's"
            )
        return str(caught.value)

    require_same(fingerprint(small_tokenizer()), fingerprint(small_tokenizer()), what="x", do="y")
    assert differs(small_tokenizer(290)) == (
        "student s1: tokenizer: expected size 300, got 290; train with the teacher's"
    )
    assert "expected eos 0, got 6" in differs(small_tokenizer(eos_token="&"))
    assert "expected bos None, got 0" in differs(small_tokenizer(bos_token=END, eos_token=END))
    other = small_tokenizer()
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    assert "expected splitting of the probe strings " in differs(other)


def test_a_swapped_vocabulary_is_seen() -> None:
    one, other = llama_tokenizer(add_bos_token=True), llama_tokenizer(add_bos_token=False)
    with pytest.raises(UsageError, match="expected splitting of the probe strings"):  # BOS is part of how text is split
        require_same(fingerprint(one), fingerprint(other), what="cache", do="use its tokenizer")
    vocab = one.get_vocab() | {"▁a": one.get_vocab()["▁b"], "▁b": one.get_vocab()["▁a"]}
    merges = [("▁", "a"), ("▁", "b"), ("r", "e"), ("▁", "re"), ("f", "i")]
    swapped = LlamaTokenizer(vocab=vocab, merges=merges, add_bos_token=True)
    with pytest.raises(
        UsageError, match=r"cache: tokenizer: expected vocabulary [0-9a-f]{12}, got [0-9a-f]{12}; use its"
    ):
        require_same(fingerprint(one), fingerprint(swapped), what="cache", do="use its tokenizer")


def test_a_padding_token_named_later_is_no_difference() -> None:
    padded = small_tokenizer()
    padded.pad_token = padded.eos_token
    assert fingerprint(padded).pad == 0
    require_same(fingerprint(small_tokenizer()), fingerprint(padded), what="x", do="y")


def test_padded_model_vocabularies_are_legal_and_smaller_ones_are_not() -> None:
    check_model_vocabulary(300, 300)
    check_model_vocabulary(300, 320)
    with pytest.raises(UsageError) as caught:
        check_model_vocabulary(300, 299)
    assert str(caught.value) == (
        "tokenizer: expected at most 299 tokens, the model's vocabulary, got 300; "
        "use the tokenizer that the model was trained with"
    )


def test_directories_without_a_tokenizer(tmp_path: Path) -> None:
    def sentence(ref: Path) -> str:
        with pytest.raises(UsageError) as caught:
            load_tokenizer(str(ref))
        return str(caught.value)

    assert (
        sentence(tmp_path / "no")
        == f"tokenizer {tmp_path / 'no'}: expected a directory, got nothing there; correct the path"
    )
    (tmp_path / "config.json").write_text("{}")
    assert sentence(tmp_path) == (
        f"tokenizer {tmp_path}: expected a tokenizer.json, got config.json; "
        "copy tokenizer.json and tokenizer_config.json there, or name another tokenizer"
    )
    for damaged in ("{", '{"version": "1.0"}', '{"version": "1.0", "added_tokens": [], "model": {"type": "BPE"}}'):
        (tmp_path / "tokenizer.json").write_text(damaged)
        said = sentence(tmp_path)
        assert said.startswith(f"tokenizer {tmp_path}: expected one that transformers opens, got ")
        assert said.endswith("; repair the directory")
        assert "\n" not in said


def test_an_unknown_hub_name_is_one_line() -> None:
    with pytest.raises(
        UsageError,
        match=r"^tokenizer nobody/nothing: expected one that transformers opens, got .*directory as \./name$",
    ):
        load_tokenizer("nobody/nothing")


def test_real_starcoder2(shared_data: Path) -> None:
    tokenizer = load_tokenizer(str(shared_data / "starcoder2-tokenizer"))
    end = tokenizer.eos_token_id
    assert (len(tokenizer), end) == (49152, 0)
    text = f"s = '{END}'\nt = '<fim_prefix>'\n"
    ids = encode_document(tokenizer, text, 0)[0].tolist()
    assert ids.count(end) == 1  # the one that was appended
    assert ids[-1] == end
    assert tokenizer.convert_tokens_to_ids("<fim_prefix>") not in ids
    assert tokenizer.decode(ids[:-1]) == text
    assert tokenizer(END)["input_ids"] == [end]  # and the tokenizer is left as it was
    teacher = load_tokenizer(str(shared_data / "reference-teacher"))
    require_same(fingerprint(tokenizer), fingerprint(teacher), what="teacher", do="none")
    assert fingerprint(tokenizer).special["<fim_prefix>"] == 1
    assert len(fingerprint(tokenizer).special) == 38
