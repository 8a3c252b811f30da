"""The tail's shape: directions that are best in the Fisher metric, units of half a nat, and what tokens foretell.

Everything against float64 from the definitions. Not for how coordinates are stored (test_cache_*.py).
Legend: S states, D width, V vocabulary, R directions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import table_teacher as table
import torch
from table_teacher import FACTS, SELECTION, VOCAB, WIDTH, logits_of, states, teacher
from torch import Tensor

from cache.basis import read_basis, to_bytes
from cache.encoding import Encoding
from cache.manifest import Selection
from cache.reader import open_cache
from shared.config import check_config
from shared.errors import UsageError
from stage1_teacher.capture import capture
from stage1_teacher.config import CaptureConfig
from stage1_teacher.fidelity import add_to, as_stored, new_sums
from stage1_teacher.reading import Reader
from stage1_teacher.selection import top_k_mask
from stage1_teacher.shape import NOISE, PLAIN, TEMPERATURES, Projection, Spectrum, analyse, fit, why_not
from stage1_teacher.teacher import TeacherModel

Metrics = tuple[Tensor, Tensor]


def fitted(model: TeacherModel, directions: int, step: float = 0.1, positions: int = 5000) -> Projection:
    return fit(model, *states(model), directions, selection=SELECTION, step=step, positions=positions)


def spectrum_of(model: TeacherModel) -> Spectrum:
    return analyse(model, *states(model), SELECTION)


def rebuilt(projection: Projection, hidden_SD: Tensor) -> Tensor:
    coords_SR = projection.coordinates(hidden_SD).double()
    basis = projection.basis
    return torch.from_numpy(basis.mean_V).double() + coords_SR @ torch.from_numpy(basis.basis()).double()


def brute_metrics(model: TeacherModel) -> Metrics:
    """(Fisher matrix, plain one) [D, D]: means over positions and temperatures, one position after another, float64."""
    weight_VD, (hidden_SD, _) = model.head_weight_VD.double(), states(model)
    logits_SV = logits_of(model, hidden_SD)
    fisher_DD = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for logits_V, head_V in zip(logits_SV, table.head_mask(logits_SV), strict=True):
        for temperature in TEMPERATURES:
            p_V = (logits_V / temperature).softmax(0).masked_fill(head_V, 0)
            mu_D = p_V @ weight_VD
            matrix_DD = weight_VD.T @ torch.diag(p_V) @ weight_VD - torch.outer(mu_D, mu_D) / p_V.sum()
            fisher_DD += matrix_DD / temperature**2
    fisher_DD /= len(hidden_SD) * len(TEMPERATURES)
    plain_DD = torch.cov(weight_VD.T, correction=0)
    return fisher_DD, plain_DD * fisher_DD.trace() / plain_DD.trace()


@pytest.fixture(scope="module")
def metrics() -> Metrics:
    return brute_metrics(teacher())


def cost(error_SD: Tensor, metric_DD: Tensor) -> float:
    """Nats of KL to second order, mean over states."""
    return float(((error_SD @ metric_DD) * error_SD).sum(1).mean() / 2)


@pytest.mark.parametrize("bias", [False, True])
def test_all_directions_rebuild_the_logits(bias: bool) -> None:
    model = teacher(bias=bias)
    projection = fitted(model, WIDTH, step=0.01)
    truth_SV, found_SV = logits_of(model, states(model)[0]), rebuilt(projection, states(model)[0])
    assert projection.explained == pytest.approx(1.0)
    missed_SV = truth_SV - found_SV
    assert (missed_SV - missed_SV.mean(1, keepdim=True)).std() < 0.02 * truth_SV.std()


@pytest.mark.parametrize("directions", [1, 4, 10, 20])
def test_directions_are_the_best_of_their_number(directions: int, metrics: Metrics) -> None:
    """No other R directions cost less: what is left is the sum of the smallest eigenvalues of G^1/2 C G^1/2."""
    model, (fisher_DD, plain_DD) = teacher(), metrics
    metric_DD = (1 - PLAIN) * fisher_DD + PLAIN * plain_DD
    spectrum, hidden_SD = spectrum_of(model), states(model)[0].double()
    off_SD = hidden_SD - hidden_SD.mean(0)
    into_DR, out_DR = spectrum.into_DD[:, :directions], spectrum.out_DD[:, :directions]
    found = cost(off_SD - off_SD @ into_DR @ out_DR.T, metric_DD)
    values_D = torch.linalg.eigvals(metric_DD @ torch.cov(off_SD.T, correction=0)).real.sort(descending=True).values
    assert found == pytest.approx(float(values_D[directions:].sum() / 2), rel=1e-4)
    _, _, pca_DD = torch.linalg.svd(off_SD)
    kept_DR = pca_DD[:directions].T
    assert cost(off_SD - off_SD @ kept_DR @ kept_DR.T, metric_DD) > found * 1.005, (
        "plain principal components cost more"
    )
    left_D = torch.from_numpy(spectrum.spread_D[directions:])
    assert found == pytest.approx(float(left_D.pow(2).sum() / 2), rel=0.01), "and the spectrum says so"
    assert fitted(model, directions).explained == pytest.approx(
        float(values_D[:directions].sum() / values_D.sum()), 1e-3
    )


def test_an_error_of_one_in_a_coordinate_is_half_a_nat(metrics: Metrics) -> None:
    """Exact KL with exact head and exact tail mass; a tenth of the metric is the plain one, so it is added in."""
    model, (_, plain_DD), error = teacher(), metrics, 0.02
    spectrum = spectrum_of(model)
    logits_SV = logits_of(model, states(model)[0])
    head_SV = table.head_mask(logits_SV)
    for direction in range(8):
        out_D = spectrum.out_DD[:, direction]
        wrong_SV = logits_SV + error * (model.head_weight_VD.double() @ out_D)
        kl = 0.0
        for temperature in TEMPERATURES:
            p_SV = (logits_SV / temperature).softmax(1).masked_fill(head_SV, 0)
            tails = [(z / temperature).masked_fill(head_SV, -1e9).log_softmax(1) for z in (logits_SV, wrong_SV)]
            kl += float((p_SV * (tails[0] - tails[1])).sum(1).mean()) / len(TEMPERATURES)
        nats = error**2 / 2
        assert kl < nats / (1 - PLAIN) * 1.01
        assert kl > nats * 0.7, "nearly all of the metric is the Fisher one in the directions that come first"
        plain = float(out_D @ plain_DD @ out_D) * nats
        assert (1 - PLAIN) * kl + PLAIN * plain == pytest.approx(nats, rel=0.01), direction


def test_the_head_of_the_metric_is_the_records() -> None:
    logits_SV = logits_of(teacher(), states(teacher())[0])
    for selection in (SELECTION, Selection(k=1, top_p=1.0), Selection(k=255, top_p=0.5)):
        assert torch.equal(top_k_mask(logits_SV, selection), table.head_mask(logits_SV, selection))


def test_weights_are_what_an_error_in_a_logit_costs() -> None:
    model = teacher()
    logits_SV = logits_of(model, states(model)[0])
    head_SV = table.head_mask(logits_SV)
    parts = [(logits_SV / t).softmax(1).masked_fill(head_SV, 0).mean(0) / t**2 for t in TEMPERATURES]
    torch.testing.assert_close(
        torch.from_numpy(spectrum_of(model).weight_V), torch.stack(parts).mean(0), rtol=1e-4, atol=1e-9
    )


def test_coordinates_have_mean_nothing_and_the_spread_the_spectrum_says() -> None:
    model = teacher()
    spectrum, projection = spectrum_of(model), fitted(model, WIDTH)
    coords_SR = projection.coordinates(states(model)[0]).numpy()
    assert abs(coords_SR.mean(0)).max() < 1e-3 * coords_SR.std(0).max()
    np.testing.assert_allclose(coords_SR.std(0, ddof=1), spectrum.spread_D, rtol=1e-3, atol=1e-4)
    assert (np.diff(spectrum.spread_D) <= 1e-9).all(), "the weightiest first"


def test_what_tokens_foretell_need_not_be_stored() -> None:
    """Where the state is linear in the last token's row, little is left; where it is not, nothing is lost."""
    left = {}
    for name, table_VD in {"told": table.told_table(), "free": table.free_table()}.items():
        model = teacher(table_VD=table_VD)
        hidden_SD, last_S = states(model)
        projection = fitted(model, WIDTH)
        coords_SR = projection.coordinates(hidden_SD).numpy()
        best_S = logits_of(model, hidden_SD).argmax(1).numpy()
        missed_SR = coords_SR - projection.basis.prior.coordinates(last_S.numpy(), best_S)
        left[name] = (missed_SR.std(0) / coords_SR.std(0))[:8]
    assert left["told"].max() < 0.6 and left["told"].mean() < 0.4
    assert 0.5 < left["free"].max() <= 1.01


