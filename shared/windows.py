"""Windows: the pieces of at most `max_length` tokens that a teacher reads, a cache stores and a student learns from.

No window is ever padded. Everything streams; what is kept per window is 8 bytes of its id, to drop repeats. Not for
batches (stage 1 packs those) and not for order (students shuffle by id).
Legend: n tokens of one window.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from shared.config import StrictModel
from shared.corpus import CorpusConfig, Document, read_documents
from shared.decontaminate import (
    Decontamination,
    DecontaminationConfig,
    TaskIndex,
    drop_contaminated,
    evaluation_texts,
)
from shared.errors import UsageError
from shared.rows import Spoilt
from shared.seen import SeenIds
from shared.tokenizer import Tokens, encode_document, front_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMED = 20  # unreadable documents whose trouble is kept
EXAMPLES = 5  # documents left out with care that are kept by name, by reason
LICENCES = 64  # that are counted by name; what comes after so many different ones is counted as OTHER
OTHER = "other"
LongDocuments = Literal["refuse", "split", "drop"]


class WindowConfig(StrictModel):
    """How documents become windows."""

    max_length: int = Field(default=512, ge=2, description="tokens the teacher reads at once, end-of-text included")
    long_documents: LongDocuments = Field(
        default="refuse", description="a document of more tokens: stop with an error, split it into windows, or drop it"
    )
    decontaminate: DecontaminationConfig | None = Field(
        default=None, description="drop documents that overlap with these evaluation tasks; none if absent"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """A run of tokens of one document.

    Attributes:
        id: 16 hex characters, the same for the same tokens and prompt_tokens on every machine (see `window_id`).
        tokens: int32 [n], 2 <= n <= max_length.
        prompt_tokens: leading tokens that are prompt; the loss may leave them out as targets.
        document: id of the document.
    """

    id: str
    tokens: Tokens
    prompt_tokens: int
    document: str


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDocument:
    """A document as tokens: int32 [n], BOS and EOS included where they belong.

    Attributes:
        front: leading tokens that stand before every text of this tokenizer: BOS, or nothing.
    """

    id: str
    tokens: Tokens
    prompt_tokens: int
    front: Tokens = field(default_factory=lambda: np.empty(0, np.int32))


@dataclass
class WindowCounts:
    """What went in and what came out; complete once the iterator is exhausted.

    Attributes:
        documents: documents read, dropped ones included.
        windows: windows handed on.
        tokens: tokens in them.
        longest: tokens of the longest document.
        dropped: reason -> count: `licence`, `duplicate`, `syntax`, `near_duplicate` (shared/care.py), `contaminated`,
            `too_long`, `too_short` (no text, or fewer than 2 tokens), `unreadable` count documents; `duplicate_window`
            counts windows.
        unreadable: what is wrong with the first NAMED of those.
        examples: reason of shared/care.py -> the first EXAMPLES documents and why, in words.
        licences: licence as the source states it ("" if it states none) -> documents read; at most LICENCES and OTHER.
        sources: source -> documents read.
        decontamination: what was compared and which documents went; None if nothing was compared.
    """

    documents: int = 0
    windows: int = 0
    tokens: int = 0
    longest: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unreadable: list[UsageError] = field(default_factory=list)
    examples: dict[str, list[str]] = field(default_factory=dict)
    licences: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    decontamination: Decontamination | None = None

    def read(self, document: Document) -> None:
        """Count one document, whatever becomes of it."""
        self.documents += 1
        self.sources[document.source] += 1
        licence = document.licence or ""
        self.licences[licence if licence in self.licences or len(self.licences) < LICENCES else OTHER] += 1

    def drop(self, document: Document, reason: str, why: str) -> None:
        """Count one document that was read and left out."""
        self.read(document)
        self.dropped[reason] += 1
        if len(examples := self.examples.setdefault(reason, [])) < EXAMPLES:
            examples.append(f"{document.id} ({why})")


def window_id(tokens: Tokens, prompt_tokens: int) -> str:
    """First 16 hex characters of sha256 over the ids and then prompt_tokens, each a little-endian uint32."""
    assert tokens.min(initial=0) >= 0, "token ids are not negative"
    digest = hashlib.sha256(tokens.astype("<u4").tobytes())
    digest.update(np.asarray([prompt_tokens], dtype="<u4").tobytes())
    return digest.hexdigest()[:16]


def cut_windows(
    documents: Iterable[EncodedDocument], max_length: int, long_documents: LongDocuments, counts: WindowCounts
) -> Iterator[Window]:
    """Cut documents into windows; a window whose id came before is dropped and counted.

    Split windows overlap by exactly one token, so that every token after a document's first is a target exactly once. A
    model trained with BOS never saw a text without it, so there every window begins with BOS, in place of that token.
    Args:
        documents: in corpus order.
        max_length: tokens a window may have, >= 2.
        long_documents: what happens to a document of more tokens.
        counts: filled as windows pass.
    Raises:
        UsageError: a document is too long and `long_documents` is "refuse".
    """
    assert max_length >= 2, "a window needs a token to see and one to predict"
    seen = SeenIds()
    for document in documents:
        counts.longest = max(counts.longest, len(document.tokens))
        for window in _windows_of(document, max_length, long_documents, counts):
            if not seen.add(int(window.id, 16)):
                counts.dropped["duplicate_window"] += 1
                continue
            counts.windows += 1
            counts.tokens += len(window.tokens)
            yield window


def _windows_of(
    document: EncodedDocument, max_length: int, long_documents: LongDocuments, counts: WindowCounts
) -> Iterator[Window]:
    length = len(document.tokens)
    if length < 2:
        counts.dropped["too_short"] += 1
        return
    if length > max_length and long_documents == "drop":
        counts.dropped["too_long"] += 1
        return
    if length > max_length and long_documents == "refuse":
        raise UsageError(
            f"document {document.id}",
            expected=f"at most {max_length} tokens",
            got=str(length),
            do="raise max_length, or set long_documents to split or drop",
        )
    for tokens, prompt_tokens in _pieces(document, max_length):
        yield Window(window_id(tokens, prompt_tokens), tokens, prompt_tokens, document.id)


def _pieces(document: EncodedDocument, max_length: int) -> Iterator[tuple[Tokens, int]]:
    """(Tokens, prompt tokens) of each window of a document."""
    front, body = document.front, document.tokens[len(document.front) :]
    overlap = 0 if front.size else 1
    for start in range(0, len(body) - overlap, max_length - len(front) - overlap):
        piece = np.concatenate([front, body[start : start + max_length - len(front)]])
        yield piece, min(max(document.prompt_tokens - start, 0), len(piece))


def encode_documents(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, counts: WindowCounts
) -> Iterator[EncodedDocument]:
    """Documents as tokens; one without text is dropped and counted, since it would teach nothing but to stop."""
    front = front_of(tokenizer)
    for document in documents:
        if not document.text.strip():
            counts.dropped["too_short"] += 1
            continue
        tokens, prompt_tokens = encode_document(tokenizer, document.text, document.prompt_chars)
        yield EncodedDocument(document.id, tokens, prompt_tokens, front)


def read_windows(
    corpus: CorpusConfig, tokenizer: PreTrainedTokenizerBase, config: WindowConfig, *, skip_unreadable: bool = False
) -> tuple[Iterator[Window], WindowCounts]:
    """The straight line from a corpus to windows: read, decontaminate, encode, cut.

    Args:
        skip_unreadable: leave out a row or file that cannot be read, and count it, instead of stopping there.
    Returns:
        the windows, in corpus order, lazily; and the counts, which are complete once the windows are exhausted.
    Raises:
        UsageError: at once if the evaluation tasks cannot be read; while iterating, what reading, encoding and cutting
            raise, and at the end if no window was left; where every document, or each of the first
            NAMED, is unreadable, what is wrong with the first.
    """
    counts = WindowCounts()
    documents = _counted(read_documents(corpus, _drop_into(counts) if skip_unreadable else None, counts.drop), counts)
    if config.decontaminate is not None:
        index = TaskIndex(evaluation_texts(config.decontaminate), config.decontaminate.ngram)
        counts.decontamination = Decontamination()
        documents = drop_contaminated(documents, index, counts.decontamination)
    encoded = encode_documents(documents, tokenizer, counts)
    return _not_empty(cut_windows(encoded, config.max_length, config.long_documents, counts), counts), counts


def _drop_into(counts: WindowCounts) -> Spoilt:
    def drop(error: UsageError) -> None:
        counts.documents += 1
        counts.dropped["unreadable"] += 1
        if len(counts.unreadable) < NAMED:
            counts.unreadable.append(error)
        if counts.documents == len(counts.unreadable) == NAMED:  # so many and no other: the config is wrong
            raise counts.unreadable[0]

    return drop


def _counted(documents: Iterable[Document], counts: WindowCounts) -> Iterator[Document]:
    try:
        for document in documents:
            counts.read(document)
            yield document
    except UsageError:
        if counts.unreadable and counts.documents == counts.dropped["unreadable"]:
            raise counts.unreadable[0] from None  # all of them: a mistake in the config rather than in the text
        raise


def _not_empty(windows: Iterable[Window], counts: WindowCounts) -> Iterator[Window]:
    yield from windows
    if counts.decontamination is not None:
        counts.dropped["contaminated"] = counts.decontamination.dropped
    if counts.windows == 0:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(counts.dropped.items()))
        raise UsageError(
            "corpus",
            expected="at least one window",
            got=f"none of {counts.documents} documents ({reasons})",
            do="look at what was dropped: raise max_length, split, or compare with other tasks",
        )
