"""Generation by a model that runs here: samples that depend on nothing but their own seed, resume, memory, templates."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import save_tiny_model
from transformers import AutoModelForCausalLM

from shared.config import check_config
from shared.errors import RunError, UsageError
from stage1_teacher.__main__ import main
from stage1_teacher.generate import generate
from stage1_teacher.generate_config import GenerateConfig
from stage1_teacher.generate_local import local_answers, open_local, plan
from stage1_teacher.prompt_sets import Prompt

TEXTS = ["def f():\n", "x = 1\n", "class LongerThanTheOthers:\n    def method(self):\n", "# a\n"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", positions=96)


def settings(folder: Path, model: Path, **changes: Any) -> GenerateConfig:
    file = folder / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": n, "prompt": text}) + "\n" for n, text in enumerate(TEXTS)))
    data: dict[str, Any] = {
        "out": str(folder / "out"),
        "prompts": {"plain": {"path": str(file)}},
        "teacher": {"model": str(model), "dtype": "float32", "device_map": "cpu"},
        "samples": 3,
        "max_new_tokens": 12,
    }
    return check_config(GenerateConfig, data | changes, base=folder, name="test")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out" / "answers.jsonl").read_text().splitlines()]


def by_key(found: list[dict[str, Any]]) -> dict[tuple[str, int], str]:
    return {(row["prompt_id"], row["index"]): row["answer"] for row in found}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    generate(settings(folder, model, samples=4))
    return folder


def test_rows_say_what_they_are(whole: Path, model: Path) -> None:
    found = rows(whole)
    assert by_key(found).keys() == {(f"plain/{n}", index) for n in range(4) for index in range(4)}
    assert len(set(by_key(found).values())) > 12, "they are samples, not one answer"
    assert {(row["estimated"], row["model"]) for row in found} == {(False, "tiny")}
    for row in found:
        assert row["prompt_tokens"] == len(TEXTS[int(row["prompt_id"][-1])].encode()), "a byte a token"
        assert row["completion_tokens"] <= 12 and row["finish"] in ("stop", "length")
    record = json.loads((whole / "out" / "generate.json").read_text())
    assert record["settings"] == {
        "style": "completion", "temperature": 0.8, "top_p": 0.95, "max_new_tokens": 12, "seed": 0
    }  # fmt: skip
    assert (record["teacher"]["model"], record["teacher"]["dtype"], record["prompts"]["count"]) == (
        "tiny",
        "float32",
        4,
    )
    assert str(model.parent) not in json.dumps(record)


def test_samples_do_not_depend_on_the_batch_nor_on_how_many_there_are(whole: Path, tmp_path: Path, model: Path) -> None:
    generate(settings(tmp_path, model, batch_size=5))
    assert by_key(rows(tmp_path)).items() <= by_key(rows(whole)).items()
    (tmp_path / "other").mkdir()
    generate(settings(tmp_path / "other", model, seed=1))
    other = by_key(rows(tmp_path / "other"))
    assert sum(other[key] != by_key(rows(whole))[key] for key in other) > 8


def test_a_killed_run_goes_on_to_the_same_answers(whole: Path, tmp_path: Path, model: Path) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    chosen = settings(tmp_path, model, samples=4)
    answers = tmp_path / "out" / "answers.jsonl"
    undisturbed = answers.read_bytes()
    lines = undisturbed.splitlines(keepends=True)
    answers.write_bytes(b"".join(lines[:5]) + lines[5][:20])
    facts = generate(chosen)
    assert (facts["new"], facts["there"]) == (11, 16)
    assert answers.read_bytes() == undisturbed
    assert generate(chosen)["new"] == 0


def test_stop_words_end_a_row_and_greedy_is_the_largest_logit(tmp_path: Path, model: Path) -> None:
    chosen = settings(tmp_path, model, temperature=0, samples=1)
    assert chosen.teacher is not None
    teacher = open_local(chosen.teacher)
    ids = teacher.tokenizer(TEXTS[0])["input_ids"]
    for _ in range(12):
        with torch.inference_mode():
            ids.append(int(teacher.model(torch.tensor([ids])).logits[0, -1].argmax()))
    wanted = teacher.tokenizer.decode(ids)[len(TEXTS[0]) :]

    def answer(*stop: str) -> dict[str, Any]:
        prompt = Prompt("p", "plain", TEXTS[0], TEXTS[0], stop)
        (row,) = local_answers(teacher, plan(teacher, [prompt], chosen), set(), chosen)
        return row

    free = answer()
    assert free["answer"] == wanted and free["finish"] == "length"
    word = wanted[3:5]
    stopped = answer("never in it", word)
    place = wanted.find(word) + len(word)
    assert wanted.startswith(stopped["answer"]) and stopped["completion_tokens"] < 12
    assert stopped["answer"] == wanted[:place] and stopped["finish"] == "stop"


def test_a_prompt_that_fills_the_model_has_no_room(tmp_path: Path, model: Path) -> None:
    chosen = settings(tmp_path, model, samples=1)
    assert chosen.teacher is not None
    teacher = open_local(chosen.teacher)
    prompts = [Prompt("full", "plain", "x" * 96, ""), Prompt("tight", "plain", "x" * 90, "")]
    found = {row["prompt_id"]: row for row in local_answers(teacher, plan(teacher, prompts, chosen), set(), chosen)}
    assert (found["full"]["finish"], found["full"]["completion_tokens"]) == ("no room", 0)
    assert 0 < found["tight"]["completion_tokens"] <= 6


def test_batches_are_halved_until_they_fit(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(tmp_path, model)
    assert chosen.teacher is not None
    teacher = open_local(chosen.teacher)
    prompts = [Prompt(f"p{n}", "plain", text, text) for n, text in enumerate(TEXTS)]
    batches = plan(teacher, prompts, chosen)
    wanted = by_key(list(local_answers(teacher, batches, set(), chosen)))
    sizes, fits, real = [], [3], teacher.model.generate

    def scarce(ids_BL: torch.Tensor, **options: Any) -> Any:
        sizes.append(len(ids_BL))
        if len(ids_BL) > fits[0]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(ids_BL, **options)

    monkeypatch.setattr(teacher.model, "generate", scarce)
    assert by_key(list(local_answers(teacher, batches, set(), chosen))) == wanted
    assert sizes == [12, 6, 3, 3, 3, 3]
    fits[0] = 0
    with pytest.raises(RunError) as error:
        list(local_answers(teacher, batches, set(), chosen))
    assert str(error.value) == (
        "prompt p3: out of memory on cpu with a batch of one; lower max_new_tokens or use a larger device"
    )


def test_chat_models_see_their_template_once(tmp_path: Path, model: Path) -> None:
    chosen = settings(tmp_path, model, style="chat")
    with pytest.raises(UsageError) as error:
        generate(chosen)
    assert str(error.value) == (
        "teacher tiny: expected a chat template, got none; set style: completion, or use an instructed model"
    )
    assert not (tmp_path / "out").exists()
    assert chosen.teacher is not None
    teacher = open_local(chosen.teacher)
    teacher.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<answer>"
    ((request, *_), *_) = plan(teacher, [Prompt("p", "plain", "hello", "")], chosen)
    assert teacher.tokenizer.decode(request.ids) == "<user>hello<answer>"


def test_a_teacher_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(tmp_path, tmp_path / "nothing")
    file = tmp_path / "generate.json"
    file.write_text(chosen.model_dump_json(exclude_none=True))
    monkeypatch.setattr(sys, "argv", ["stage1-teacher", "generate", str(file)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"error: tokenizer {tmp_path}/nothing: expected a directory, got nothing there; correct the path\n"
    )
    assert not (tmp_path / "out").exists()


def test_another_teacher_under_the_same_name_is_told(tmp_path: Path, model: Path) -> None:
    generate(settings(tmp_path, model, samples=1))
    other = save_tiny_model(tmp_path / "tiny", seed=5, positions=96)
    with pytest.raises(UsageError, match="expected answers with the same teacher, got weights"):
        generate(settings(tmp_path, other, samples=1))


def test_only_safetensors_and_no_remote_code(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def opened(name: str, **options: Any) -> Any:
        seen.update(options)
        raise OSError("no")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", opened)
    with pytest.raises(UsageError, match="expected a causal LM, got no; repair the directory"):
        generate(settings(tmp_path, model))
    assert (seen["use_safetensors"], seen["trust_remote_code"], seen["local_files_only"]) == (True, False, True)
