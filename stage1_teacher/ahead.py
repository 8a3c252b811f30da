"""What a corpus is before a teacher reads it: how much, cut how, and exactly which windows.

Not for reading or cutting it (shared/corpus.py, shared/windows.py).
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from shared.care import UNSTATED
from shared.corpus_config import describe_corpus
from shared.windows import EXAMPLES, Window, WindowConfig, WindowCounts, read_windows
from stage1_teacher.config import CaptureConfig
from stage1_teacher.parts import WHOLE, Part
from stage1_teacher.status import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = 100  # letters of a licence, source or task set in the manifest


@dataclass(frozen=True)
class Ahead:
    """What cutting the corpus without a teacher tells: how much there is to read, and a hash of exactly what."""

    windows: int
    tokens: int
    longest: int  # tokens of a window
    sha256: str
    shard_tokens: tuple[int, ...]  # tokens of each shard of the whole corpus


def look_ahead(config: CaptureConfig, tokenizer: PreTrainedTokenizerBase) -> Ahead | None:
    """Cut the whole corpus once: a mistake in the text costs seconds, not an evening. None when streaming."""
    if config.corpus.streamed:
        return None
    windows, counts = readable_windows(config, tokenizer)
    digest, tokens, longest = hashlib.sha256(), [], 0
    for shard in in_shards(windows, config.windows_per_shard):
        digest.update(bytes.fromhex("".join(window.id for window in shard)))
        tokens.append(tokens_in(shard))
        longest = max(longest, *(len(window.tokens) for window in shard))
    name_dropped(counts)
    return Ahead(counts.windows, counts.tokens, longest, digest.hexdigest(), tuple(tokens))


def readable_windows(
    config: CaptureConfig, tokenizer: PreTrainedTokenizerBase
) -> tuple[Iterator[Window], WindowCounts]:
    """The corpus's windows; a row that cannot be read is left out and counted: one of them must not end an evening.

    The same ones on every machine and in every run, so shards and parts stay what they are.
    """
    return read_windows(config.corpus, tokenizer, config.windows, skip_unreadable=True)


def name_dropped(counts: WindowCounts) -> None:
    """What was left out, on stderr: the unreadable, and the first of each other reason."""
    for error in counts.unreadable:
        tqdm.write(f"skipped: {error}", file=sys.stderr)
    if (more := counts.dropped["unreadable"] - len(counts.unreadable)) > 0:
        tqdm.write(f"skipped: {more} more", file=sys.stderr)
    named = dict(counts.examples)
    if counts.decontamination is not None and counts.decontamination.examples:
        named["contaminated"] = [f"{name} ({task})" for name, task in counts.decontamination.examples[:EXAMPLES]]
    for reason, examples in named.items():
        left = counts.dropped[reason] - len(examples)
        more_of_them = f", and {left} more" if left > 0 else ""
        tqdm.write(f"dropped: {reason}: {_plain(', '.join(examples))}{more_of_them}", file=sys.stderr)


def manifest_counts(counts: WindowCounts) -> dict[str, int]:
    """What the manifest says of the reading: documents, windows, and documents by reason, licence, source, task set.

    Licences stand there where any is stated, sources where there are several.
    """
    found = {"documents": counts.documents, "windows": counts.windows}
    found |= {f"dropped_{reason}": count for reason, count in sorted(counts.dropped.items())}
    if counts.decontamination is not None:
        found |= _by_name("contaminated", counts.decontamination.by_set)
    if any(counts.licences):
        found |= _by_name("licence", counts.licences)
    if len(counts.sources) > 1:
        found |= _by_name("source", counts.sources)
    return found


def _by_name(what: str, counts: Mapping[str, int]) -> dict[str, int]:
    """Counts under names that come from a stranger's data set: printable, and not for ever."""
    found: Counter[str] = Counter()
    for name, count in sorted(counts.items()):
        found[f"{what}_{_plain(name or UNSTATED)[:NAME]}"] += count
    return dict(found)


def _plain(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def plan_of(config: CaptureConfig, part: Part, ahead: Ahead | None) -> Plan:
    """What `part` has to do, for bar and status."""
    name = None if part == WHOLE else str(part)
    if ahead is None:
        return Plan(name, None, None, None)
    size, tokens = config.windows_per_shard, ahead.shard_tokens[part.share]
    numbers = range(len(ahead.shard_tokens))[part.share]
    windows = sum(min(size, ahead.windows - number * size) for number in numbers)
    return Plan(name, len(numbers), windows, sum(tokens))


def corpus_facts(config: CaptureConfig, ahead: Ahead | None) -> dict[str, Any]:
    """The corpus for an identity: no local paths, and where it is known the hash of its windows."""
    return describe_corpus(config.corpus) | ({"windows_sha256": ahead.sha256} if ahead else {})


def window_facts(config: WindowConfig) -> dict[str, Any]:
    """The window settings without this machine's paths."""
    facts: dict[str, Any] = {"max_length": config.max_length, "long_documents": config.long_documents}
    if config.decontaminate is not None:
        against = [task.recipe or str(task.path and task.path.name) for task in config.decontaminate.against]
        facts["decontaminate"] = {"ngram": config.decontaminate.ngram, "against": against}
    return facts


def in_shards(windows: Iterator[Window], size: int) -> Iterator[list[Window]]:
    """Windows in corpus order, `size` at a time."""
    while shard := list(islice(windows, size)):
        yield shard


def tokens_in(windows: list[Window]) -> int:
    """Tokens of all of them."""
    return sum(len(window.tokens) for window in windows)
