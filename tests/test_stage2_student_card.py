"""The model card of a finished student, and its push to a stub of the hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hub_stub import TOKEN, call_with_hub, hub_serving
from student_cache import make_caches, make_config

from shared.errors import UsageError
from stage2_student.card import card_text
from stage2_student.push import finished_run, parse, push
from stage2_student.train import train


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("card")
    settings = make_config(folder, make_caches(folder / "caches"), {"epochs": 1, "divergence": {"name": "reverse_kl"}})
    train(settings)
    return settings.out


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Any]:
    with hub_serving(tmp_path, "models") as server:
        yield server


def test_the_card_says_what_a_stranger_wants_to_know(student: Path) -> None:
    run = json.loads((student / "run.json").read_text())
    card = (student / "README.md").read_text()
    assert card == card_text(run, student.name)
    header = yaml.safe_load(card.split("---")[1])
    assert (header["library_name"], header["pipeline_tag"]) == ("transformers", "text-generation")
    for fact in (
        f"id `{run['cache']['id']}`",
        "| teacher | table, revision none, quantised: no; its licence holds for what it taught |",
        "| parameters | " + f"{run['parameters']:,} |",
        "form bucket, divergence name reverse\\_kl, temperature 1.5, kd weight 0.7, ce weight 0.3",
        "seed 0; 6 steps |",
        f"| kd | {run['final']['kd']:.4f} |",
        f'AutoModelForCausalLM.from_pretrained("{student.name}")',
    ):
        assert fact.replace("\\_", "_") in card


def test_a_hostile_manifest_writes_no_markup_into_the_card(student: Path) -> None:
    run = json.loads((student / "run.json").read_text())
    run["teacher"]["id"] = "x|</td><script>\n# head\n[a](b)"
    run["corpus"] = {"licence": "<b>free</b>", "path": "a|b\n# c"}
    card = card_text(run, "student\n---\nx: y")
    assert "<script" not in card.replace("\\<script", "")
    assert "<b>" not in card.replace("\\<b\\>", "")
    assert "\n# head" not in card and "\n# c" not in card
    assert card.count("\n---\n") == 1, "the header's own end alone"


def test_push_is_one_commit_of_the_student_alone(hub: Any, student: Path) -> None:
    (student / "checkpoints").mkdir()
    (student / "checkpoints" / "x.json").write_text("{}")
    (student / "notes.txt.private").write_text("mine")
    done = call_with_hub(hub, "stage2_student", "push", str(student), "hf://org/name@v1")
    assert done.returncode == 0, done.stderr
    assert len(hub.commits) == 2
    pushed = hub.commits[-1]
    assert set(pushed) - {".gitattributes"} == {
        "README.md", "run.json", "metrics.jsonl", "curves.png", "config.json", "generation_config.json",
        "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert pushed["model.safetensors"] == (student / "model.safetensors").read_bytes()
    assert 'from_pretrained("org/name")' in pushed["README.md"].decode()
    assert TOKEN not in done.stdout + done.stderr
    assert done.stdout == f"hf://org/name@v1: commit {1:040x}\n"


def test_what_cannot_be_pushed(student: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected run.json of a training, got none; name the `out`"):
        push(tmp_path, "hf://org/name")
    run = json.loads((student / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**run, "status": "running"}))
    with pytest.raises(UsageError, match="expected a finished student, got status running; run the training's command"):
        finished_run(tmp_path)
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(UsageError, match=r"expected run\.json"):
        finished_run(tmp_path)
    for url in ("hf://datasets/org/name", "hf://name", "s3://bucket/name", "hf://org/name/file"):
        with pytest.raises(UsageError, match="expected hf://org/name or hf://org/name@branch; correct the URL"):
            parse(url)
    assert (
        parse("hf://org/name@refs%2Fpr%2F1") == parse("hf://models/org/name@refs%2Fpr%2F1") == ("org/name", "refs/pr/1")
    )


def test_a_model_that_may_not_be_written(hub: Any, student: Path) -> None:
    refuse = {"do_POST": lambda self: self.say({"error": "no"}, 403)}
    hub.RequestHandlerClass = type("Closed", (hub.RequestHandlerClass,), refuse)
    done = call_with_hub(hub, "stage2_student", "push", str(student), "hf://org/name")
    assert done.returncode == 1
    assert "error: hf://org/name: expected an answer of the hub, got 403; run the same command again" in done.stderr
