"""The distillation loss against slow, obvious references. Not for training runs (test_stage2_student_train.py)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cache.tail import NODES, node_weights
from stage2_student.divergences import TailShape, bucket, full, renormalised
from stage2_student.head_loss import default_chunk
from stage2_student.loss import DistillationLoss, LossTerms, Positions, tail_mass

# Shapes: N positions, V vocabulary, D width, K head entries, R coordinates.


def make_record(logits_NV: Tensor, sizes_N: Tensor, coords_NR: Tensor | None = None) -> Positions:
    """The record of teacher logits: the `sizes` most likely tokens of each position, f(beta) exact at every node."""
    count, vocab = logits_NV.shape
    logp_NV = logits_NV.double().log_softmax(1)
    values, ids = logp_NV.sort(1, descending=True)
    width = int(sizes_N.max())
    inside_NV = torch.arange(vocab) < sizes_N[:, None]
    tail_NV = values.masked_fill(inside_NV, -math.inf)
    tail_NM = torch.stack([(beta * tail_NV).logsumexp(1) for beta in NODES], dim=1)
    return Positions(
        targets_N=torch.randint(0, vocab, (count,)),
        head_ids_NK=ids[:, :width].masked_fill(~inside_NV[:, :width], 0),
        head_logprobs_NK=values[:, :width].masked_fill(~inside_NV[:, :width], -math.inf).float(),
        head_sizes_N=sizes_N,
        tail_NM=tail_NM.float(),
        coords_NR=torch.zeros(count, 0) if coords_NR is None else coords_NR.float(),
    )


def exact(record: Positions, logits_NV: Tensor) -> Positions:
    """The same record in float64, so that comparisons are not limited by the file's float32."""
    logp_NV = logits_NV.double().log_softmax(1)
    valid = record.head_logprobs_NK > -math.inf
    head = logp_NV.gather(1, record.head_ids_NK).masked_fill(~valid, -math.inf)
    outside = torch.ones_like(logp_NV, dtype=torch.bool).scatter_(
        1, torch.where(valid, record.head_ids_NK, record.head_ids_NK[:, :1]), False
    )
    tail = [(beta * logp_NV.masked_fill(~outside, -math.inf)).logsumexp(1) for beta in NODES]
    return Positions(
        record.targets_N, record.head_ids_NK, head, record.head_sizes_N, torch.stack(tail, 1), record.coords_NR.double()
    )


def naive(
    hidden_ND: Tensor, weight_VD: Tensor, record: Positions, form: str, temperature: float
) -> tuple[Tensor, Tensor]:
    """(kd_N, ce_N) written out over the whole vocabulary, one position at a time, autograd doing the rest."""
    vocab, beta = len(weight_VD), 1 / temperature
    log_tail_N = tail_mass(record.tail_NM, record.head_sizes_N, beta, vocab)
    logits_NV = hidden_ND @ weight_VD.T
    kd = []
    for row in range(len(hidden_ND)):
        size = int(record.head_sizes_N[row])
        ids, head = record.head_ids_NK[row, :size], record.head_logprobs_NK[row, :size].double() * beta
        q_V = (logits_NV[row].double() * beta).softmax(0)
        if form == "renormalised":
            p = head.softmax(0)
            kd.append((p * (p.log() - q_V[ids].log())).sum())
            continue
        cells = torch.cat([head, log_tail_N[row : row + 1]]) if size < vocab else head
        log_p = cells.log_softmax(0)
        outside = torch.ones(vocab, dtype=torch.bool)
        outside[ids] = False
        q = torch.cat([q_V[ids], q_V[outside].sum()[None]]) if size < vocab else q_V[ids]
        kd.append((log_p.exp() * (log_p - q.log())).sum())
    ce_N = torch.nn.functional.cross_entropy(logits_NV, record.targets_N, reduction="none")
    return torch.stack(kd), ce_N


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(2026)


@pytest.fixture
def case() -> tuple[Tensor, Tensor, Tensor]:
    """Student hidden [N, D] and head [V, D] that need gradients, teacher logits [N, V]; float64."""
    hidden = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(23, 5, dtype=torch.float64, requires_grad=True)
    return hidden, weight, 3 * torch.randn(7, 23, dtype=torch.float64)


