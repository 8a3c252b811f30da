"""Stage 1: text in, cache out. Reads the corpus once, teaches nothing, and goes on where a crash left it.

Not for the single steps: windows come from shared/windows.py, records from reading.py, files from cache/writer.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from cache.encoding import Encoding
from cache.manifest import Identity, Manifest
from cache.writer import PROGRESS_FOLDER, CacheWriter, finished, writing
from shared.corpus_config import describe_corpus
from shared.errors import UsageError
from shared.tokenizer import check_model_vocabulary, fingerprint, load_tokenizer
from shared.windows import Window, WindowConfig, WindowCounts, read_windows
from stage1_teacher.config import CaptureConfig
from stage1_teacher.fidelity import add_up
from stage1_teacher.reading import read_shard
from stage1_teacher.teacher import TeacherModel, load_teacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def capture(config: CaptureConfig, *, progress: bool = True) -> Manifest:
    """Let the teacher read the corpus and write the cache.

    The whole corpus is cut into windows once before the teacher is opened (not when streaming), so that a mistake in the
    text costs seconds, not an evening, and the time left is known.
    Returns:
        the manifest; at once if this capture had already finished.
    Raises:
        UsageError: config, teacher, corpus or directory are wrong; nothing was started.
        RunError: a sealed shard of an interrupted capture is damaged.
    """
    tokenizer = load_tokenizer(config.teacher.model, config.teacher.revision)
    expected = None if config.corpus.streaming else count_windows(config, tokenizer)
    teacher = load_teacher(config.teacher)
    check_model_vocabulary(len(tokenizer), teacher.vocab_size)
    identity = identify(config, teacher, tokenizer)
    done = finished(config.cache, identity)
    if done is not None:
        return done
    with writing(config.cache, identity) as writer:
        total = expected.tokens if expected else None
        with tqdm(total=total, unit="tok", unit_scale=True, desc="capture", disable=not progress) as bar:
            counts = _read_all(config, teacher, tokenizer, writer, bar)
        return _finish(config, writer, counts, tokenizer)


def count_windows(config: CaptureConfig, tokenizer: PreTrainedTokenizerBase) -> WindowCounts:
    """Cut the whole corpus without a teacher: finds mistakes early and tells how much there is to read."""
    windows, counts = read_windows(config.corpus, tokenizer, config.windows)
    for _ in windows:
        pass
    return counts


def identify(config: CaptureConfig, teacher: TeacherModel, tokenizer: PreTrainedTokenizerBase) -> Identity:
    """Everything two shards must share to be of one cache."""
    return Identity(
        teacher=teacher.facts,
        tokenizer=fingerprint(tokenizer),
        corpus=describe_corpus(config.corpus),
        windows=_describe_windows(config.windows),
        selection=config.selection,
        encoding=Encoding(vocab_size=teacher.vocab_size, k=config.selection.k),
        windows_per_shard=config.windows_per_shard,
    )


def _describe_windows(config: WindowConfig) -> dict[str, Any]:
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


def _read_all(
    config: CaptureConfig, teacher: TeacherModel, tokenizer: PreTrainedTokenizerBase, writer: CacheWriter, bar: Any
) -> WindowCounts:
    windows, counts = read_windows(config.corpus, tokenizer, config.windows)
    encoding = writer.identity.encoding
    with ThreadPoolExecutor(1) as sealing:  # encoding and compression run beside the next shard's forward passes
        pending: Future[None] | None = None
        for number, shard in enumerate(in_shards(windows, config.windows_per_shard)):
            if number in writer.sealed:
                _require_same_windows(writer, number, shard)
                bar.update(sum(len(window.tokens) for window in shard))
                continue
            reading = read_shard(teacher, shard, number, config, encoding, bar.update)
            if pending is not None:
                pending.result()  # one shard in flight bounds the memory, and a full disk is told soon
            pending = sealing.submit(writer.seal, number, reading.windows, reading.summary)
        if pending is not None:
            pending.result()
    return counts


def _require_same_windows(writer: CacheWriter, number: int, windows: list[Window]) -> None:
    """A sealed shard must hold what the corpus still says: the text may have been edited since the crash."""
    ids = np.array([int(window.id, 16) for window in windows], np.uint64)
    if not np.array_equal(ids, writer.index(number).window_id):
        raise UsageError(
            f"shard {writer.sealed[number].name}",
            expected="the windows the corpus has now",
            got="others (the text changed since the capture began)",
            do="restore the text, or capture into a new directory",
        )


def _finish(
    config: CaptureConfig, writer: CacheWriter, counts: WindowCounts, tokenizer: PreTrainedTokenizerBase
) -> Manifest:
    folder = config.cache / PROGRESS_FOLDER / "tokenizer"
    tokenizer.save_pretrained(folder)
    summaries = [writer.index(number).summary for number in sorted(writer.sealed)]
    positions = counts.tokens - counts.windows
    return writer.finish(
        folder,
        counts={"documents": counts.documents, "windows": counts.windows}
        | {f"dropped_{reason}": count for reason, count in sorted(counts.dropped.items())},
        fidelity=add_up(summaries),
        teacher_loss=-math.fsum(summary["gold_sum"] for summary in summaries) / positions,
        made_with={name: version(name) for name in ("codestill", "torch", "transformers")},
    )
