"""The caches of a run: opened, checked against each other, split into training and validation.

Not for batches (batch.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from cache.manifest import Manifest
from cache.reader import Cache, open_cache
from shared.errors import UsageError
from shared.tokenizer import require_same
from stage2_student.batch import CachedWindows, split_by_hash
from stage2_student.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Data:
    """Both sides of a run's data, the manifest that describes them, and a name without paths for the validation side."""

    training: CachedWindows
    validation: CachedWindows
    manifest: Manifest
    validation_id: str


def open_data(config: TrainConfig) -> Data:
    """Open the caches and split them.

    Raises:
        UsageError: no cache there, another teacher's validation cache, or a side without windows.
        RunError: a cache is damaged.
    """
    cache = open_cache(config.cache)
    choice = config.validation
    if choice.cache is not None:
        other = open_cache(choice.cache)
        require_same_teacher(cache, other)
        training, validation = CachedWindows(cache), CachedWindows(other)
        scored_on = f"cache {other.manifest.cache_id}"
    else:
        assert choice.fraction is not None
        kept, held_out = split_by_hash(cache, choice.fraction)
        training, validation = CachedWindows(cache, kept), CachedWindows(cache, held_out)
        scored_on = f"fraction {choice.fraction}"
    for name, side in (("training", training), ("validation", validation)):
        if not len(side):
            got = f"0 of {len(cache)} windows for {name}"
            raise UsageError("validation.fraction", expected="windows on both sides", got=got, do="change the fraction")
    return Data(training, validation, cache.manifest, scored_on)


def require_same_teacher(cache: Cache, other: Cache) -> None:
    """A validation cache must come from the training cache's teacher and tokenizer.

    Raises:
        UsageError: names the first fact that differs.
    """
    what, do = f"validation cache {other.directory}", "capture it with the training cache's teacher"
    require_same(cache.manifest.tokenizer, other.manifest.tokenizer, what=what, do=do)
    wanted, found = cache.manifest.teacher.weights, other.manifest.teacher.weights
    if wanted != found:
        raise UsageError(what, expected=f"teacher weights {wanted[:12]}", got=found[:12], do=do)
    if cache.manifest.vocab_size != other.manifest.vocab_size:
        got = str(other.manifest.vocab_size)
        raise UsageError(what, expected=f"vocabulary {cache.manifest.vocab_size}", got=got, do=do)
