"""Cached windows for a student with another tokenizer: the same text in its tokens, and the positions where both agree.

A window's tokens are written out as bytes and encoded again; prompt and end of text are carried over. Both tokenizers cut the
same bytes. Wherever a token of each ends at the same byte, teacher and student have read the same text and predict what comes
next: there the teacher's record says something to the student (uld.py), elsewhere the text alone does.
Not for the bytes of a token (spelling.py) nor for which tokenizers (other_tokenizer.py).
Shapes: P the teacher's positions, Q the student's, V vocabulary, n ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from cache.record import CachedWindow
from shared.errors import CodestillError
from shared.tokenizer import encode_document
from stage2_student.batch import Collate
from stage2_student.spelling import Spelling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Retold:
    """A window in the student's tokens.

    Attributes:
        window: its positions are the student's; where they are not aligned its record means nothing.
        aligned_Q: bool, where the record is the teacher's at the same place in the text.
        cut_bytes: of text beyond the student's positions.
    """

    window: CachedWindow
    aligned_Q: NDArray[np.bool_]
    cut_bytes: int


@dataclass(frozen=True)
class Retokenizer:
    """Windows of the cache's tokenizer -> windows of the student's.

    Attributes:
        theirs, ours: spellings of the cache's and the student's tokenizer.
        ends: the cache's end-of-text and begin-of-text ids.
        tokenizer: the student's.
        most: tokens a window may have for the student; None for any number.
    """

    theirs: Spelling
    ours: Spelling
    ends: tuple[int | None, int | None]
    tokenizer: PreTrainedTokenizerBase
    most: int | None = None

    def __call__(self, window: CachedWindow) -> Retold:
        """The window in the student's tokens, cut off at `most`."""
        skipped, text = self._text(window)
        whole, prompt = self._encode(window, text, skipped)
        ids = whole[: self.most]
        source_Q = self._sources(window, ids, skipped, faithful=self._gives_back(whole, text))
        cut = int(self.ours.lengths_V[whole[len(ids) :]].sum())
        return Retold(_recorded(window, ids, min(prompt, len(ids)), source_Q), source_Q >= 0, cut)

    def _text(self, window: CachedWindow) -> tuple[int, str]:
        """(bytes left out in front, the text): no half characters at its ends, no space that the tokenizer invented."""
        raw = self.theirs.bytes_of(window.tokens.tolist())
        skipped = 0
        while raw[skipped : skipped + 1] and raw[skipped] & 0xC0 == 0x80:
            skipped += 1
        if self.theirs.invents_space and window.tokens[0] == self.ends[1] and raw.startswith(b" "):
            skipped = 1
        return skipped, raw[skipped:].decode(errors="ignore")

    def _encode(self, window: CachedWindow, text: str, skipped: int) -> tuple[Ints, int]:
        """The student's ids and how many of them are prompt; an end of text only where the window has one."""
        prompt_bytes = self.theirs.bytes_of(window.tokens[: window.prompt_tokens].tolist())[skipped:]
        ids, prompt = encode_document(self.tokenizer, text, len(prompt_bytes.decode(errors="ignore")))
        if window.tokens[-1] != self.ends[0] and len(ids) > 2:
            ids = ids[:-1]
        if len(ids) < 2:  # no text but half a character
            ids = np.repeat(ids[-1:], 2)
        return ids, prompt

    def _gives_back(self, ids: Ints, text: str) -> bool:
        """Whether the student's tokens spell the text: some tokenizers change it (accents, spaces)."""
        written = self.ours.bytes_of(ids.tolist())
        return written == b" " * self.ours.invents_space + text.encode() or written == text.encode()

    def _sources(self, window: CachedWindow, ids: Ints, skipped: int, *, faithful: bool) -> Ints:
        """int64 [Q], the teacher's position that has read the same text, or -1."""
        source_Q = np.full(len(ids) - 1, -1, np.int64)
        if faithful:
            theirs_P = self.theirs.lengths_V[window.tokens[:-1]].cumsum() - skipped
            ours_Q = self.ours.lengths_V[ids[:-1]].cumsum() - self._invented(ids)
            _, at_P, at_Q = np.intersect1d(theirs_P, ours_Q, return_indices=True)
            source_Q[at_Q] = at_P
        return source_Q

    def _invented(self, ids: Ints) -> int:
        """Bytes of the student's that stand before the text."""
        return int(self.ours.invents_space and self.ours.bytes_of(ids[:2].tolist()).startswith(b" "))


def _recorded(window: CachedWindow, ids: Ints, prompt: int, source_Q: Ints) -> CachedWindow:
    """The window with these tokens and, at each position, the record of its source; one entry elsewhere."""
    known_Q, from_Q = source_Q >= 0, np.maximum(source_Q, 0)
    sizes_Q = np.where(known_Q, window.head_sizes_P[from_Q], 1).astype(np.int32)
    starts_P = window.head_sizes_P.cumsum() - window.head_sizes_P
    within = np.arange(sizes_Q.sum()) - np.repeat(sizes_Q.cumsum() - sizes_Q, sizes_Q)
    entries = np.repeat(np.where(known_Q, starts_P[from_Q], 0), sizes_Q) + within
    return replace(
        window,
        tokens=ids.astype(np.int32),
        prompt_tokens=prompt,
        head_sizes_P=sizes_Q,
        head_ids_E=window.head_ids_E[entries],
        head_logprobs_E=window.head_logprobs_E[entries],
        tail_PN=window.tail_PN[from_Q],
        gold_P=window.gold_P[from_Q],
        coords_PR=window.coords_PR[from_Q],
    )


@dataclass(frozen=True, slots=True)
class CollateRetold(Collate):
    """Windows -> one batch in the student's tokens: what `Collate` gives, and

        aligned: bool [N], where the record is the teacher's.

    Attributes:
        retell: puts a window into the student's tokens.
    """

    retell: Retokenizer = field(kw_only=True)

    def __call__(self, windows: Sequence[CachedWindow | CodestillError]) -> dict[str, Any]:
        told = [window if isinstance(window, CodestillError) else self.retell(window) for window in windows]
        batch = Collate.__call__(self, [one.window if isinstance(one, Retold) else one for one in told])
        if "failure" not in batch:
            aligned = [one.aligned_Q[self._counts(one.window)] for one in told if isinstance(one, Retold)]
            batch["aligned"] = torch.from_numpy(np.concatenate(aligned))
        return batch
