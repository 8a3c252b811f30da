"""Prompts for the teacher, out of tasks with tests, real code, instructions, or a plain file; checked before anything runs.

A prompt knows what the teacher is shown (`asked`) and what the corpus will show a student (`prompt`): a chat model is asked
in words for what a base model is to learn as a docstring. Not for the words (stage1_teacher/prompt_templates.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from shared.corpus import read_documents
from shared.errors import UsageError
from shared.recipes import RECIPES
from shared.rows import PlacedRow, file_rows, hub_rows
from shared.task_formats import read_task
from shared.tasks import HUB_SETS, Task, mbpp_split
from stage1_teacher.generate_config import CodePrompts, FilePrompts, PromptSets, Style, TaskPrompts
from stage1_teacher.programs import parsed
from stage1_teacher.prompt_templates import (
    FUNCTION_BODY_ENDS,
    RESPONSE_ENDS,
    WHOLE_PROGRAM_ENDS,
    WRAPPED,
    code_request,
    instruction_request,
    task_request,
)

Kind = Literal["program", "body", "explain", "document", "write_tests", "refactor", "instruction", "plain"]
"""What the answer should be: a whole program, the rest of a function, an answer about code, sections, or anything."""


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes:
        id: set and name, e.g. "mbpp/MBPP/601" or "code/pkg/a.py/explain"; samples draw their randomness by it.
        asked: what the teacher sees.
        prompt: what stands before the answer in the corpus.
        stop: words that end a base model's answer.
        licence: of the task or seed, or None.
        code: the seed's code, where an answer is compared with it.
        problem: the task's own row with its tests, for the judge.
    """

    id: str
    kind: Kind
    asked: str
    prompt: str
    stop: tuple[str, ...] = ()
    licence: str | None = None
    code: str | None = None
    problem: dict[str, Any] | None = None

    def row(self) -> dict[str, Any]:
        """The prompt as a line of prompts.jsonl."""
        return asdict(self)

    @staticmethod
    def of_row(row: Mapping[str, Any]) -> Prompt:
        """The prompt of such a line."""
        return Prompt(**{**row, "stop": tuple(row["stop"])})

    @property
    def task(self) -> Task | None:
        """The task with its tests, where there is one."""
        return None if self.problem is None else read_task(self.id, self.problem)


@dataclass(frozen=True)
class Prompts:
    """All prompts of a run, and how many seeds were left out for which reason."""

    prompts: tuple[Prompt, ...]
    left_out: dict[str, int]

    @property
    def sha256(self) -> str:
        """Over every prompt, in order."""
        return hashlib.sha256(json.dumps([prompt.row() for prompt in self.prompts]).encode()).hexdigest()


def read_prompts(sets: PromptSets, style: Style) -> Prompts:
    """Every prompt of every set that is named.

    Raises:
        UsageError: a file or data set that cannot be read, a row without its field, an id twice, no prompt at all.
    """
    left_out: Counter[str] = Counter()
    found: dict[str, Prompt] = {}
    for prompt in _all(sets, style, left_out):
        if prompt.id in found:
            do = "remove one of them"
            raise UsageError(f"prompt {prompt.id}", expected="each id once", got="it twice", do=do)
        found[prompt.id] = _encodable(prompt)
    if not found:
        got = ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "none"
        raise UsageError("prompts", expected="at least one prompt", got=got, do="check path, split and most_chars")
    return Prompts(tuple(found.values()), dict(left_out))


def _all(sets: PromptSets, style: Style, left_out: Counter[str]) -> Iterator[Prompt]:
    if sets.mbpp is not None:
        yield from _of_tasks(sets.mbpp, style)
    if sets.code is not None:
        yield from _of_code(sets.code, style, left_out)
    if sets.instructions is not None:
        yield from _of_instructions(sets.instructions, style)
    if sets.plain is not None:
        yield from _of_plain(sets.plain, style)


def _encodable(prompt: Prompt) -> Prompt:
    try:
        json.dumps(prompt.row(), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        do = "repair the row"
        raise UsageError(
            f"prompt {prompt.id!a}", expected="text that UTF-8 can hold", got="half a surrogate pair", do=do
        ) from None
    return prompt


# ---- tasks with tests


def _of_tasks(config: TaskPrompts, style: Style) -> Iterator[Prompt]:
    licence = config.licence
    if licence is None and config.hub in RECIPES:
        licence = RECIPES[str(config.hub)].licence_name
    pairs = [(read_task(place, row), row) for place, _, row in _task_rows(config)]
    kept: Iterable[Task] = [task for task, _ in pairs]
    if config.split is not None and config.path is not None:
        kept = mbpp_split(kept, config.split)
    wanted = {task.task_id for task in islice(kept, config.count)}
    for task, row in pairs:
        if task.task_id in wanted:
            yield _of_task(task, row, style, licence)


def _task_rows(config: TaskPrompts) -> Iterator[PlacedRow]:
    if config.path is not None:
        return file_rows(config.path, config.path.name, ())
    assert config.hub is not None, "validated: path or hub"
    dataset, name, _ = HUB_SETS[config.hub]
    split = config.split or ("train" if config.hub in ("mbpp", "mbpp-sanitized") else "test")
    return hub_rows(dataset, config=name, split=split, revision=config.revision, data_dir=None, streaming=False)


def _of_task(task: Task, row: dict[str, Any], style: Style, licence: str | None) -> Prompt:
    """A base model sees a function's head without its last newline: shown, tokenizers that join newline and indentation
    would have to go on from a place where training never put them (eval/prompts.py has the measurement).
    """
    body = task.kind == "humaneval"
    shown = task.prompt.rstrip() if body else task.prompt
    return Prompt(
        id=f"mbpp/{task.task_id}",
        kind="body" if body else "program",
        asked=shown if style == "completion" else task_request(task),
        prompt=shown,
        stop=() if style == "chat" else FUNCTION_BODY_ENDS if body else WHOLE_PROGRAM_ENDS,
        licence=licence,
        problem=row,
    )


# ---- seeds and instructions


def _of_code(config: CodePrompts, style: Style, left_out: Counter[str]) -> Iterator[Prompt]:
    for document in read_documents(config.corpus):
        if len(document.text) > config.most_chars:
            left_out["seeds longer than most_chars"] += 1
        elif not document.text.strip():
            left_out["empty seeds"] += 1
        elif parsed(document.text) is None:
            left_out["seeds that do not parse"] += 1
        else:
            for task in config.tasks:
                request = code_request(task, document.text)
                name = f"code/{document.id}/{task}"
                yield _of_request(name, task, request, style, document.licence, document.text)


def _of_instructions(config: FilePrompts, style: Style) -> Iterator[Prompt]:
    for place, name, row in islice(_file_rows(config.path), config.count):
        more = _text(row, "input", place) if row.get("input") is not None else ""
        request = instruction_request(_text(row, "instruction", place), more)
        yield _of_request(f"instructions/{_name(row, name)}", "instruction", request, style, _licence(row, place))


def _of_plain(config: FilePrompts, style: Style) -> Iterator[Prompt]:
    for place, name, row in islice(_file_rows(config.path), config.count):
        text, named = _text(row, "prompt", place), f"plain/{_name(row, name)}"
        if style == "chat":
            yield _of_request(named, "plain", text, style, _licence(row, place))
        else:
            yield Prompt(named, "plain", text, text, licence=_licence(row, place))


def _of_request(
    name: str, kind: str, request: str, style: Style, licence: str | None, code: str | None = None
) -> Prompt:
    wrapped = WRAPPED.format(request=request)
    asked, stop = (request, ()) if style == "chat" else (wrapped, RESPONSE_ENDS)
    return Prompt(name, cast(Kind, kind), asked, wrapped, stop, licence, code)


def _file_rows(path: Path) -> Iterator[PlacedRow]:
    return file_rows(path, path.name, ())


def _text(row: Mapping[str, Any], column: str, place: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        got = f"fields {', '.join(map(str, row)) or '(none)'}" if column not in row else repr(value)[:60]
        raise UsageError(place, expected=f"a text in '{column}'", got=got, do="repair the row")
    return value


def _name(row: Mapping[str, Any], fallback: str) -> str:
    value = row.get("id")
    return str(value) if isinstance(value, int | str) and value != "" else fallback


def _licence(row: Mapping[str, Any], place: str) -> str | None:
    return None if row.get("licence") is None else _text(row, "licence", place)
