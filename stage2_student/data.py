"""The caches of a run: opened, checked against each other, split into training and validation.

Not for batches (batch.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from cache.manifest import Manifest
from cache.reader import Cache, open_cache
from cache.shape import read_basis
from shared.errors import UsageError
from shared.tokenizer import require_same
from stage2_student.batch import CachedWindows, split_by_hash
from stage2_student.config import TrainConfig
from stage2_student.divergences import TailShape


@dataclass(frozen=True, slots=True)
class Data:
    """Both sides of a run's data, the manifest that describes them, and a name without paths for the validation side.

    The tail shapes are each cache's own: two captures fit two bases. None where the form does not rebuild the tail.
    """

    training: CachedWindows
    validation: CachedWindows
    manifest: Manifest
    validation_id: str
    training_shape: TailShape | None
    validation_shape: TailShape | None


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
    shapes = [tail_shape(side.cache) if config.form == "full" else None for side in (training, validation)]
    return Data(training, validation, cache.manifest, scored_on, *shapes)


def tail_shape(cache: Cache) -> TailShape:
    """What rebuilds a cache's tails.

    Raises:
        UsageError: the cache keeps only the tail's mass.
        RunError: the stored basis is damaged.
    """
    shape = cache.manifest.identity.shape
    if shape is None:
        got = f"none in {cache.directory}"
        do = "set form: bucket, or capture with a shape"
        raise UsageError("form full", expected="a cache with a tail shape", got=got, do=do)
    basis = read_basis(cache.directory, shape, cache.manifest.vocab_size)
    return TailShape(torch.from_numpy(basis.mean_V), torch.from_numpy(basis.basis()))


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
