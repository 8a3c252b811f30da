"""From cached windows to batches: padded token ids for the student, flat records for the loss.

Not for order (data.py) and not for reading bytes (cache/reader.py).
Shapes: B windows, T their most positions, N positions that count, K the largest head among them, M tail nodes, R coordinates,
P positions of one window, E head entries of one window.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from cache.reader import Cache
from cache.record import CachedWindow
from shared.errors import CodestillError, RunError
from stage2_student.loss import Positions
from stage2_student.uld import Aligned


class CachedWindows(Dataset[CachedWindow | CodestillError]):
    """Some windows of a cache, as a map-style dataset; picklable and safe in forked workers, as the cache is.

    A damaged window comes back as the error itself, not raised: a worker's exception would reach
    the user with its traceback as text.
    """

    def __init__(self, cache: Cache, indices: NDArray[np.int64] | None = None) -> None:
        self.cache = cache
        self.indices = np.arange(len(cache)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> CachedWindow | CodestillError:
        try:
            return self.cache[int(self.indices[index])]
        except CodestillError as error:
            return error

    def __getitems__(self, indices: list[int]) -> list[CachedWindow | CodestillError]:
        """A batch, as a DataLoader asks for it: read together, which is quicker; one by one where one is damaged."""
        try:
            return [*self.cache.read(self.indices[indices].tolist())]
        except CodestillError:
            return [self[index] for index in indices]

    @property
    def longest(self) -> int:
        """Tokens of the longest window."""
        return int(self.cache.lengths[self.indices].max())


def split_by_hash(cache: Cache, fraction: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training, validation) window numbers. A window's id is a hash, so its size as a number is the draw.

    The same window lands on the same side in every cache, with every seed.
    """
    held_out = cache.window_ids.astype(np.float64) < fraction * 2.0**64
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def require_whole(batch: dict[str, Any]) -> None:
    """Raise the error that stands in the place of a batch, if one does.

    Raises:
        RunError: a window of this batch is damaged.
    """
    if "failure" in batch:
        raise batch["failure"]


@contextmanager
def named_when_a_worker_dies() -> Iterator[None]:
    """Turn torch's words for a reading process that died into our sentence; any other error passes as it is.

    Raises:
        RunError: a process that reads the cache was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise RunError(
            "reading the cache",
            expected="its processes to live",
            got=str(error),
            do="they may be out of memory: set fewer workers (0 reads in the training process) and run the same command "
            "again, it goes on",
        ) from None


def record_of(batch: dict[str, Any]) -> Positions:
    """The loss's view of a batch."""
    names = ["targets", "head_ids", "head_logprobs", "head_sizes", "tail", "coords"]
    if "aligned" in batch:
        return Aligned(*(batch[name] for name in [*names, "aligned"]))
    return Positions(*(batch[name] for name in names))


@dataclass(frozen=True, slots=True)
class Collate:
    """Windows -> one batch of tensors.

    The student is fed tokens[:-1]: the last token has no successor. Padding stands on the right, where no
    counted position looks.

    Attributes:
        mask_prompt: count only positions that predict a token after the prompt.
        pad_id: id put on padding; never looked at.
        lengths_V: bytes of each token; None where they are not known.
    """

    mask_prompt: bool
    pad_id: int
    lengths_V: NDArray[np.int64] | None = None

    def __call__(self, windows: list[CachedWindow | CodestillError]) -> dict[str, Any]:
        """A dict with

            input_ids, attention_mask: int64 [B, T]
            counted: int64 [N], places in the flattened [B * T]
            targets: int64 [N]; head_ids: int64 [N, K]; head_logprobs: float32 [N, K], -inf on padding
            head_sizes: int64 [N]; tail: float32 [N, M]; coords: float32 [N, R]
            target_bytes: int64 [N], of the target's text; absent where tokens do not say
            window_ids: list of B strings

        or, where a window was damaged, only `failure`.
        """
        whole: list[CachedWindow] = []
        for window in windows:
            if isinstance(window, CodestillError):
                return {"failure": window}
            whole.append(window)
        return {**self._inputs(whole), **self._record(whole), "window_ids": [window.id for window in whole]}

    def _counts(self, window: CachedWindow) -> NDArray[np.bool_]:
        """bool [P]: position t counts when the token it predicts, t + 1, lies after the prompt."""
        predicted_P = np.arange(1, len(window.tokens))
        return predicted_P >= (window.prompt_tokens if self.mask_prompt else 0)

    def _inputs(self, windows: list[CachedWindow]) -> dict[str, torch.Tensor]:
        length = max(len(window.tokens) for window in windows) - 1
        ids_BT = np.full((len(windows), length), self.pad_id, np.int64)
        mask_BT = np.zeros((len(windows), length), np.int64)
        counted_BT = np.zeros((len(windows), length), np.bool_)
        for row, window in enumerate(windows):
            positions = len(window.tokens) - 1
            ids_BT[row, :positions] = window.tokens[:-1]
            mask_BT[row, :positions] = 1
            counted_BT[row, :positions] = self._counts(window)
        return {
            "input_ids": torch.from_numpy(ids_BT),
            "attention_mask": torch.from_numpy(mask_BT),
            "counted": torch.from_numpy(np.flatnonzero(counted_BT)),
        }

    def _record(self, windows: list[CachedWindow]) -> dict[str, torch.Tensor]:
        counted = np.concatenate([self._counts(window) for window in windows])
        sizes = np.concatenate([window.head_sizes_P for window in windows]).astype(np.int64)
        widest = int(sizes[counted].max(initial=1))
        inside = np.arange(int(sizes.max()))[None, :] < sizes[:, None]
        ids, logprobs = np.zeros(inside.shape, np.int64), np.full(inside.shape, -np.inf, np.float32)
        ids[inside] = np.concatenate([window.head_ids_E for window in windows])
        logprobs[inside] = np.concatenate([window.head_logprobs_E for window in windows])
        columns: dict[str, NDArray[Any]] = {
            "targets": np.concatenate([window.tokens[1:] for window in windows]).astype(np.int64),
            "head_ids": ids[:, :widest],
            "head_logprobs": logprobs[:, :widest],
            "head_sizes": sizes,
            "tail": np.concatenate([window.tail_PN for window in windows]),
            "coords": np.concatenate([window.coords_PR for window in windows]),
        }
        if self.lengths_V is not None:
            columns["target_bytes"] = self.lengths_V[columns["targets"]]
        return {name: torch.from_numpy(column[counted]) for name, column in columns.items()}
