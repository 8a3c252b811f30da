"""shared/tasks.py: both formats, their fields, their mistakes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from shared.errors import UsageError
from shared.tasks import load_tasks, mbpp_split, tasks_from_rows

HUMANEVAL = {
    "task_id": "X/0",
    "prompt": 'def f(x):\n    """Add one."""\n',
    "entry_point": "f",
    "canonical_solution": "    return x + 1\n",
    "test": "def check(candidate):\n    assert candidate(1) == 2\n",
}
MBPP = {
    "task_id": 601,
    "text": "Write f.",
    "code": "def f(x):\r\n\treturn x",
    "test_list": ["assert f(1) == 1", "assert f(2) == 2"],
    "test_setup_code": "",
    "challenge_test_list": ["assert f(3) == 3"],
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_kind_is_told_from_the_fields(tmp_path: Path) -> None:
    first, second = load_tasks(write(tmp_path / "t.jsonl", HUMANEVAL, MBPP))
    assert (first.kind, first.task_id, first.entry_point) == ("humaneval", "X/0", "f")
    assert first.program(first.reference) == HUMANEVAL["prompt"] + "    return x + 1\n"
    assert (second.kind, second.task_id, second.entry_point) == ("mbpp", "MBPP/601", None)
    assert second.tests == "assert f(1) == 1\nassert f(2) == 2\n"
    assert second.prompt == '"""\nWrite f.\nassert f(1) == 1\n"""\n'
    assert second.challenge_tests == ("assert f(3) == 3",)


def test_mbpp_newlines_become_lf_also_in_completions(tmp_path: Path) -> None:
    (task,) = load_tasks(write(tmp_path / "t.jsonl", MBPP))
    assert task.reference == "def f(x):\n\treturn x"
    assert task.program("a\r\nb") == "a\nb"


def test_gzip_reads_the_same(tmp_path: Path) -> None:
    plain = write(tmp_path / "t.jsonl", HUMANEVAL, MBPP)
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert load_tasks(packed) == load_tasks(plain)


def test_splits_are_the_published_ranges() -> None:
    tasks = tasks_from_rows((f"row {number}", {**MBPP, "task_id": number}) for number in range(1, 975))
    sizes = {name: len(mbpp_split(tasks, name)) for name in ("prompt", "test", "validation", "train")}
    assert sizes == {"prompt": 10, "test": 500, "validation": 90, "train": 374}
    assert mbpp_split(tasks, "test")[0].task_id == "MBPP/11"
    with pytest.raises(UsageError, match="MBPP split: expected prompt, test, validation, train, got dev"):
        mbpp_split(tasks, "dev")


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({**HUMANEVAL, "plus": 1}, "expected no field 'plus', got fields task_id, prompt"),
        ({k: v for k, v in HUMANEVAL.items() if k != "test"}, "expected a field 'test', got fields task_id, prompt"),
        ({**HUMANEVAL, "prompt": 3}, "expected prompt as str, got int"),
        ({**HUMANEVAL, "entry_point": "f()"}, "expected entry_point as a Python name, got 'f()'"),
        ({**MBPP, "task_id": True}, "expected task_id as int or str, got bool"),
        ({**MBPP, "test_list": []}, "expected at least one test, got an empty test_list"),
        ({**MBPP, "test_list": [1]}, "expected test_list of strings, got another type in it"),
        ([], "expected one JSON object, got list"),
    ],
)
def test_a_wrong_row_is_named_with_file_and_line(tmp_path: Path, row: Any, sentence: str) -> None:
    path = write(tmp_path / "t.jsonl", {**HUMANEVAL, "task_id": "other"}, row)
    with pytest.raises(UsageError) as caught:
        load_tasks(path)
    assert str(caught.value).startswith(f"{path} line 2: {sentence}")


def test_other_mistakes(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", HUMANEVAL, HUMANEVAL)
    with pytest.raises(UsageError, match="line 2: expected each task_id once, got X/0 again"):
        load_tasks(path)
    with pytest.raises(UsageError, match="expected a field 'text'"):
        load_tasks(path, kind="mbpp")
    with pytest.raises(UsageError, match="expected at least one task, got an empty file"):
        load_tasks(write(tmp_path / "empty.jsonl"))
    with pytest.raises(UsageError, match="expected a JSONL file of tasks, got no such file"):
        load_tasks(tmp_path / "absent.jsonl")
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode())[:-9])
    with pytest.raises(UsageError, match="expected a whole gzip file"):
        load_tasks(cut)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_real_files(shared_data: Path) -> None:
    humaneval, mbpp = load_tasks(shared_data / "humaneval.jsonl"), load_tasks(shared_data / "mbpp.jsonl")
    assert (len(humaneval), len(mbpp)) == (164, 974)
    assert not any("\r" in task.reference + task.setup + task.tests for task in mbpp)
    assert [task.task_id for task in mbpp if task.setup] == ["MBPP/367", "MBPP/927"]
    for task in humaneval + mbpp:
        compile(task.program(task.reference), task.task_id, "exec")
