"""A student whose tokenizer is not the cache's: which tokenizer it is, and how its batches are made.

Not for putting text into other tokens (retokenize.py) nor for what the teacher then says to it (uld.py).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cache.manifest import TOKENIZER_FOLDER
from cache.reader import Cache
from shared.errors import UsageError
from shared.tokenizer import TokenizerFingerprint, fingerprint, load_tokenizer, require_same, save_tokenizer
from stage2_student.batch import Collate
from stage2_student.config import TrainConfig
from stage2_student.retokenize import CollateRetold, Retokenizer
from stage2_student.spelling import Spelling, spelling_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Own:
    """The student's own tokenizer.

    Attributes:
        rows: of a head from scratch; None for a pretrained student, whose own stays as it is.
    """

    tokenizer: PreTrainedTokenizerBase
    spelling: Spelling
    facts: TokenizerFingerprint
    rows: int | None

    def save(self, folder: Path) -> None:
        """The tokenizer's files into `folder`."""
        save_tokenizer(self.tokenizer, folder)


def open_own(config: TrainConfig) -> Own | None:
    """The student's own tokenizer; None where it has the cache's.

    Raises:
        UsageError: no such tokenizer, or one whose tokens do not say which bytes they are.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time; its threads do not survive a fork
    settings = config.other_tokenizer
    if settings is None:
        return None
    pretrained = config.student.pretrained
    ref, revision = settings.tokenizer, settings.revision
    if ref is None:
        ref, revision = str(pretrained), config.student.revision
    tokenizer = load_tokenizer(ref, revision)
    rows = None if pretrained is not None else len(tokenizer)
    return Own(tokenizer, _spelt(tokenizer, ref), fingerprint(tokenizer), rows)


def _spelt(tokenizer: PreTrainedTokenizerBase, what: str) -> Spelling:
    spelling = spelling_of(tokenizer)
    if spelling is None:
        do = "take a student with such a tokenizer, or one with the cache's"
        raise UsageError(
            f"tokenizer {Path(what).name}",
            expected="a byte-level one, or one with byte fallback",
            got=f"the decoder {type(tokenizer.backend_tokenizer.decoder).__name__}",
            do=do,
        )
    return spelling


def collate_of(config: TrainConfig, cache: Cache, own: Own | None, most_positions: int | None) -> Collate:
    """What makes batches of the cache's windows.

    Args:
        config: of the run.
        cache: its tokenizer files stand in its directory.
        own: the student's tokenizer where it is another.
        most_positions: the student's; None where it names no bound.
    Raises:
        UsageError: the cache's tokenizer does not say which bytes its tokens are, and the student has another.
    """
    facts: TokenizerFingerprint = cache.manifest.tokenizer
    tokenizer = load_tokenizer(str(cache.directory / TOKENIZER_FOLDER))
    do = "get the cache again, then run the same command again"
    require_same(facts, fingerprint(tokenizer), what=f"cache {cache.manifest.cache_id}", do=do)
    if own is None:
        spelling = spelling_of(tokenizer)
        return Collate(config.mask_prompt, facts.pad or 0, None if spelling is None else spelling.lengths_V)
    retell = Retokenizer(
        _spelt(tokenizer, "of the cache"),
        own.spelling,
        (facts.eos, facts.bos),
        own.tokenizer,
        None if most_positions is None else most_positions + 1,
    )
    return CollateRetold(config.mask_prompt, own.facts.pad or 0, own.spelling.lengths_V, retell=retell)
