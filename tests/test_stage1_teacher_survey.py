"""`survey`: what a sample says about a teacher, checked against float64 and against the capture it recommends."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from table_teacher import SELECTION, VOCAB, states, teacher, windows
from table_teacher import config as table_config
from tiny_capture import config_file, tiny_config
from tiny_model import save_tiny_model

from cache.manifest import Selection, read_manifest
from shared.config import load_config
from shared.errors import UsageError
from stage1_teacher import survey as survey_module
from stage1_teacher.__main__ import main
from stage1_teacher.against import compare, original_of
from stage1_teacher.capture import capture
from stage1_teacher.config import CaptureConfig
from stage1_teacher.fidelity import gradients
from stage1_teacher.reading import read_sample
from stage1_teacher.shape import analyse
from stage1_teacher.survey import WIDE, Wish, cost, survey_to
from stage1_teacher.survey_measure import directions_curve, heads, in_words, knowledge
from stage1_teacher.survey_text import screen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("survey")


@pytest.fixture(scope="module")
def found(folder: Path) -> tuple[CaptureConfig, dict[str, Any], str]:
    """One survey of the tiny teacher, with its original beside it and few trials."""
    torch.set_num_threads(1)
    config = tiny_config(folder, selection={"k": 4, "top_p": 0.9})
    original = save_tiny_model(folder / "original", seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(survey_module, "SELECTIONS", (Selection(k=8, top_p=0.95),))
        patch.setattr(survey_module, "STEPS", (0.05, 0.2))
        wish = Wish(0.05, usd_per_hour=2.0, against=str(original), windows=12)
        facts, text = survey_to(config, wish, folder / "out", progress=False)
    return config, facts, text


def test_heads_against_plain_arithmetic() -> None:
    model = teacher()
    sample = read_sample(model, windows(6), table_config(selection=WIDE.model_dump()), 1000)
    truth_SV = torch.cat(list(sample.truths)).double()
    rows = heads(sample, [1.0, 2.0])
    for k, top_p, temperature in ((4, 0.8, 1.0), (16, 1.0, 2.0), (1, 0.99, 2.0)):
        row = next(r for r in rows if (r.k, r.top_p, r.temperature) == (k, top_p, temperature))
        ids, kept, kl, angles = [], [], [], []
        for truth_V in truth_SV:
            order = truth_V.argsort(descending=True)
            count = next((n for n in range(1, k + 1) if float(truth_V[order[:n]].exp().sum()) >= top_p), k)
            p_V = (truth_V / temperature).softmax(0)
            rebuilt_V = p_V.clone()
            rest = order[count:]
            rebuilt_V[rest] = p_V[rest].mean()
            ids.append(count)
            kept.append(float(p_V[order[:count]].sum()))
            kl.append(float((p_V * (p_V.log() - rebuilt_V.log())).sum()))
            angles.append(gradients(p_V, rebuilt_V, (p_V.log() / 2).softmax(0))["gradient_angle"])
        every = max(1, len(truth_SV) // 48)
        assert row.ids == pytest.approx(sum(ids) / len(ids))
        assert row.kept == pytest.approx(sum(kept) / len(kept), abs=1e-9)
        assert row.kl == pytest.approx(sum(kl) / len(kl), rel=1e-6)
        assert row.gradient_angle == pytest.approx(sum(angles[::every]) / len(angles[::every]), rel=1e-6)


def test_the_curve_of_directions_is_what_leaving_them_out_costs() -> None:
    model = teacher()
    curve = directions_curve(analyse(model, *states(model), SELECTION))
    values = [row["kl"] for row in curve]
    assert values == sorted(values, reverse=True)
    assert (curve[0]["directions"], curve[-1]["directions"]) == (0, 24)
    assert values[-1] == pytest.approx(0, abs=1e-12) and values[0] > 0.05


def test_what_a_teacher_knows_in_numbers() -> None:
    model = teacher()
    chosen = windows(6)
    sample = read_sample(model, chosen, table_config(selection=WIDE.model_dump()), 1000)
    facts = knowledge(sample, chosen)
    truth_SV = torch.cat(list(sample.truths)).double()
    assert facts.entropy == pytest.approx(-float((truth_SV.exp() * truth_SV).sum(1).mean()), rel=1e-9)
    assert facts.even == pytest.approx(math.log(VOCAB))
    assert facts.poor and "knows nothing" in facts.words, "random text surprises every teacher"


@pytest.mark.parametrize(
    ("numbers", "word", "poor"),
    [
        ((1.0, 0.9, 5.0, 10.0), "knows this kind of text", False),
        ((9.8, 0.9, 11.0, 10.0), "knows nothing", True),
        ((5.5, 5.0, 5.0, 10.0), "worse than counting", True),
        ((3.0, 1.0, 5.0, 10.0), "surprised", False),
    ],
)
def test_what_a_teacher_knows_in_words(numbers: tuple[float, ...], word: str, poor: bool) -> None:
    words, verdict = in_words(*numbers)
    assert word in words
    assert verdict is poor


def test_a_survey_leaves_json_picture_and_a_config_that_capture_takes(
    found: tuple[CaptureConfig, dict[str, Any], str], folder: Path
) -> None:
    config, facts, text = found
    out = folder / "out"
    assert {path.name for path in out.iterdir()} == {"survey.json", "survey.png", "capture.yaml"}
    assert json.loads((out / "survey.json").read_text()) == facts
    assert (out / "survey.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not config.cache.exists()
    advised = load_config(CaptureConfig, out / "capture.yaml", [])
    advice = facts["advice"]
    assert advice["reached"] and advice["kl"] <= 0.05
    assert advised.selection == Selection(k=advice["k"], top_p=advice["top_p"])
    assert advised.shape is not None and advised.shape.directions == advice["directions"]
    capture(advised, progress=False)
    report = read_manifest(config.cache).fidelity
    worst = max(row.kl for row in report if row.temperature in (1.0, 1.5, 2.0))
    assert worst < 2 * 0.05, "the advice holds on the whole corpus, up to the sample's error"
    assert "recommended for 0.05 nats" in text


def test_the_price_of_the_whole_corpus(found: tuple[CaptureConfig, dict[str, Any], str]) -> None:
    _, facts, text = found
    price = facts["cost"]
    assert price["extrapolated"]
    assert price["hours"] == pytest.approx(price["tokens"] / price["tokens_per_second"] / 3600)
    assert price["usd"] == pytest.approx(2 * price["hours"])
    assert price["gigabytes"] == pytest.approx(price["tokens"] * facts["advice"]["bytes_per_token"] / 1e9)
    assert "USD at 2 an hour" in text
    stream = cost(None, 40.0, 1000.0, None, "cpu")
    assert (stream["extrapolated"], stream["tokens"], stream["usd"]) == (False, 10**6, None)
    assert "does not say how long" in screen({**facts, "cost": stream}, None)


def test_the_original_beside_the_teacher(found: tuple[CaptureConfig, dict[str, Any], str]) -> None:
    config, facts, text = found
    against = facts["against"]
    assert [row["temperature"] for row in against["temperatures"]] == [1.0, 1.5, 2.0]
    assert all(row["kl"] > 0 and 0 < row["total_variation"] <= 1 for row in against["temperatures"])
    assert f"against {against['original']}: {against['words']}" in text
    model = teacher()
    sample = read_sample(model, windows(6), table_config(selection={"k": 1, "top_p": 1.0}), 1000)
    same = compare(sample, sample, "itself")
    assert same["same_first"] == 1.0
    assert same["loss"] == same["original_loss"]
    assert all(row["kl"] < 1e-12 and row["gradient_angle"] < 1e-6 for row in same["temperatures"])
    assert original_of(config, str(config.teacher.model)) == config.teacher


def test_kl_against_an_original_is_the_float64_one() -> None:
    ours, theirs = teacher(), teacher(bias=True)
    chosen = table_config(selection={"k": 1, "top_p": 1.0})
    samples = [read_sample(model, windows(4), chosen, 1000) for model in (ours, theirs)]
    q_SV, p_SV = (torch.cat(list(sample.truths)).double() for sample in samples)
    expected = float((p_SV.exp() * (p_SV - q_SV)).sum(1).mean())
    assert compare(*samples, "x")["temperatures"][0]["kl"] == pytest.approx(expected, rel=1e-4)


def test_a_teacher_without_linear_head_is_surveyed_without_shape(folder: Path, tmp_path: Path) -> None:
    config = tiny_config(folder, shape=None, cache=str(tmp_path / "cache"))
    facts, text = survey_to(config, Wish(0.5, windows=6), tmp_path / "out", progress=False)
    assert "no tail shape: the config wants none" in text
    assert facts["advice"]["directions"] is None
    advised = load_config(CaptureConfig, tmp_path / "out" / "capture.yaml", [])
    assert advised.shape is None
    assert yaml.safe_load((tmp_path / "out" / "capture.yaml").read_text())["shape"] is None


def test_what_is_out_of_reach_is_said(found: tuple[CaptureConfig, dict[str, Any], str]) -> None:
    _, facts, _ = found
    text = screen({**facts, "advice": {**facts["advice"], "reached": False, "wanted_kl": 1e-4}}, None)
    assert "0.0001 nats are out of reach here; the most faithful setting measured: k " in text


def test_wrong_calls(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(folder)
    path = config_file(tmp_path, config)
    with pytest.raises(UsageError, match="expected a folder of its own, got the cache's"):
        survey_module.folder_of(config, config.cache)
    with pytest.raises(SystemExit) as stopped, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["stage1", "survey", str(path), "--against", str(tmp_path / "nobody")])
        main()
    assert stopped.value.code == 2
    assert "nobody" in capsys.readouterr().err
