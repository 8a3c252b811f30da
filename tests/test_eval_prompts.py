"""Prompt presets, byte for byte: a changed byte here is another protocol."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.prompts import PRESETS
from shared.tasks import Task, load_tasks

HUMANEVAL = Task(
    task_id="HumanEval/0",
    prompt='\nfrom typing import List\n\n\ndef add(a: int) -> int:\n    """ Add one.\n    """\n',
    reference="    return a + 1\n",
    tests="def check(candidate):\n    assert candidate(1) == 2\n",
    entry_point="add",
    setup="",
    kind="humaneval",
)


def mbpp_task(tmp_path: Path) -> Task:
    row = {
        "task_id": 602,
        "text": "Write a function to find {braces}.",
        "code": "def f(s):\r\n\treturn s",
        "test_list": ['assert f("a") == "a"', "assert f(1) == 1"],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    (tmp_path / "mbpp.jsonl").write_text(json.dumps(row) + "\n")
    return load_tasks(tmp_path / "mbpp.jsonl")[0]


def test_stripped_humaneval_prompt_ends_without_its_newline() -> None:
    assert PRESETS["humaneval-stripped"].render(HUMANEVAL) == (
        'from typing import List\n\n\ndef add(a: int) -> int:\n    """ Add one.\n    """'
    )


def test_as_is_keeps_every_byte() -> None:
    assert PRESETS["as-is"].render(HUMANEVAL) == HUMANEVAL.prompt


def test_mbpp_docstring_is_description_and_first_assert(tmp_path: Path) -> None:
    assert PRESETS["mbpp-docstring"].render(mbpp_task(tmp_path)) == (
        '"""\nWrite a function to find {braces}.\nassert f("a") == "a"\n"""\n'
    )


def test_identities_and_stop_words_are_pinned() -> None:
    assert {preset.id: preset.stop_words for preset in PRESETS.values()} == {
        "humaneval-stripped/1": ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>"),
        "mbpp-docstring/1": ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```"),
        "as-is/1": ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>"),
    }


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("\n    return 1\n\n\ndef main():\n    pass", "\n    return 1\n\n"),
        ("\n    if x:\n        return 1\nprint(f(1))\nif x:", "\n    if x:\n        return 1"),
        ("\n    return 1\n", "\n    return 1\n"),
        ("\ndef at_once(): pass", ""),
        ("", ""),
    ],
)
def test_cut_ends_at_the_first_stop_word(text: str, left: str) -> None:
    assert PRESETS["humaneval-stripped"].cut(text) == left


def test_a_helper_function_of_mbpp_is_not_cut() -> None:
    text = "def helper(n):\n    return n\ndef f(n):\n    return helper(n)\nassert f(1) == 1"
    assert PRESETS["mbpp-docstring"].cut(text).endswith("return helper(n)")


def test_no_real_prompt_of_humaneval_keeps_white_space_at_its_end(shared_data: Path) -> None:
    tasks = load_tasks(shared_data / "humaneval.jsonl")
    assert sum(task.prompt.endswith("\n") for task in tasks) == 164  # the trap is on every task
    assert all(prompt == prompt.rstrip() for prompt in map(PRESETS["humaneval-stripped"].render, tasks))
    # the references of HumanEval survive their own stop words
    assert all(PRESETS["humaneval-stripped"].cut("\n" + task.reference).strip() for task in tasks)
