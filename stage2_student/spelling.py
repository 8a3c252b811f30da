"""The bytes behind each token of a tokenizer, so that texts in different tokens can be laid beside each other.

Two kinds are known: byte-level tokenizers (GPT-2, StarCoder2, Phi-2, DeepSeek, Llama 3), whose tokens are strings of letters
that stand for bytes, and those with byte fallback (Llama 2, CodeLlama, TinyLlama), whose tokens are text with a sign for the
space, and <0x0A> for a byte alone. Added tokens are text as they stand; special ones are no text at all.
Not for aligning (retokenize.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPACE_SIGN = "\u2581"


@dataclass(frozen=True)
class Spelling:
    """What a tokenizer's ids are written as.

    Attributes:
        pieces: bytes of each id, empty for special tokens.
        invents_space: whether the tokenizer puts a space before a text that the text does not have.
    """

    pieces: tuple[bytes, ...]
    invents_space: bool

    @cached_property
    def lengths_V(self) -> NDArray[np.int64]:
        """Bytes of each id."""
        return np.asarray([len(piece) for piece in self.pieces], np.int64)

    def bytes_of(self, ids: Iterable[int]) -> bytes:
        """What these tokens write."""
        return b"".join([self.pieces[number] for number in ids])


def spelling_of(tokenizer: PreTrainedTokenizerBase) -> Spelling | None:
    """The spelling of a fast tokenizer; None where its tokens do not say which bytes they are."""
    vocabulary = tokenizer.get_vocab()
    byte_level = "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)
    if not byte_level and "<0x0A>" not in vocabulary:
        return None
    letters = {letter: byte for byte, letter in enumerate(byte_letters())}
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        in_letters = byte_level and letters.keys() >= set(token)
        pieces[number] = bytes(map(letters.__getitem__, token)) if in_letters else text_of(token)
    special = set(tokenizer.all_special_ids)
    for number, added in tokenizer.added_tokens_decoder.items():
        pieces[number] = b"" if added.special or number in special else added.content.encode()
    return Spelling(tuple(pieces), invents_space=not byte_level)


def text_of(token: str) -> bytes:
    """The bytes of a token of the byte-fallback kind."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes((int(token[3:5], 16),))
    return token.replace(SPACE_SIGN, " ").encode()


def byte_letters() -> list[str]:
    """The letter that stands for each byte in byte-level vocabularies (GPT-2's encoder.py): itself where it is printable."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in set(printable) else next(others)) for byte in range(256)]