@pytest.mark.parametrize("step", [0.005, 0.05, 0.2, 1.0])
def test_low_bits_are_those_that_are_noise(step: float) -> None:
    """What is left above the low bits of a coordinate spreads by NOISE / 2 to NOISE steps, or it has no low bits."""
    model = teacher()
    hidden_SD, last_S = states(model)
    projection = fitted(model, WIDTH, step)
    best_S = logits_of(model, hidden_SD).argmax(1).numpy()
    told_SR = projection.basis.prior.coordinates(last_S.numpy(), best_S)
    spread_R = ((projection.coordinates(hidden_SD).numpy() - told_SR) / step).std(0)
    bits_R = (np.arange(WIDTH) < np.array([*projection.wide, 0])[:, None]).sum(0)
    assert (spread_R / 2.0**bits_R < NOISE * 1.05).all()
    last_of_its_bits_R = np.append(np.diff(bits_R) < 0, bits_R[-1] > 0)
    assert (spread_R / 2.0**bits_R)[last_of_its_bits_R].min(initial=NOISE) > NOISE / 2 / 1.05
    assert len(fitted(model, WIDTH, 0.005).wide) > 2, "several low bits occur"
    assert all(count < WIDTH for count in fitted(model, WIDTH, 1.0).wide)


def test_same_sample_same_bytes() -> None:
    assert to_bytes(fitted(teacher(), 8).basis) == to_bytes(fitted(teacher(), 8).basis)


