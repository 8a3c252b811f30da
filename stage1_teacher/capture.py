"""Stage 1: text in, cache out. Reads the corpus once, teaches nothing, and goes on where a crash left it.

Not for the single steps: windows come from shared/windows.py, records from reading.py, files from cache/writer.py; what a
part is says parts.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from cache.encoding import Encoding
from cache.manifest import Identity, Manifest
from cache.summary import figures
from cache.writer import PROGRESS_FOLDER, CacheWriter, finished, writing
from shared.errors import UsageError
from shared.files import atomic_write
from shared.tokenizer import fingerprint, load_tokenizer, save_tokenizer
from shared.windows import Window, WindowCounts
from stage1_teacher.ahead import (
    Ahead,
    corpus_facts,
    in_shards,
    look_ahead,
    manifest_counts,
    name_dropped,
    plan_of,
    readable_windows,
    tokens_in,
    window_facts,
)
from stage1_teacher.budget import BUDGET, budget_for
from stage1_teacher.config import CaptureConfig
from stage1_teacher.fitting import fit_shape, fitted_bytes, take_shape
from stage1_teacher.parts import WHOLE, Part
from stage1_teacher.quantisation import room_for
from stage1_teacher.rates import Rates, measure
from stage1_teacher.reading import Reader, ShardReading
from stage1_teacher.shape import Projection, why_not
from stage1_teacher.shape_file import KEPT, basis_bytes, describe, require_shape_file
from stage1_teacher.status import Progress
from stage1_teacher.teacher import TeacherModel, load_teacher, require_fit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def capture(
    config: CaptureConfig,
    *,
    part: Part | None = None,
    shape: Path | None = None,
    progress: bool = True,
    told: Callable[[Rates], object] = lambda _: None,
) -> Manifest:
    """Let the teacher read the corpus and write the cache, or one part of it into a directory of its own.

    Args:
        part: which; written to `part.directory(config.cache)`. None captures everything.
        shape: the tail's shape as `fit` wrote it, taken instead of fitting it.
        told: called with this run's speed, if it read anything.
    Returns:
        the manifest; a capture that had already finished opens the teacher to compare it, and reads no more than the
            sample that the tail's shape is fitted on.
    Raises:
        UsageError: config, teacher, corpus, shape, part or directory are wrong; nothing was started.
        RunError: a sealed shard of an interrupted capture is damaged, or the teacher's logits are not numbers.
    """
    if part is not None:
        config = config.model_copy(update={"cache": part.directory(config.cache)})
    part = part or WHOLE
    require_shape_file(shape)
    tokenizer, ahead = _look(config, part)
    teacher = load_teacher(config.teacher)
    require_fit(teacher, len(tokenizer), ahead.longest if ahead else 0)
    with room_for(f"teacher {teacher.facts.id}, fitting the tail's shape", teacher.facts.parameters, config.teacher):
        projection = take_shape(config, teacher, tokenizer, ahead, shape, progress=progress)
    identity = identify(config, teacher, tokenizer, projection, ahead)
    done = finished(config.cache, identity)
    if done is not None:
        part.require_own(done, config.cache)
        return done
    basis = None if projection is None else basis_bytes(projection.basis)
    with writing(config.cache, identity, basis) as writer:
        _require_own(writer, part)
        if projection is not None:
            atomic_write(config.cache / PROGRESS_FOLDER / KEPT, fitted_bytes(config, projection, teacher, ahead))
        plan = plan_of(config, part, ahead)
        budget = budget_for(config, teacher, config.cache / PROGRESS_FOLDER / BUDGET)
        tell = Progress(config.cache / PROGRESS_FOLDER, plan, *_sealed_before(writer))
        with tqdm(total=plan.tokens, unit="tok", unit_scale=True, desc="capture", disable=not progress) as bar:
            reader = Reader(teacher, projection, identity.encoding, config, budget)
            counts, rates = _read_all(config, part, reader, tokenizer, writer, tell, bar)
        if rates is not None:
            told(rates)
        return _finish(config, part, writer, counts, tokenizer)


def fit(config: CaptureConfig, out: Path, *, progress: bool = True) -> Projection:
    """Fit the tail's shape alone and write it to the file `out`, for parts on machines that calculate differently.

    Raises:
        UsageError: config, teacher or corpus are wrong, or this teacher's tail can have no shape.
    """
    tokenizer, ahead = _look(config, WHOLE)
    teacher = load_teacher(config.teacher)
    require_fit(teacher, len(tokenizer), ahead.longest if ahead else 0)
    reason = "shape: null" if config.shape is None else why_not(teacher)
    if reason:
        raise UsageError("fit", expected="a tail with a shape", got=reason, do="capture the parts without --shape")
    with room_for(f"teacher {teacher.facts.id}", teacher.facts.parameters, config.teacher):
        projection = fit_shape(config, teacher, tokenizer, ahead, progress=progress)
    assert projection is not None, "asked for above"
    atomic_write(out, fitted_bytes(config, projection, teacher, ahead))
    return projection


def _look(config: CaptureConfig, part: Part) -> tuple[PreTrainedTokenizerBase, Ahead | None]:
    """What is known before the teacher is opened."""
    tokenizer = load_tokenizer(config.teacher.model, config.teacher.revision)
    ahead = look_ahead(config, tokenizer)
    if ahead is not None:
        part.require_shards(len(ahead.shard_tokens))
    return tokenizer, ahead


def identify(
    config: CaptureConfig,
    teacher: TeacherModel,
    tokenizer: PreTrainedTokenizerBase,
    projection: Projection | None,
    ahead: Ahead | None,
) -> Identity:
    """Everything two shards must share to be of one cache."""
    shape = describe(projection, config.shape.sample_windows) if projection and config.shape else None
    coords = {}
    if shape is not None and projection is not None:
        coords = {"directions": shape.directions, "coord_step": shape.step, "wide": projection.wide}
    return Identity(
        teacher=teacher.facts,
        tokenizer=fingerprint(tokenizer),
        corpus=corpus_facts(config, ahead),
        windows=window_facts(config.windows),
        selection=config.selection,
        encoding=Encoding.model_validate({"vocab_size": teacher.vocab_size, "k": config.selection.k, **coords}),
        shape=shape,
        windows_per_shard=config.windows_per_shard,
    )


def _read_all(
    config: CaptureConfig,
    part: Part,
    reader: Reader,
    tokenizer: PreTrainedTokenizerBase,
    writer: CacheWriter,
    tell: Progress,
    bar: Any,
) -> tuple[WindowCounts, Rates | None]:
    windows, counts = readable_windows(config, tokenizer)
    start, read, example = time.perf_counter(), 0, None

    def advance(tokens: int) -> None:
        bar.update(tokens)
        tell.read(tokens)

    def seal(number: int, reading: ShardReading, tokens: int) -> None:
        writer.seal(number, reading.windows, reading.summary)
        tell.sealed(len(reading.windows), tokens)

    with ThreadPoolExecutor(1) as sealing:  # encoding and compression run beside the next shard's forward passes
        pending: Future[None] | None = None
        for number, shard in enumerate(in_shards(windows, config.windows_per_shard)):
            if not part.owns(number):
                continue
            if number in writer.sealed:
                _require_same_windows(writer, number, shard)
                bar.update(tokens_in(shard))
                continue
            if config.corpus.streamed:
                require_fit(reader.teacher, len(tokenizer), max(len(window.tokens) for window in shard))
            reading = reader.read_shard(shard, number, advance)
            read, example = read + tokens_in(shard), shard
            if pending is not None:
                pending.result()  # one shard in flight bounds the memory, and a full disk is told soon
            pending = sealing.submit(seal, number, reading, tokens_in(shard))
        if pending is not None:
            pending.result()
    seconds = time.perf_counter() - start
    if config.corpus.streamed:  # nothing was known ahead
        name_dropped(counts)
    part.require_shards(-(-counts.windows // config.windows_per_shard))  # a stream tells how much there is at its end
    if example is None:
        return counts, None
    return counts, measure(reader.teacher, example, read, seconds, reader.budget)


def _sealed_before(writer: CacheWriter) -> tuple[int, int]:
    """(Windows, tokens) in the shards of earlier runs."""
    indexes = [writer.index(number) for number in writer.sealed]
    return sum(len(index) for index in indexes), sum(int(index.token_count.sum()) for index in indexes)


def _require_own(writer: CacheWriter, part: Part) -> None:
    """A renamed directory must not become a mixture of parts."""
    foreign = [path.name for number, path in sorted(writer.sealed.items()) if not part.owns(number)]
    if foreign:
        what, do = f"cache directory {writer.directory}", "capture into a new directory"
        raise UsageError(what, expected=f"shards of part {part} alone", got=foreign[0], do=do)


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
    config: CaptureConfig,
    part: Part,
    writer: CacheWriter,
    counts: WindowCounts,
    tokenizer: PreTrainedTokenizerBase,
) -> Manifest:
    folder = config.cache / PROGRESS_FOLDER / "tokenizer"
    save_tokenizer(tokenizer, folder)
    indexes = [writer.index(number) for number in sorted(writer.sealed)]
    positions = sum(int(index.token_count.sum()) - len(index) for index in indexes)
    return writer.finish(
        folder,
        share=part.share,
        counts=manifest_counts(counts),
        **figures([index.summary for index in indexes], positions),
        made_with={name: version(name) for name in ("codestill", "torch", "transformers")},
    )
