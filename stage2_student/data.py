"""The caches of a run: opened, checked against each other, split into training and validation; and the training order.

Not for batches (batch.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from cache.basis import read_basis
from cache.manifest import Manifest
from cache.order import epoch_order
from cache.reader import Cache
from shared.errors import UsageError
from shared.tokenizer import TokenizerFingerprint, require_same
from stage2_student.batch import CachedWindows, split_by_hash
from stage2_student.config import TrainConfig
from stage2_student.divergences import TailShape
from stage2_student.other_tokenizer import Own, open_own
from stage2_student.source import open_source, open_validation


@dataclass(frozen=True, slots=True)
class Data:
    """Both sides of a run's data, the manifest that describes them, and a name without paths for the validation side.

    The tail shapes are each cache's own: two captures fit two bases. None where the form does not rebuild the tail. `own` is
    the student's tokenizer where it is not the caches'.
    """

    training: CachedWindows
    validation: CachedWindows
    manifest: Manifest
    validation_id: str
    training_shape: TailShape | None
    validation_shape: TailShape | None
    own: Own | None

    @property
    def vocabulary(self) -> tuple[int | None, TokenizerFingerprint]:
        """Rows of the student's head (None: a pretrained one keeps its own) and its tokenizer."""
        if self.own is not None:
            return self.own.rows, self.own.facts
        return self.manifest.vocab_size, self.manifest.tokenizer


def open_data(config: TrainConfig) -> Data:
    """Open the caches and split them.

    Raises:
        UsageError: no cache there, another teacher's validation cache, or a side without windows.
        RunError: a cache is damaged.
    """
    cache = open_source(config)
    choice = config.validation
    if choice.cache is not None:
        other = open_validation(config)
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
    ours, theirs = (tail_shape(side.cache) if config.form == "full" else None for side in (training, validation))
    return Data(training, validation, cache.manifest, scored_on, ours, theirs, open_own(config))


class EpochOrder(Sampler[int]):
    """Training windows in the order of (seed, epoch), whatever torch's random state, worker or process asks.

    The trainer says `set_epoch` before each pass and skips what a resumed run has consumed by dropping numbers from the
    front: nothing skipped is read.

    Args:
        shard_N: number of the shard that holds each training window.
        seed: of the run.
        live_shards: most shards whose windows are mixed at once.
    """

    def __init__(self, shard_N: NDArray[Any], *, seed: int, live_shards: int) -> None:
        self._shard_N, self._seed, self._live_shards = shard_N, seed, live_shards
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._shard_N)

    def __iter__(self) -> Iterator[int]:
        order = epoch_order(self._shard_N, seed=self._seed, epoch=self._epoch, live_shards=self._live_shards)
        return map(int, order)


def shards_of(windows: CachedWindows) -> NDArray[np.int64]:
    """[N], the number of the shard that holds each window of one side."""
    sizes = [shard.windows for shard in windows.cache.manifest.shards]
    return np.repeat(np.arange(len(sizes)), sizes)[windows.indices]


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
