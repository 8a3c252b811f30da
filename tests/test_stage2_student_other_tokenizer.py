"""Training runs of students whose tokenizer is not the cache's, and the configs that cannot be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from student_cache import Crash, crash_after, curve, make_config
from text_cache import OTHER, make_text_caches, texts
from tiny_model import byte_tokenizer
from transformers import AutoTokenizer

from eval.config import ModelSpec
from eval.models import load, locate
from shared.errors import UsageError
from shared.files import read_jsonl
from shared.tokenizer import fingerprint
from stage2_student import train as train_module
from stage2_student.config import TrainConfig
from stage2_student.student_config import Architecture
from stage2_student.students import from_scratch
from stage2_student.train import train

SMALL = {"layers": 1, "width": 16, "heads": 2, "positions": 48, "dropout": 0.1}
OURS = {"student": {"architecture": SMALL}, "other_tokenizer": {"tokenizer": str(OTHER)}, "epochs": 1, "log_every": 1}


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_text_caches(tmp_path_factory.mktemp("text"))


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture costs more than these trainings."""
    monkeypatch.setattr(train_module, "draw_curves", lambda *_: None)


def config(folder: Path, caches: Path, name: str, **changes: Any) -> TrainConfig:
    return make_config(folder, caches, {**OURS, "out": str(folder / name), **changes})


def test_a_killed_run_goes_on_and_publishes_a_student_with_its_own_tokenizer(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (config(tmp_path, caches, name, save_every=1, mask_prompt=True) for name in ("whole", "broken"))
    run = train(whole)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, 2)
        train(broken)
    train(broken)
    assert curve(broken.out) == curve(whole.out)
    one, other = (load_file(run.out / "model.safetensors") for run in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)

    tokenizer = AutoTokenizer.from_pretrained(OTHER)
    assert fingerprint(AutoTokenizer.from_pretrained(whole.out)) == fingerprint(tokenizer)
    assert run["tokenizer"] == fingerprint(tokenizer).model_dump(mode="json")
    loaded = load(locate(ModelSpec(name="x", path=str(whole.out))), "float32", torch.device("cpu"))
    assert loaded.model.get_output_embeddings().weight.shape == (1024, 16)
    rows = curve(whole.out)
    for row in rows:
        assert row["loss"] == pytest.approx(0.7 * row["kd"] + 0.3 * row["ce"])
    assert run["final"]["aligned"] == 1  # a teacher of bytes has a boundary wherever the student has one
    assert "agreement" not in run["final"]


def test_bits_per_byte_are_those_of_the_text_in_either_tokenizer(caches: Path, tmp_path: Path) -> None:
    """Cross-entropy of all predicted tokens, the end included, over the bytes of all but the first token."""
    still = {"max_steps": 1, "epochs": None, "student": {"architecture": {**SMALL, "positions": 128}}}
    same = train(config(tmp_path, caches, "a", **still, other_tokenizer=None))
    other = train(config(tmp_path, caches, "b", **still, kd_weight=0.0))
    scored = [text.encode() for text, _ in texts(16)[12:]]
    own = AutoTokenizer.from_pretrained(OTHER)
    for run, predicted, spoken in (
        (same, sum(len(text) for text in scored), sum(len(text) - 1 for text in scored)),
        (
            other,
            sum(len(own(text.decode()).input_ids) for text in scored),
            sum(len(text) - len(own.decode(own(text.decode()).input_ids[:1]).encode()) for text in scored),
        ),
    ):
        bits = run["final"]["ce"] / math.log(2) * predicted
        assert run["final"]["bits_per_byte"] == pytest.approx(bits / spoken)


def test_workers_read_the_same_and_a_pretrained_student_brings_its_tokenizer(caches: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = AutoTokenizer.from_pretrained(OTHER)
    shape = Architecture.model_validate(SMALL)
    from_scratch(shape, 1030, fingerprint(own)).save_pretrained(tmp_path / "model")  # six rows of padding
    own.save_pretrained(tmp_path / "model")
    settings = {
        "student": {"pretrained": str(tmp_path / "model")},
        "other_tokenizer": {},
        "max_steps": 2,
        "epochs": None,
    }
    train(config(tmp_path, caches, "a", **settings))
    train(config(tmp_path, caches, "b", **settings, workers=1))
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert load_file(tmp_path / "a" / "model.safetensors")["transformer.wte.weight"].shape == (1030, 16)
    with pytest.raises(UsageError, match=r"tokenizer: expected size 257, got 1024; .* or set other_tokenizer"):
        train(config(tmp_path, caches, "c", **{**settings, "other_tokenizer": None}))


def test_the_teacher_is_heard(caches: Path, tmp_path: Path) -> None:
    """With ULD the student's spread of mass comes closer to the teacher's than without."""
    long = {"max_steps": 15, "epochs": None, "learning_rate": 2e-2, "gradient_accumulation": 1, "temperature": 1.0}
    long |= {"eval_every": 15, "save_every": 15}
    found = {}
    for name, weight in (("with", 3.0), ("without", 0.0)):
        train(config(tmp_path, caches, name, **long, kd_weight=weight, ce_weight=1.0))
        found[name] = json.loads((tmp_path / name / "run.json").read_text())["final"]
    assert found["with"]["kd"] < found["without"]["kd"]
    assert all("kd" not in row for row in read_jsonl(tmp_path / "without" / "metrics.jsonl") if row["split"] == "train")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"form": "renormalised"}, "form full or bucket beside other_tokenizer"),
        ({"divergence": {"name": "reverse_kl"}}, "no field 'divergence' beside other_tokenizer, whose measure is ULD"),
        ({"t_squared": False}, "no field 't_squared' beside other_tokenizer"),
        ({"other_tokenizer": {}}, "other_tokenizer.tokenizer for a student from scratch, none beside pretrained"),
        ({"other_tokenizer": {"revision": "x"}}, "revision only beside tokenizer"),
    ],
)
def test_what_cannot_be_said_is_refused(caches: Path, tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        config(tmp_path, caches, "x", **changes)


def test_a_tokenizer_that_hides_its_bytes_is_refused(caches: Path, tmp_path: Path) -> None:
    words = json.loads(byte_tokenizer().backend_tokenizer.to_str())
    words["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    byte_tokenizer().save_pretrained(tmp_path / "words")
    (tmp_path / "words" / "tokenizer.json").write_text(json.dumps(words))
    settings = config(tmp_path, caches, "x", other_tokenizer={"tokenizer": str(tmp_path / "words")})
    with pytest.raises(UsageError) as caught:
        train(settings)
    assert str(caught.value) == (
        "tokenizer words: expected a byte-level one, or one with byte fallback, got the decoder WordPiece; "
        "take a student with such a tokenizer, or one with the cache's"
    )