SIZES = torch.tensor([1, 4, 23, 2, 9, 22, 3])  # one id, the whole vocabulary, all but one


def grads(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("form", ["bucket", "renormalised"])
@pytest.mark.parametrize("temperature", [0.8, 1.0, 2.0])
def test_equals_the_naive_loss_and_its_gradient(
    case: tuple[Tensor, Tensor, Tensor], form: str, temperature: float
) -> None:
    hidden, weight, teacher = case
    record = exact(make_record(teacher, SIZES), teacher)
    loss = DistillationLoss(form=form, temperature=temperature, kd_weight=0.6, ce_weight=0.4, vocab_size=23, chunk=3)
    terms = loss(hidden, weight, record)
    kd_N, ce_N = naive(hidden, weight, record, form, temperature)
    expected = 0.6 * temperature**2 * kd_N.sum() + 0.4 * ce_N.sum()
    torch.testing.assert_close(terms.loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close((terms.kd, terms.ce), (kd_N.sum(), ce_N.sum()), rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(grads(terms.loss, hidden, weight), grads(expected, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("form", ["bucket", "renormalised"])
def test_gradcheck(case: tuple[Tensor, Tensor, Tensor], form: str) -> None:
    hidden, weight, teacher = case
    record = exact(make_record(teacher, SIZES), teacher)
    loss = DistillationLoss(form=form, temperature=1.7, kd_weight=0.7, ce_weight=0.3, vocab_size=23, chunk=4)
    assert torch.autograd.gradcheck(lambda h, w: loss(h, w, record).loss / 7, (hidden, weight))


def test_gradcheck_of_the_full_form(case: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, teacher = case
    coords = torch.randn(7, 2, dtype=torch.float64)
    shape = TailShape(torch.randn(23, dtype=torch.float64), torch.randn(2, 23, dtype=torch.float64))
    record = exact(make_record(teacher, SIZES, coords), teacher)
    loss = with_shape(shape, temperature=1.5, kd_weight=1.0, ce_weight=0.2)
    assert torch.autograd.gradcheck(lambda h, w: loss(h, w, record).loss, (hidden, weight))


def with_shape(shape: TailShape, **settings: float) -> DistillationLoss:
    return DistillationLoss(form=full, vocab_size=23, tail_shape=shape, chunk=3, **settings)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_full_form_with_a_lossless_shape_is_online_distillation(
    case: tuple[Tensor, Tensor, Tensor], temperature: float
) -> None:
    """Teacher logits that are linear in the coordinates come back whole, so KL over all of V must be the online one."""
    hidden, weight, _ = case
    coords = torch.randn(7, 3, dtype=torch.float64)
    shape = TailShape(torch.randn(23, dtype=torch.float64), torch.randn(3, 23, dtype=torch.float64))
    teacher = shape.mean_V + coords @ shape.basis_RV
    record = exact(make_record(teacher, SIZES, coords), teacher)
    record = Positions(**{name: getattr(record, name) for name in Positions.__slots__} | {"coords_NR": coords})
    if temperature != 1.0:  # the spline's own error in the tail mass must not blur the comparison
        assert 1 / temperature not in NODES
    terms = with_shape(shape, temperature=temperature, kd_weight=1.0, ce_weight=0.0)(hidden, weight, record)
    p = (teacher / temperature).log_softmax(1)
    q = (hidden @ weight.T / temperature).log_softmax(1)
    online = torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")
    tolerance = 1e-9 if temperature == 1.0 else 5e-3
    torch.testing.assert_close(terms.kd, online.detach(), rtol=tolerance, atol=tolerance)
    expected = grads(online * temperature**2, hidden, weight)
    for ours, theirs in zip(grads(terms.loss, hidden, weight), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("form", ["bucket", "renormalised"])
def test_head_that_is_the_whole_vocabulary_is_online_distillation(
    case: tuple[Tensor, Tensor, Tensor], form: str
) -> None:
    hidden, weight, teacher = case
    record = exact(make_record(teacher, torch.full((7,), 23)), teacher)
    terms = DistillationLoss(form=form, temperature=2.0, vocab_size=23)(hidden, weight, record)
    p, q = (teacher / 2).log_softmax(1), (hidden @ weight.T / 2).log_softmax(1)
    online = 4 * torch.nn.functional.kl_div(q, p, log_target=True, reduction="sum")
    torch.testing.assert_close(terms.loss, online)
    for ours, theirs in zip(grads(terms.loss, hidden, weight), grads(online, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_kd_weight_zero_is_torch_cross_entropy(case: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, teacher = case
    record = make_record(teacher, SIZES)
    terms = DistillationLoss(kd_weight=0.0, ce_weight=1.0, vocab_size=23, chunk=2)(hidden, weight, record)
    expected = torch.nn.functional.cross_entropy(hidden @ weight.T, record.targets_N, reduction="sum")
    torch.testing.assert_close(terms.loss, expected)
    assert terms.kd == 0
    for ours, theirs in zip(grads(terms.loss, hidden, weight), grads(expected, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [1.0, 1.7, 4.0])
def test_kl_is_never_negative_and_zero_when_the_student_is_the_teacher(temperature: float) -> None:
    weight, hidden = torch.randn(50, 6, dtype=torch.float64), torch.randn(40, 6, dtype=torch.float64)
    teacher = hidden @ weight.T
    record = exact(make_record(teacher, torch.randint(1, 51, (40,))), teacher)
    beta = 1 / temperature
    loss = DistillationLoss(temperature=temperature, vocab_size=50)
    same = loss(hidden, weight, record).kd
    assert same >= -1e-12
    # Between nodes the tail's mass is interpolated, so the record is a hair away from the teacher.
    assert same < (1e-12 if beta in NODES else 40 * 1e-4)
    for _ in range(5):
        other = torch.randn(40, 6, dtype=torch.float64)
        each = torch.stack([loss(other[i : i + 1], weight, rows(record, i)).kd for i in range(40)])
        assert (each >= 0).all()


def rows(record: Positions, index: int) -> Positions:
    return Positions(*(getattr(record, name)[index : index + 1] for name in Positions.__slots__))


def test_gradient_vanishes_when_the_student_is_the_teacher() -> None:
    weight = torch.randn(50, 6, dtype=torch.float64)
    hidden = torch.randn(9, 6, dtype=torch.float64, requires_grad=True)
    teacher = (hidden @ weight.T).detach()
    record = exact(make_record(teacher, torch.randint(1, 51, (9,))), teacher)
    (gradient,) = grads(DistillationLoss(vocab_size=50)(hidden, weight, record).loss, hidden)
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("chunk", [1, 2, 6, 7, 100])
def test_chunk_size_changes_nothing(case: tuple[Tensor, Tensor, Tensor], chunk: int) -> None:
    hidden, weight, teacher = case
    record = make_record(teacher, SIZES)
    settings = {"temperature": 1.5, "kd_weight": 0.5, "ce_weight": 0.5, "vocab_size": 23}
    one, other = DistillationLoss(**settings), DistillationLoss(**settings, chunk=chunk)
    ours, whole = other(hidden, weight, record), one(hidden, weight, record)
    torch.testing.assert_close(ours.loss, whole.loss)
    for a, b in zip(grads(ours.loss, hidden, weight), grads(whole.loss, hidden, weight), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("chunk", [16, 200])
def test_bfloat16_is_close_to_float64(chunk: int) -> None:
    """Mixed precision: float32 weights, bfloat16 products. Errors of some 2^-8 in the logits, far less in the sums."""
    hidden, weight = torch.randn(96, 64), torch.randn(500, 64) / 8
    teacher = 2 * torch.randn(96, 500)
    record = make_record(teacher, torch.randint(1, 20, (96,)))
    low = [tensor.clone().requires_grad_() for tensor in (hidden, weight)]
    high = [tensor.double().requires_grad_() for tensor in (hidden, weight)]
    settings = {"temperature": 2.0, "kd_weight": 0.5, "ce_weight": 0.5, "vocab_size": 500}
    ours = DistillationLoss(**settings, dtype=torch.bfloat16, chunk=chunk)(*low, record)
    theirs = DistillationLoss(**settings)(*high, record)
    assert ours.loss.dtype == torch.float32
    torch.testing.assert_close(ours.loss.double(), theirs.loss, rtol=2e-3, atol=0)
    for a, b in zip(grads(ours.loss, *low), grads(theirs.loss, *high), strict=True):
        assert a.dtype == torch.float32
        assert (a.double() - b).norm() / b.norm() < 0.01


def test_a_very_confident_student_keeps_a_finite_loss_and_gradient() -> None:
    """q_tail = exp(-600): a sum around the global peak would underflow to log 0."""
    logits = torch.tensor([[600.0, 0.0, 1.0, 2.0]], requires_grad=True)
    teacher = torch.tensor([[2.0, 1.0, 1.0, 1.0]])
    record = make_record(teacher, torch.tensor([1]))
    terms = DistillationLoss(vocab_size=4)(logits, torch.eye(4), record)
    (gradient,) = grads(terms.loss, logits)
    assert 200 < terms.loss < 600
    torch.testing.assert_close(gradient.sum(), torch.tensor(0.0), atol=1e-6, rtol=0)
    assert gradient[0, 0] > 0.1


def test_a_padded_model_vocabulary_counts_as_the_teachers_tail() -> None:
    """V is the model's vocabulary: entries beyond the tokenizer are ordinary tail cells of both sides."""
    teacher = torch.cat([torch.randn(5, 40), torch.full((5, 8), -30.0)], dim=1)
    record = make_record(teacher, torch.tensor([1, 2, 3, 4, 5]))
    beta = 1 / 1.3
    ours = tail_mass(record.tail_NM, record.head_sizes_N, beta, 48)
    logp = teacher.double().log_softmax(1).sort(1, descending=True).values
    theirs = torch.stack([(beta * logp[i, i + 1 :]).logsumexp(0) for i in range(5)])
    torch.testing.assert_close(ours, theirs, atol=0.02, rtol=0)


def test_scoring_counts_agreement_and_leaves_gradients_alone(case: tuple[Tensor, Tensor, Tensor]) -> None:
    hidden, weight, teacher = case
    record = make_record(teacher, SIZES)
    with torch.no_grad():
        terms: LossTerms = DistillationLoss(kd_weight=0.0, ce_weight=1.0, vocab_size=23)(
            hidden, weight, record, scoring=True
        )
    assert terms.agreement == ((hidden @ weight.T).argmax(1) == teacher.argmax(1)).sum()
    kd_N, ce_N = naive(hidden, weight, record, "bucket", 1.0)
    torch.testing.assert_close(terms.kd, kd_N.sum().detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(terms.ce, ce_N.sum().detach())
    assert not terms.loss.requires_grad


def test_too_cold_a_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match="holds the tail's mass for T >="):
        node_weights(2.0)


def test_default_chunk_follows_the_heads_gradient() -> None:
    assert default_chunk(torch.empty(10, 512), torch.bfloat16) == 1024
    assert default_chunk(torch.empty(10, 512), torch.float32) == 512
    assert default_chunk(torch.empty(10, 8), torch.float32) == 256


def test_divergences_take_a_target_that_is_shared_between_forms(case: tuple[Tensor, Tensor, Tensor]) -> None:
    """Bucket is a lower bound of full on the same record, for whatever tail shape."""
    hidden, weight, teacher = case
    coords = torch.randn(7, 2, dtype=torch.float64)
    record = exact(make_record(teacher, SIZES, coords), teacher)
    shape = TailShape(torch.randn(23, dtype=torch.float64), torch.randn(2, 23, dtype=torch.float64))
    whole = with_shape(shape)(hidden, weight, record).kd
    cells = DistillationLoss(form=bucket, vocab_size=23)(hidden, weight, record).kd
    assert cells <= whole + 1e-12
    assert renormalised is not bucket