def test_what_cannot_be_shaped() -> None:
    assert why_not(teacher()) == ""
    assert why_not(replace(teacher(), softcap=30.0)) == (
        "its logits are soft-capped at 30, so they are not linear in the hidden state"
    )
    with pytest.raises(UsageError) as caught:
        fitted(teacher(), 25)
    assert str(caught.value) == "shape.directions: expected at most the teacher's width, 24, got 25; lower it"


def kl_of(directions: int | None, step: float, temperature: float) -> float:
    """Mean KL of the record against the full logits, through storage."""
    model = teacher()
    projection = fitted(model, directions, step, 10**6) if directions else None
    coords = {"directions": directions, "coord_step": step, "wide": projection.wide} if projection else {}
    encoding = Encoding.model_validate({"vocab_size": VOCAB, "k": SELECTION.k, **coords})
    prior = projection.basis.prior if projection else None
    reader = Reader(model, projection, encoding, table.config())
    (window,) = table.windows(1, 60)
    record = reader.read_shard([window], 0, lambda _: None).windows[0]
    truth_PV = logits_of(model, model.body.table(torch.from_numpy(window.tokens[:-1]).long())).log_softmax(1)
    sums = [new_sums(temperature)]
    add_to(sums, reader._rebuild, as_stored(record, encoding, prior), range(59), truth_PV)
    return float(sums[0]["kl"]) / 59


@pytest.mark.parametrize("temperature", [0.8, 1.0, 2.0, 5.0])
def test_more_directions_and_finer_steps_lower_the_error(temperature: float) -> None:
    mass_alone, coarse, fine = (kl_of(r, step, temperature) for r, step in ((None, 0.1), (8, 0.1), (WIDTH, 0.01)))
    assert fine < coarse < mass_alone
    head = (1 / 32) ** 2 / 12 / temperature**2  # the head's rounding, its variance; twice what it costs
    odds = (1 / 40) ** 2 / 12 / 4  # the log-odds' rounding, likewise: p (1 - p) is at most a quarter
    assert fine < head + odds + 1e-4, (
        "with every direction and a small step the distribution is whole at any temperature"
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_logits_leave_the_head_in_float32(dtype: str) -> None:
    """bfloat16 factors multiply exactly: the rounding of logits to bfloat16 (up to 0.06 here) never happens."""
    generator = torch.Generator().manual_seed(3)
    weight_VD = torch.randn(VOCAB, WIDTH, generator=generator).bfloat16()
    hidden_SD = 4 * torch.randn(40, WIDTH, generator=generator).bfloat16()
    model = TeacherModel(None, weight_VD.float(), None, None, FACTS.model_copy(update={"dtype": dtype}))
    out_SV = torch.empty(40, VOCAB)
    before = torch.get_float32_matmul_precision()
    model.logits(hidden_SD, out_SV)
    assert torch.get_float32_matmul_precision() == before
    torch.testing.assert_close(out_SV.double(), hidden_SD.double() @ weight_VD.double().T, atol=5e-5, rtol=0)


def test_the_fit_does_not_depend_on_the_products_a_process_chose() -> None:
    """Its bytes are hashed: a process that lets float32 products run in bfloat16 must not make another cache of the same text."""
    model, found = teacher(), []
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "medium"):
            torch.set_float32_matmul_precision(precision)
            projection = fitted(model, 6)
            found.append((to_bytes(projection.basis), projection.coordinates(states(model)[0]).numpy().tobytes()))
    finally:
        torch.set_float32_matmul_precision(before)
    assert found[0] == found[1]


def test_the_cache_holds_what_was_fitted(tmp_path: Path) -> None:
    from tiny_model import save_tiny_model

    model = save_tiny_model(tmp_path / "teacher", rows=257)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "value {n} = {n * n}"}}\n' for n in range(30)))
    data: dict[str, Any] = {
        "cache": str(tmp_path / "cache"),
        "teacher": {"model": str(model), "dtype": "float32", "device_map": "cpu"},
        "corpus": {"path": str(tmp_path / "rows.jsonl"), "text": "text"},
        "selection": {"k": 8, "top_p": 0.9},
        "shape": {"directions": 32, "step": 0.02},
        "fidelity": {"positions_per_shard": 16},
    }
    manifest = capture(check_config(CaptureConfig, data, base=tmp_path, name="test"), progress=False)
    shape, encoding = manifest.identity.shape, manifest.identity.encoding
    assert shape is not None
    basis = read_basis(tmp_path / "cache", shape, manifest.vocab_size)
    assert (basis.codes_AV.shape, basis.weights_R2R.shape) == ((33, 257), (32, 64))
    assert (encoding.directions, encoding.coord_step, shape.directions, shape.step) == (32, 0.02, 32, 0.02)
    assert 0 < encoding.wide[0] <= 32
    assert open_cache(tmp_path / "cache")[3].coords_PR.shape[1] == 32
    positions = sum(shard.positions for shard in manifest.shards)
    steps = 0.02**2 * (32 + 33 * 257 / positions) + encoding.value_step**2  # coordinates, basis, head
    kept = [row.kl for row in manifest.fidelity if row.temperature <= 2]
    assert max(kept) < 2 * steps / 24, "all 32 directions of a teacher 32 wide: nothing but rounding is left"
    assert max(row.kl for row in manifest.fidelity) < 4 * steps / 24
