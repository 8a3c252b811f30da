"""The tail's shape: best directions, rebuilt distributions, and the products behind them, against float64.

Not for how coordinates are stored (test_cache_*.py). Legend: S states, D width, V vocabulary, R directions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.encoding import Encoding
from cache.manifest import Selection, Teacher
from cache.reader import open_cache
from cache.shape import read_basis
from shared.config import check_config
from shared.errors import UsageError
from shared.windows import Window, window_id
from stage1_teacher.capture import capture
from stage1_teacher.config import CaptureConfig
from stage1_teacher.fidelity import add_to, as_stored, new_sums
from stage1_teacher.reading import Reader
from stage1_teacher.shape import Projection, fit, require_linear
from stage1_teacher.teacher import TeacherModel

WIDTH, VOCAB = 24, 400
FACTS = Teacher(id="t", revision=None, weights="w", architecture="A", parameters=1, dtype="float32", quantisation=None)


class Body(torch.nn.Module):
    """A body whose hidden state is a table of its last token: enough to be a teacher."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        scale_D = torch.linspace(2.0, 0.01, WIDTH)
        self.table = torch.nn.Embedding.from_pretrained(torch.randn(VOCAB, WIDTH, generator=generator) * scale_D)

    def get_input_embeddings(self) -> torch.nn.Embedding:
        return self.table

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return type("Output", (), {"last_hidden_state": self.table(input_ids)})()


def teacher(bias: bool = False) -> TeacherModel:
    generator = torch.Generator().manual_seed(1)
    weight_VD = 0.7 * torch.randn(VOCAB, WIDTH, generator=generator)
    bias_V = torch.randn(VOCAB, generator=generator) if bias else None
    return TeacherModel(Body(), weight_VD, bias_V, None, FACTS)


def states(count: int = 600) -> torch.Tensor:
    tokens = torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(2))
    return Body().table(tokens)


def logits_of(model: TeacherModel, hidden_SD: torch.Tensor) -> torch.Tensor:
    bias = 0 if model.head_bias_V is None else model.head_bias_V.double()
    return hidden_SD.double() @ model.head_weight_VD.double().T + bias


def rebuilt(model: TeacherModel, projection: Projection, hidden_SD: torch.Tensor) -> torch.Tensor:
    coords_SR = projection.coordinates(hidden_SD).double()
    basis = projection.basis
    return torch.from_numpy(basis.mean_V).double() + coords_SR @ torch.from_numpy(basis.basis()).double()


def centred_error(first_SV: torch.Tensor, second_SV: torch.Tensor) -> float:
    """Root mean square over logits, without the constant that softmax ignores."""
    difference_SV = first_SV - second_SV
    return float((difference_SV - difference_SV.mean(1, keepdim=True)).pow(2).mean().sqrt())


@pytest.mark.parametrize("bias", [False, True])
def test_all_directions_rebuild_the_logits(bias: bool) -> None:
    model = teacher(bias)
    projection = fit(model, states(), WIDTH)
    truth_SV = logits_of(model, states())
    assert projection.explained == pytest.approx(1.0)
    assert centred_error(truth_SV, rebuilt(model, projection, states())) < 0.02 * truth_SV.std()


def test_directions_are_the_best_of_their_number() -> None:
    """No other linear map of the same rank does better: Eckart-Young on the centred logits of the sample."""
    model, hidden_SD = teacher(), states()
    truth_SV = logits_of(model, hidden_SD)
    centred_SV = truth_SV - truth_SV.mean(0)
    centred_SV = centred_SV - centred_SV.mean(1, keepdim=True)
    spectrum = torch.linalg.svdvals(centred_SV)
    for directions in (2, 6, 12):
        found = centred_error(truth_SV, rebuilt(model, fit(model, hidden_SD, directions), hidden_SD))
        best = float((spectrum[directions:].pow(2).sum() / centred_SV.numel()).sqrt())
        assert best <= found * 1.0001
        assert found <= best * 1.01 + 0.01, "the rest is the eight bits of the basis"


def test_a_coordinate_is_a_nat_of_root_mean_square() -> None:
    model = teacher()
    basis_RV = torch.from_numpy(fit(model, states(), 6).basis.basis()).double()
    centred_RV = basis_RV - basis_RV.mean(1, keepdim=True)
    torch.testing.assert_close(centred_RV.pow(2).mean(1).sqrt(), torch.ones(6, dtype=torch.float64), atol=0.01, rtol=0)


def test_same_sample_same_bytes() -> None:
    assert fit(teacher(), states(), 8).basis.to_bytes() == fit(teacher(), states(), 8).basis.to_bytes()


def test_what_cannot_be_shaped_is_refused() -> None:
    with pytest.raises(UsageError, match=r"logits soft-capped at 30; set shape: null"):
        require_linear(replace(teacher(), softcap=30.0))
    with pytest.raises(UsageError, match="at most the teacher's width, 24, got 25"):
        fit(teacher(), states(), 25)


def kl_of(directions: int | None, step: float, temperature: float) -> float:
    """Mean KL of the record against the full logits, through storage."""
    model = teacher()
    projection = fit(model, states(), directions) if directions else None
    coords = {"directions": directions or 0, "coord_step": step}
    encoding = Encoding.model_validate({"vocab_size": VOCAB, "k": 8, **coords})
    data = {"cache": "x", "teacher": {"model": "org/t"}, "corpus": {"embedded": {"count": 1}}}
    config = check_config(CaptureConfig, data, base=Path(), name="test").model_copy(
        update={"selection": Selection(k=8, top_p=0.9)}
    )
    reader = Reader(model, projection, encoding, config)
    tokens = torch.randint(0, VOCAB, (60,), generator=torch.Generator().manual_seed(9)).int().numpy()
    record = reader.read_shard([Window(window_id(tokens, 0), tokens, 0, "d")], 0, lambda _: None).windows[0]
    truth_PV = logits_of(model, model.body.table(torch.from_numpy(tokens[:-1]).long())).log_softmax(1)
    sums = [new_sums(temperature)]
    add_to(sums, reader._rebuild, as_stored(record, encoding), range(59), truth_PV)
    return sums[0]["kl"] / 59


@pytest.mark.parametrize("temperature", [0.8, 1.0, 2.0, 5.0])
def test_more_directions_and_finer_steps_lower_the_error(temperature: float) -> None:
    mass_alone, coarse, fine = (kl_of(r, step, temperature) for r, step in ((None, 0.1), (8, 0.1), (WIDTH, 0.01)))
    assert fine < coarse < mass_alone
    assert fine < 2e-4, "with every direction and a small step the distribution is whole at any temperature"


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
    shape = manifest.identity.shape
    assert shape is not None
    assert read_basis(tmp_path / "cache", shape, manifest.vocab_size).codes_RV.shape == (32, 257)
    assert open_cache(tmp_path / "cache")[3].coords_PR.shape[1] == 32
    assert max(row.kl for row in manifest.fidelity) < 1e-3, "all 32 directions of a teacher 32 wide"
