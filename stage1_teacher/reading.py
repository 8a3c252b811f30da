"""The teacher reads one shard's windows; what it believed comes back as records. Not for files: capture.py seals them.

Hidden states first, then the head over chunks of positions, then selection on the same device. What is kept leaves a GPU by
a stream of its own, and a second thread cuts it into windows, while the next batch is on its way.
Legend: B windows of a batch, L tokens, D width, N positions that predict something, C positions of one chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cache.encoding import Encoding
from cache.record import CachedWindow
from shared.memory import free_memory, is_out_of_memory
from shared.windows import Window
from stage1_teacher.aim import Sample, places_of
from stage1_teacher.batches import longest_first, next_batch, pack, token_ids, tokens_of
from stage1_teacher.budget import Budget
from stage1_teacher.config import CaptureConfig
from stage1_teacher.fidelity import Rebuilder, add_to, as_stored, new_sums, rounded, sample_positions
from stage1_teacher.leaving import Leaving, pinned, to_device
from stage1_teacher.quantisation import too_small
from stage1_teacher.selection import HeadChunk, Record
from stage1_teacher.shape import Projection
from stage1_teacher.teacher import TeacherModel


@dataclass(frozen=True)
class ShardReading:
    """One shard's records in corpus order, and the sums its summary keeps."""

    windows: list[CachedWindow]
    summary: dict[str, Any]


@dataclass(frozen=True)
class _Read:
    """What is kept of a batch, on its way to the CPU: read it after `arrived`."""

    record: Record
    coords_NR: Tensor
    truth_SV: Tensor
    arrived: Callable[[], object]


class Reader:
    """A teacher with what is kept of it.

    Args:
        teacher: who reads.
        projection: the tail's shape; None keeps only its mass.
        encoding: the cache's, for measuring what a reader will see.
        config: selection, batch size, fidelity sample.
        budget: tokens of a batch; what the config says if absent.
    """

    def __init__(
        self,
        teacher: TeacherModel,
        projection: Projection | None,
        encoding: Encoding,
        config: CaptureConfig,
        budget: Budget | None = None,
    ) -> None:
        self.teacher, self.projection, self.encoding, self.config = teacher, projection, encoding, config
        self.budget = budget or Budget(tokens_of(config.batch_tokens))
        self._chunk = HeadChunk(teacher.vocab_size, teacher.device)
        self._leaving = Leaving(teacher.device)
        self._prior = projection.basis.prior if projection else None
        self._rebuild = Rebuilder(teacher.vocab_size, projection.basis if projection else None)

    @torch.inference_mode()
    def read_shard(self, windows: Sequence[Window], number: int, advance: Callable[[int], object]) -> ShardReading:
        """Run the teacher over one shard's windows.

        Args:
            number: the shard's, which seeds the sample of positions that are measured.
            advance: called with the tokens of every batch that is done.
        Raises:
            UsageError: not even one window fits into the device's memory.
        """
        fidelity = self.config.fidelity
        counts = [len(window.tokens) - 1 for window in windows]
        wanted = sample_positions(counts, fidelity.positions_per_shard, number)
        records: list[CachedWindow | None] = [None] * len(windows)
        sums = [new_sums(temperature) for temperature in fidelity.temperatures]

        def keep(batch: list[int], read: _Read) -> None:
            chosen = [windows[index] for index in batch]
            found, truths = self._cut(read, chosen, [wanted[index] for index in batch])
            for index, record, truth_SV in zip(batch, found, truths, strict=True):
                records[index] = record
                if wanted[index]:
                    add_to(sums, self._rebuild, as_stored(record, self.encoding, self._prior), wanted[index], truth_SV)
            advance(sum(len(window.tokens) for window in chosen))

        self._read_all(windows, wanted, number, torch.inference_mode()(keep))
        whole = [record for record in records if record is not None]
        assert len(whole) == len(windows), "every window was in one batch"
        gold = float(sum(record.gold_P.sum(dtype=np.float64) for record in whole))
        return ShardReading(whole, {"fidelity": [rounded(row) for row in sums], "gold_sum": gold})

    def _read_all(
        self,
        windows: Sequence[Window],
        wanted: Sequence[Sequence[int]],
        number: int,
        keep: Callable[[list[int], _Read], None],
    ) -> None:
        """Batch after batch; `keep` has the last one while the teacher reads the next."""
        order, done = longest_first(windows), 0
        with ThreadPoolExecutor(1) as keeping:
            pending: Future[None] | None = None
            while done < len(order):
                batch = next_batch(windows, order, done, self.budget.at(number, done))
                read = self._read_or_lower([windows[i] for i in batch], [wanted[i] for i in batch], number, done)
                if read is None:
                    continue
                if pending is not None:
                    pending.result()
                pending = keeping.submit(keep, batch, read)
                done += len(batch)
            if pending is not None:
                pending.result()

    def _read_or_lower(
        self, windows: Sequence[Window], wanted: Sequence[Sequence[int]], number: int, done: int
    ) -> _Read | None:
        """None where memory ran out: then batches have half as many windows from here on."""
        try:
            return self._read(hidden_states(self.teacher, windows), windows, wanted)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        free_memory()  # now that nothing holds the frames of the failed pass
        longest, half = len(windows[0].tokens), len(windows) // 2
        if half == 0:
            facts = self.teacher.facts
            raise too_small(f"teacher {facts.id}, a window of {longest} tokens", facts.parameters, self.config.teacher)
        self.budget.lower(number, done, half * longest)
        return None

    @torch.inference_mode()
    def read_sample(self, windows: Sequence[Window], places: Sequence[Sequence[int]], positions: int) -> Sample:
        """Records of a few windows with their hidden states and the truth at `places`; `positions` is the corpus's."""
        batches = list(pack(windows, self.config.batch_tokens))
        hidden, records, truths = [], [], []
        for batch in batches:
            chosen, wanted = [windows[index] for index in batch], [places[index] for index in batch]
            hidden.append(hidden_states(self.teacher, chosen))
            found, found_truths = self._cut(self._read(hidden[-1], chosen, wanted), chosen, wanted)
            records += found
            truths += found_truths
        return Sample(records, torch.cat(hidden), [places[i] for batch in batches for i in batch], truths, positions)

    def _read(self, hidden_ND: Tensor, windows: Sequence[Window], wanted: Sequence[Sequence[int]]) -> _Read:
        """What is kept of a batch, and the full log-probabilities at its windows' wanted positions; nothing waits here."""
        gold_N = torch.cat([torch.from_numpy(window.tokens[1:]).long() for window in windows])
        starts = _starts(windows)
        wanted_N = [int(starts[row]) + place for row, places in enumerate(wanted) for place in places]
        record, truth_SV = self._through_head(hidden_ND, to_device(gold_N, hidden_ND.device), wanted_N)
        coords_NR = hidden_ND.new_zeros(len(hidden_ND), 0, dtype=torch.float32)
        if self.projection is not None:
            coords_NR = self.projection.coordinates(hidden_ND)
        columns, arrived = self._leaving.take([*record.columns(), coords_NR, truth_SV])
        return _Read(Record(*columns[:-2]), columns[-2], columns[-1], arrived)

    def _cut(
        self, read: _Read, windows: Sequence[Window], wanted: Sequence[Sequence[int]]
    ) -> tuple[list[CachedWindow], list[Tensor]]:
        """Records of a batch, and the full log-probabilities [S, V] at each window's wanted positions."""
        read.arrived()
        starts, coords_NR = _starts(windows), read.coords_NR.numpy()
        cached = [
            _window(window, read.record, coords_NR, int(start), len(window.tokens) - 1)
            for window, start in zip(windows, starts, strict=False)
        ]
        return cached, list(torch.split(read.truth_SV, [len(places) for places in wanted]))

    def _through_head(self, hidden_ND: Tensor, gold_N: Tensor, wanted_N: Sequence[int]) -> tuple[Record, Tensor]:
        parts, chunk = [], self._chunk
        truths = [hidden_ND.new_zeros(0, chunk.vocab_size, dtype=torch.float32)]
        wanted = np.array(wanted_N, dtype=np.int64)
        for start in range(0, len(hidden_ND), chunk.rows):
            hidden_CD = hidden_ND[start : start + chunk.rows]
            logits_CV = chunk.logits(partial(self.teacher.logits, hidden_CD), len(hidden_CD))
            inside = wanted[(wanted >= start) & (wanted < start + len(hidden_CD))] - start
            if len(inside):
                truths.append(logits_CV[to_device(torch.from_numpy(inside), logits_CV.device)].log_softmax(dim=1))
            parts.append(chunk.select(gold_N[start : start + chunk.rows], self.config.selection))
        columns = (torch.cat([getattr(part, name) for part in parts]) for name in Record.__slots__)
        return Record(*columns), torch.cat(truths)


