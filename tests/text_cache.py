"""Caches of real text for students with other tokenizers: short Python programs in bytes. Not a test file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from student_cache import VOCAB, cached_window, make_cache
from tiny_model import byte_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from cache.record import CachedWindow
from shared.tokenizer import encode_document

OTHER = Path(__file__).resolve().parent.parent / "shared" / "embedded_teacher"  # 1,024 tokens of program text
PROMPT, CODE = "# add {0} and né{1}\n", "def add_{0}(a, b):\n    return a + b + {1}\n"
TABLE_VV = 2 * torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(7))


def texts(count: int) -> list[tuple[str, int]]:
    """(text, characters of prompt), all different."""
    pairs = [(PROMPT.format(number, number % 3), CODE.format(number, number**2)) for number in range(count)]
    return [(prompt + code, len(prompt)) for prompt, code in pairs]


def text_windows(count: int, start: int = 0) -> list[CachedWindow]:
    """Windows of whole documents in the byte tokenizer; the teacher follows a fixed table."""
    windows = []
    for number, (text, prompt_chars) in enumerate(texts(start + count)[start:], start):
        tokens, prompt = encode_document(byte_tokenizer(), text, prompt_chars)
        logits_PV = TABLE_VV[torch.from_numpy(tokens[:-1]).long()]
        windows.append(cached_window(4 * number + 1, tokens, logits_PV, prompt=prompt))
    return windows


def window_of(tokens: list[int], prompt: int = 0) -> CachedWindow:
    """A window of any byte tokens."""
    ids = np.asarray(tokens, np.int32)
    return cached_window(3, ids, TABLE_VV[torch.from_numpy(ids[:-1]).long()], prompt=prompt)


def make_text_caches(folder: Path) -> Path:
    """`cache` to learn from and `validation`."""
    make_cache(folder / "cache", text_windows(12))
    make_cache(folder / "validation", text_windows(4, start=12))
    return folder


def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer as Llama's: a sign for spaces, one in front of every text, bytes where letters are missing, and a BOS."""
    special = ["<unk>", "<s>", "</s>"]
    learnt = Tokenizer(models.BPE(unk_token="<unk>"))
    learnt.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=100, special_tokens=special, show_progress=False)
    learnt.train_from_iterator([text.replace("é", "e") for text, _ in texts(30)], trainer)
    model = json.loads(learnt.to_str())["model"]
    vocabulary = model["vocab"] | {f"<0x{byte:02X}>": len(model["vocab"]) + byte for byte in range(256)}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = learnt.normalizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast
