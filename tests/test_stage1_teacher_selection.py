"""What is kept of the logits, against a float64 reference on random distributions. Not for storage.

Legend: C positions, V vocabulary, K head columns, N tail nodes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from cache.manifest import Selection
from cache.tail import NODES
from stage1_teacher.selection import HeadChunk, Record, summed_powers, tail_mass, top_k

VOCAB = 1000  # not a whole number of blocks


def logits_of(seed: int, spread: float, rows: int = 7) -> torch.Tensor:
    return spread * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed))


def giving(logits_CV: torch.Tensor) -> Callable[[torch.Tensor | None], torch.Tensor]:
    return lambda out_CV: logits_CV.clone() if out_CV is None else out_CV.copy_(logits_CV)


def keep(logits_CV: torch.Tensor, gold_C: torch.Tensor, selection: Selection) -> Record:
    chunk = HeadChunk(VOCAB, torch.device("cpu"))
    chunk.logits(giving(logits_CV), len(logits_CV))
    return chunk.select(gold_C, selection)


@pytest.mark.parametrize("spread", [0.3, 2.0, 12.0])
@pytest.mark.parametrize(("k", "top_p"), [(1, 1.0), (16, 0.9), (64, 0.5), (255, 1.0)])
def test_record_agrees_with_float64(spread: float, k: int, top_p: float) -> None:
    logits_CV = logits_of(1, spread)
    gold_C = torch.randint(0, VOCAB, (7,), generator=torch.Generator().manual_seed(2))
    record = keep(logits_CV, gold_C, Selection(k=k, top_p=top_p))
    truth_CV = logits_CV.double().log_softmax(1)
    torch.testing.assert_close(record.gold_C.double(), truth_CV.gather(1, gold_C[:, None])[:, 0], atol=2e-5, rtol=1e-5)
    for row in range(7):
        size = int(record.sizes_C[row])
        values = truth_CV[row].sort(descending=True).values
        ids_K = record.ids_CK[row, :size].long()
        assert len(set(ids_K.tolist())) == size
        torch.testing.assert_close(truth_CV[row, ids_K], values[:size], atol=2e-6, rtol=0)  # float32 may swap near-ties
        torch.testing.assert_close(record.logprobs_CK[row, :size].double(), values[:size], atol=2e-5, rtol=1e-5)
        mass = values.exp().cumsum(0)
        assert size == k or mass[size - 1] >= top_p - 1e-5, "the head ends only where top_p or k is reached"
        assert size == 1 or mass[size - 2] < top_p + 1e-5, "and not a token later"
        tail_N = torch.stack([(beta * values[size:]).logsumexp(0) for beta in NODES])
        torch.testing.assert_close(record.tail_CN[row].double(), tail_N, atol=5e-5, rtol=1e-5)


def test_tail_mass_is_summed_not_subtracted() -> None:
    logits_CV = logits_of(3, 1.0, rows=1)
    logits_CV[0, 5] = 60.0  # leaves the tail a mass of about 1e-23, which 1 - head cannot show in any float
    record = keep(logits_CV, torch.tensor([5]), Selection(k=1, top_p=1.0))
    truth_V = logits_CV[0].double().log_softmax(0)
    rest = torch.cat([truth_V[:5], truth_V[6:]]).logsumexp(0)
    assert rest < -50
    assert float(record.tail_CN[0, NODES.index(1.0)]) == pytest.approx(float(rest), abs=1e-3)


def test_head_that_holds_the_vocabulary_leaves_no_tail() -> None:
    chunk = HeadChunk(3, torch.device("cpu"))
    logits_CV = torch.randn(2, 3, generator=torch.Generator().manual_seed(4))
    chunk.logits(giving(logits_CV), 2)
    record = chunk.select(torch.tensor([0, 2]), Selection(k=200, top_p=1.0))
    assert record.sizes_C.tolist() == [3, 3]
    assert torch.isneginf(record.tail_CN).all()


def test_scratch_is_reused_without_traces_of_the_chunk_before() -> None:
    chunk, selection = HeadChunk(VOCAB, torch.device("cpu")), Selection(k=8, top_p=0.9)
    gold_C = torch.arange(7)
    first = keep(logits_of(6, 2.0), gold_C, selection)
    for seed in (5, 6):
        chunk.logits(giving(logits_of(seed, 2.0)), 7)
        again = chunk.select(gold_C, selection)
    assert torch.equal(again.logprobs_CK, first.logprobs_CK)
    assert torch.equal(again.tail_CN, first.tail_CN)


@pytest.mark.parametrize("k", [1, 3, 40])
def test_block_search_finds_the_same_largest_values(k: int) -> None:
    values_CV = torch.randn(5, 64 * 20, generator=torch.Generator().manual_seed(k))
    found, columns = top_k(values_CV, k)
    assert torch.equal(found, values_CV.topk(k).values)
    assert torch.equal(values_CV.gather(1, columns), found)


@pytest.mark.parametrize("spread", [0.3, 12.0])
def test_what_a_gpu_compiles_computes_the_same(spread: float) -> None:
    logits_CV = logits_of(7, spread, rows=5)
    logits_CV[:, 3] = -torch.inf
    logits_CV[4] = -torch.inf  # a head that holds the vocabulary
    before_CV = logits_CV.clone()
    plain_CN = summed_powers(logits_CV)
    assert torch.equal(logits_CV, before_CV)
    truth_CN = torch.stack([(beta * logits_CV.double()).logsumexp(1) for beta in NODES], dim=1)
    torch.testing.assert_close(plain_CN.double(), truth_CN, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tail_mass(logits_CV), plain_CN, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vocab", [VOCAB, 64 * 15])
def test_logits_that_bring_their_own_memory_are_kept_alike(vocab: int) -> None:
    """As on a GPU, where a multiplication into float32 has no `out`."""
    logits_CV, gold_C, selection = logits_of(8, 3.0)[:, :vocab].contiguous(), torch.arange(7), Selection(k=8, top_p=0.9)
    chunks = [HeadChunk(vocab, torch.device("cpu")) for _ in range(2)]
    chunks[1]._kept_CV = None
    records = []
    for chunk in chunks:
        seen_CV = chunk.logits(giving(logits_CV), 7)
        assert torch.equal(seen_CV, logits_CV)
        records.append(chunk.select(gold_C, selection))
    for ours, theirs in zip(*(record.columns() for record in records), strict=True):
        assert torch.equal(ours, theirs)
