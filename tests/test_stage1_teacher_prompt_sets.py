"""Prompt sets: what the teacher is asked, what the corpus will show, and rows that cannot be meant."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shared.config import check_config
from shared.errors import UsageError
from stage1_teacher import prompt_sets
from stage1_teacher.generate_config import PromptSets, Style
from stage1_teacher.prompt_sets import Prompt, read_prompts

BODY = {
    "task_id": "E/1",
    "prompt": 'def twice(x):\n    """Double x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "entry_point": "twice",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}


def mbpp(number: int) -> dict[str, Any]:
    return {
        "task_id": number,
        "text": "Write a function to add.",
        "code": "def add(a, b):\r\n    return a + b\r\n",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }


def file(folder: Path, *rows: object) -> str:
    path = folder / f"rows{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def read(style: Style = "completion", **sets: Any) -> tuple[Prompt, ...]:
    return read_prompts(check_config(PromptSets, sets, base=Path("/"), name="test"), style).prompts


def test_tasks_for_a_base_model_are_documents_to_go_on_with(tmp_path: Path) -> None:
    program, body = read(mbpp={"path": file(tmp_path, mbpp(601), BODY), "licence": "CC-BY-4.0"})
    assert (program.id, program.kind, program.licence) == ("mbpp/MBPP/601", "program", "CC-BY-4.0")
    assert program.asked == program.prompt == '"""\nWrite a function to add.\nassert add(1, 2) == 3\n"""\n'
    assert program.problem == mbpp(601) and program.task is not None and program.task.task_id == "MBPP/601"
    assert (body.id, body.kind) == ("mbpp/E/1", "body")
    assert body.asked == body.prompt == 'def twice(x):\n    """Double x."""', "without the newline that splits a token"
    assert "\nassert" in program.stop and "\ndef " in body.stop


def test_tasks_for_a_chat_model_are_asked_in_words_and_stay_documents_in_the_corpus(tmp_path: Path) -> None:
    program, body = read("chat", mbpp={"path": file(tmp_path, mbpp(601), BODY)})
    assert program.asked == (
        "Write a function to add.\nAnswer with one Python block. Your code must pass these tests:\n\n"
        "```python\nassert add(1, 2) == 3\nassert add(0, 0) == 0\n```"
    )
    assert program.prompt.startswith('"""\nWrite a function') and program.stop == body.stop == ()
    assert body.asked.endswith('```python\ndef twice(x):\n    """Double x."""\n```')


def test_published_splits_and_counts(tmp_path: Path) -> None:
    path = file(tmp_path, *(mbpp(number) for number in (5, 11, 601, 602, 974)))
    assert [p.id[10:] for p in read(mbpp={"path": path})] == ["5", "11", "601", "602", "974"]
    assert [p.id[10:] for p in read(mbpp={"path": path, "split": "train", "count": 2})] == ["601", "602"]
    with pytest.raises(UsageError, match="at least one prompt, got none"):
        read(mbpp={"path": path, "split": "validation"})


def test_tasks_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def rows(dataset: str, **options: Any) -> Any:
        asked.append((dataset, options["config"], options["split"], options["revision"]))
        return [("row 1", "x:1", mbpp(601))]

    monkeypatch.setattr(prompt_sets, "hub_rows", rows)
    (prompt,) = read(mbpp={"hub": "mbpp", "revision": "abc"})
    assert (prompt.id, prompt.licence) == ("mbpp/MBPP/601", "CC-BY-4.0")
    read(mbpp={"hub": "mbpp", "split": "validation"})
    monkeypatch.setattr(prompt_sets, "hub_rows", lambda d, **o: asked.append((d, o["split"])) or [("r", "x:1", BODY)])
    read(mbpp={"hub": "humaneval"})
    assert asked == [
        ("google-research-datasets/mbpp", "full", "train", "abc"),
        ("google-research-datasets/mbpp", "full", "validation", None),
        ("openai/openai_humaneval", "test"),
    ]