def _starts(windows: Sequence[Window]) -> NDArray[np.int64]:
    """Where each window's positions begin in its batch, and where they end."""
    return np.cumsum([0, *(len(window.tokens) - 1 for window in windows)])


def hidden_states(teacher: TeacherModel, windows: Sequence[Window]) -> Tensor:
    """Last hidden states [N, D] of every position that predicts a token of its window, window after window."""
    hidden_BLD = teacher.hidden(pinned(token_ids(windows), teacher.device))
    return torch.cat([hidden_BLD[row, : len(window.tokens) - 1] for row, window in enumerate(windows)])


@torch.inference_mode()
def sample_hidden_states(
    teacher: TeacherModel, windows: Sequence[Window], batch_tokens: int | Literal["auto"]
) -> tuple[Tensor, Tensor]:
    """(Hidden states [S, D] of a sample of windows, the token each has seen last [S]), for fitting the tail's shape."""
    batches = [[windows[index] for index in batch] for batch in pack(windows, batch_tokens)]
    last_S = torch.cat([torch.from_numpy(window.tokens[:-1]).long() for batch in batches for window in batch])
    return torch.cat([hidden_states(teacher, batch).float() for batch in batches]), last_S


def read_sample(teacher: TeacherModel, windows: Sequence[Window], config: CaptureConfig, positions: int) -> Sample:
    """Records, hidden states and truths of a few windows, for choosing the tail's shape.

    Args:
        positions: of the whole corpus.
    """
    places = places_of([len(window.tokens) - 1 for window in windows])
    reader = Reader(teacher, None, Encoding(vocab_size=teacher.vocab_size, k=config.selection.k), config)
    return reader.read_sample(windows, places, positions)


def _window(window: Window, record: Record, coords_NR: NDArray[np.float32], start: int, count: int) -> CachedWindow:
    """Cut one window's positions out of the batch's record and drop the padding of its heads."""
    rows = slice(start, start + count)
    sizes_P = record.sizes_C[rows]
    kept_PK = torch.arange(record.ids_CK.shape[1]) < sizes_P[:, None]
    return CachedWindow(
        id=window.id,
        document=window.document,
        prompt_tokens=window.prompt_tokens,
        tokens=window.tokens,
        head_sizes_P=sizes_P.numpy(),
        head_ids_E=record.ids_CK[rows][kept_PK].numpy(),
        head_logprobs_E=record.logprobs_CK[rows][kept_PK].numpy(),
        tail_PN=record.tail_CN[rows].numpy(),
        gold_P=record.gold_C[rows].numpy(),
        coords_PR=coords_NR[rows],
    )
