"""ULD: its value and gradient against autograd on whole tensors, both forms, both orders of vocabulary size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cache.tail import NODES
from stage2_student.divergences import TailShape
from stage2_student.uld import Aligned, AlignedTerms, UldLoss, most_likely_first

N, D, K, R = 7, 5, 4, 3
FIELDS = ("head_ids_NK", "head_logprobs_NK", "head_sizes_N", "tail_NM", "coords_NR")
SIZES = [(11, 17), (17, 11), (13, 13)]  # student's vocabulary, teacher's


def teacher(rows: int, shape: TailShape, generator: torch.Generator) -> tuple[Aligned, Tensor]:
    """A record whose tail is exactly what its shape rebuilds, and the teacher's logits."""
    coords = torch.randn(rows, R, generator=generator, dtype=torch.float64)
    logits = shape.mean_V + coords @ shape.basis_RV
    logp, ids = logits.log_softmax(1).sort(1, descending=True)
    sizes = torch.arange(rows) % K + 1
    inside = torch.arange(K) < sizes[:, None]
    outside = logp.masked_fill(torch.arange(logp.shape[1]) < sizes[:, None], -math.inf)
    tail = torch.stack([(beta * outside).logsumexp(1) for beta in NODES], 1)
    head = logp[:, :K].masked_fill(~inside, -math.inf)
    aligned = torch.rand(rows, generator=generator) < 0.6
    aligned[:2] = torch.tensor([True, False])
    return Aligned(torch.zeros(rows, dtype=torch.int64), ids[:, :K], head, sizes, tail, coords, aligned), logits


def setting(student: int, cached: int, rows: int = N) -> tuple[Tensor, Tensor, Aligned, Tensor, TailShape]:
    generator = torch.Generator().manual_seed(student * 100 + cached)
    double = {"generator": generator, "dtype": torch.float64}
    shape = TailShape(torch.randn(cached, **double), torch.randn(R, cached, **double))
    record, logits = teacher(rows, shape, generator)
    targets = torch.randint(0, student, (rows,), generator=generator)
    record = Aligned(targets, *(getattr(record, name) for name in FIELDS), record.aligned_N)
    hidden = torch.randn(rows, D, **double).requires_grad_()
    weight = torch.randn(student, D, **double).requires_grad_()
    return hidden, weight, record, logits, shape


def loss_of(form: str, cached: int, shape: TailShape, temperature: float = 1.0, **settings: int) -> UldLoss:
    weights = {"kd_weight": 1.5, "ce_weight": 0.25, "temperature": temperature}
    return UldLoss(form=form, vocab_size=cached, tail_shape=shape if form == "full" else None, **weights, **settings)


def teacher_at(form: str, logits: Tensor, record: Aligned, temperature: float) -> Tensor:
    """p_T as the form has it, unsorted."""
    p = (logits / temperature).softmax(1)
    if form == "full":
        return p
    spread = torch.empty_like(p)
    for row, size in enumerate(record.head_sizes_N.tolist()):
        head = record.head_ids_NK[row, :size]
        spread[row] = (1 - p[row, head].sum()) / (p.shape[1] - size)
        spread[row, head] = p[row, head]
    return spread


def naive(hidden: Tensor, weight: Tensor, record: Aligned, p: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(sum of ULD over aligned positions, sum of cross-entropy), on whole tensors, as the paper writes it."""
    z = hidden @ weight.T
    q = (z / temperature).softmax(1)
    wide = max(p.shape[1], q.shape[1])
    one, other = (torch.nn.functional.pad(x, (0, wide - x.shape[1])).sort(1, descending=True).values for x in (p, q))
    distance = (one - other).abs().sum(1)[record.aligned_N].sum()
    return distance, torch.nn.functional.cross_entropy(z, record.targets_N, reduction="sum")


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("form", ["full", "bucket"])
@pytest.mark.parametrize(("student", "cached"), SIZES)
def test_value_and_gradient_are_those_of_whole_tensors(
    form: str, student: int, cached: int, temperature: float
) -> None:
    hidden, weight, record, logits, shape = setting(student, cached)
    kd, ce = naive(hidden, weight, record, teacher_at(form, logits, record, temperature), temperature)
    wanted = torch.autograd.grad(1.5 * kd + 0.25 * ce, (hidden, weight))
    for chunk in (3, 100):
        terms = loss_of(form, cached, shape, temperature, chunk=chunk)(hidden, weight, record)
        # at T = 2 the tail's mass is read off the stored nodes, exact to their spline's error
        close = {"rtol": 1e-9, "atol": 1e-9} if temperature == 1 else {"rtol": 1e-3, "atol": 1e-3}
        torch.testing.assert_close((terms.kd, terms.ce), (kd.detach(), ce.detach()), **close)
        torch.testing.assert_close(terms.loss.detach(), 1.5 * terms.kd + 0.25 * terms.ce)
        torch.testing.assert_close(torch.autograd.grad(terms.loss, (hidden, weight)), wanted, **close)
        assert isinstance(terms, AlignedTerms)
        assert terms.aligned == record.aligned_N.sum()


@pytest.mark.parametrize("form", ["full", "bucket"])
@pytest.mark.parametrize(("student", "cached"), SIZES)
def test_gradcheck(form: str, student: int, cached: int) -> None:
    hidden, weight, record, _, shape = setting(student, cached)
    loss = loss_of(form, cached, shape, 1.7)
    assert torch.autograd.gradcheck(lambda h, w: loss(h, w, record).loss, (hidden, weight), eps=1e-7, atol=1e-5)


def test_a_teacher_as_sure_as_the_student_has_distance_0_whatever_the_tokens() -> None:
    hidden, weight, record, _, _ = setting(9, 9)
    with torch.no_grad():
        logp, ids = (hidden @ weight.T).log_softmax(1).sort(1, descending=True)
    whole = torch.full((N,), 9)
    nothing = torch.full((N, len(NODES)), -math.inf, dtype=torch.float64)
    shuffled = (ids + 4) % 9  # other tokens, the same probabilities
    same = Aligned(record.targets_N, shuffled, logp, whole, nothing, record.coords_NR, torch.ones(N, dtype=torch.bool))
    terms = UldLoss(form="bucket", vocab_size=9, kd_weight=1.0, ce_weight=0.0)(hidden, weight, same)
    assert terms.kd == pytest.approx(0, abs=1e-12)


def test_a_batch_without_an_aligned_position_teaches_by_its_text() -> None:
    hidden, weight, record, _, shape = setting(11, 17)
    columns = [getattr(record, name) for name in ("targets_N", *FIELDS)]
    terms = loss_of("full", 17, shape)(hidden, weight, Aligned(*columns, torch.zeros(N, dtype=torch.bool)))
    assert terms.kd == 0
    assert terms.loss.item() == pytest.approx(0.25 * terms.ce.item())


def test_no_tensor_of_all_positions_and_the_vocabulary_is_held() -> None:
    rows, vocabulary = 6000, 400
    hidden, weight, record, _, shape = setting(vocabulary, vocabulary, rows)
    loss = loss_of("full", vocabulary, shape, chunk=256)
    loss(hidden, weight, record).loss.backward()
    assert 0 < loss._scratch.bytes < rows * vocabulary * 8 / 3


def test_sorting_through_numpy_is_torchs_sort() -> None:
    values = torch.rand(5, 40)
    ordered, places = most_likely_first(values)
    torch.testing.assert_close(ordered, values.sort(1, descending=True).values)
    assert torch.equal(values.gather(1, places), ordered)