def test_real_code_as_seeds(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg" / "a.py").write_text("def f():\n    return '```'\n")
    (folder / "b.py").write_text("x = (\n")
    (folder / "c.py").write_text("y = 1\n" * 100)
    (folder / "d.py").write_text("\n")
    sets = check_config(
        PromptSets,
        {"code": {"corpus": {"path": str(folder)}, "tasks": ["explain", "refactor"], "most_chars": 100}},
        base=tmp_path,
        name="test",
    )
    found = read_prompts(sets, "completion")
    assert found.left_out == {"seeds that do not parse": 1, "seeds longer than most_chars": 1, "empty seeds": 1}
    explain, refactor = found.prompts
    assert (explain.id, explain.kind, refactor.id) == ("code/pkg/a.py/explain", "explain", "code/pkg/a.py/refactor")
    assert explain.prompt == explain.asked and explain.code == "def f():\n    return '```'\n"
    assert explain.prompt.startswith("### Instruction:\nExplain this Python code")
    assert explain.prompt.endswith("````python\ndef f():\n    return '```'\n````\n\n### Response:\n")
    chat = read_prompts(sets, "chat").prompts[0]
    assert chat.prompt == explain.prompt and chat.asked == explain.asked[17:-16] and chat.stop == ()


def test_licences_of_seeds_go_along(tmp_path: Path) -> None:
    path = file(tmp_path, {"text": "x = 1\n", "licence": ["MIT", "Apache-2.0"]})
    prompts = read(code={"corpus": {"path": path, "text": "text", "licence": "licence"}})
    assert [prompt.kind for prompt in prompts] == ["explain", "document", "write_tests", "refactor"]
    assert {prompt.licence for prompt in prompts} == {"MIT, Apache-2.0"}


def test_instructions_and_plain_prompts(tmp_path: Path) -> None:
    wanted = {"id": 7, "instruction": "Sort this.", "input": "[3, 1]", "licence": "MIT"}
    with_id, without = read(instructions={"path": file(tmp_path, wanted, {"instruction": "Add.", "input": None})})
    assert (with_id.id, with_id.kind, with_id.licence) == ("instructions/7", "instruction", "MIT")
    assert with_id.prompt.startswith("### Instruction:\nSort this.\n\n[3, 1]\n\nAnswer in four sections")
    assert without.id == "instructions/rows0.jsonl:2"
    (plain,) = read(plain={"path": file(tmp_path, {"prompt": "def f("}, {"prompt": "x"}), "count": 1})
    assert (plain.asked, plain.prompt, plain.kind) == ("def f(", "def f(", "plain")
    (chat,) = read("chat", plain={"path": file(tmp_path, {"prompt": "Hello?"})})
    assert (chat.asked, chat.prompt) == ("Hello?", "### Instruction:\nHello?\n\n### Response:\n")


def test_a_prompt_survives_its_file(tmp_path: Path) -> None:
    for prompt in read(mbpp={"path": file(tmp_path, mbpp(601), BODY)}):
        assert Prompt.of_row(json.loads(json.dumps(prompt.row()))) == prompt


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (
            {"plain": [{"text": "x"}]},
            "rows0.jsonl line 1: expected a text in 'prompt', got fields text; repair the row",
        ),
        ({"plain": [{"prompt": " "}]}, "rows0.jsonl line 1: expected a text in 'prompt', got ' '; repair the row"),
        ({"plain": ["{"]}, "rows0.jsonl line 1: expected one JSON object"),
        ({"plain": ['{"prompt": "\\ud800"}']}, "prompt 'plain/rows0.jsonl:1': expected text that UTF-8 can hold"),
        ({"plain": []}, "prompts: expected at least one prompt, got none; check path, split and most_chars"),
        (
            {"plain": [{"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"}]},
            "prompt plain/1: expected each id once, got it twice; remove one of them",
        ),
        ({"instructions": [{"instruction": 3}]}, "rows0.jsonl line 1: expected a text in 'instruction', got 3"),
        ({"mbpp": [{"task_id": 1, "test_list": []}]}, "rows0.jsonl line 1: expected a field 'text'"),
        ({"mbpp": [mbpp(1), mbpp(1)]}, "prompt mbpp/MBPP/1: expected each id once, got it twice"),
    ],
)
def test_rows_that_cannot_be_meant(tmp_path: Path, sets: dict[str, list[Any]], said: str) -> None:
    with pytest.raises(UsageError) as error:
        read(**{name: {"path": file(tmp_path, *rows)} for name, rows in sets.items()})
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        ({}, "exactly one of path and hub"),
        ({"path": "x.jsonl", "hub": "mbpp"}, "exactly one of path and hub"),
        ({"path": "x.jsonl", "revision": "abc"}, "no revision beside a path"),
    ],
)
def test_sets_that_cannot_be_meant(tasks: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        read(mbpp=tasks)
