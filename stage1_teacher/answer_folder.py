"""The folder that `generate` writes and `select` reads: prompts.jsonl, generate.json, answers.jsonl.

One folder holds one set of prompts and settings, from its first answer on. An answer is in the file as soon as it came, so
a killed run has lost none and pays for none twice; the disk is told to keep them every so many. Not for making answers.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.lock import only_one
from shared.errors import UsageError
from shared.files import atomic_write, json_object, jsonl, read_jsonl, repair_jsonl, require_fresh_directory
from stage1_teacher.prompt_sets import Prompt, Prompts

ANSWERS, PROMPTS, RECORD, WORK = "answers.jsonl", "prompts.jsonl", "generate.json", ".generate"
FORMAT = "codestill-answers/1"
_FIELDS = {"prompt_id": str, "index": int, "answer": str, "finish": str, "prompt_tokens": int, "completion_tokens": int}

Key = tuple[str, int]


@dataclass(frozen=True)
class Answered:
    """What is in a folder: the record, the prompts in order, and answer rows in the order of arrival."""

    record: dict[str, Any]
    prompts: tuple[Prompt, ...]
    rows: list[dict[str, Any]]


class AnswerFile:
    """answers.jsonl, open for appending. Made by `writing`."""

    def __init__(self, path: Path, every: int) -> None:
        self._file = path.open("ab", buffering=0)  # a line is one write: nothing waits in this process
        self._every, self._since = every, 0

    def add(self, row: Mapping[str, Any]) -> None:
        """One answer, whole."""
        raw = memoryview(jsonl([dict(row)]).encode())
        while raw:  # a disk that is nearly full takes a part, and says so at the next
            raw = raw[self._file.write(raw) :]
        self._since += 1
        if self._since >= self._every:
            self.sync()

    def sync(self) -> None:
        """On the disk, whatever happens to the power."""
        os.fsync(self._file.fileno())
        self._since = 0

    def close(self) -> None:
        """Synced and closed."""
        self.sync()
        self._file.close()


@contextmanager
def writing(
    folder: Path, prompts: Prompts, record: Mapping[str, Any], every: int
) -> Iterator[tuple[AnswerFile, list[dict[str, Any]]]]:
    """The file to append to, and the answers that are there already; one process at a time.

    Raises:
        UsageError: the folder holds something else, or answers to other prompts or with other settings.
    """
    require_fresh_directory(folder, allowed=(ANSWERS, PROMPTS, RECORD, WORK), what="out")
    (folder / WORK).mkdir(exist_ok=True)
    with only_one(folder / WORK / "lock", "generate"):
        repair_jsonl(folder / ANSWERS)
        known = _answers(folder / ANSWERS)
        if known:
            _require_same(folder, read_record(folder), record)
        else:
            atomic_write(folder / PROMPTS, jsonl(prompt.row() for prompt in prompts.prompts))
            atomic_write(folder / RECORD, json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        file = AnswerFile(folder / ANSWERS, every)
        try:
            yield file, known
        finally:
            file.close()


def _require_same(folder: Path, known: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for part in ("prompts", "teacher", "settings"):
        if known.get(part) != wanted[part]:
            raise UsageError(
                f"out {folder}",
                expected=f"answers with the same {part}",
                got=_difference(known.get(part), wanted[part]),
                do="choose another out, or set them as they were",
            )


def _difference(known: Any, wanted: Any) -> str:
    if not isinstance(known, dict) or not isinstance(wanted, dict):
        return f"{known} there and {wanted} wanted"
    names = [name for name in sorted(known.keys() | wanted.keys()) if known.get(name) != wanted.get(name)]
    return ", ".join(f"{name} {known.get(name)} there and {wanted.get(name)} wanted" for name in names[:2])


def read_record(folder: Path) -> dict[str, Any]:
    """generate.json: the teacher, settings and prompts of a folder.

    Raises:
        UsageError: there is none, or it is something else.
    """
    path = folder / RECORD
    if not path.is_file():
        do = "give the folder that `generate` wrote"
        raise UsageError(f"answers {folder}", expected=f"a folder with {RECORD}", got="none", do=do)
    record = json_object(path.read_bytes(), str(path))
    if record.get("format") != FORMAT:
        got = str(record.get("format"))
        raise UsageError(str(path), expected=FORMAT, got=got, do="give a folder that this version wrote")
    return record


def read_answered(folder: Path) -> Answered:
    """A folder as it stands, also while `generate` is at work in it: a line that is not finished does not count.

    Raises:
        UsageError: no such folder, or a damaged row; names file and line.
    """
    record = read_record(folder)
    prompts = tuple(Prompt.of_row(row) for row in read_jsonl(folder / PROMPTS))
    return Answered(record, prompts, _answers(folder / ANSWERS))


def _answers(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    raw = path.read_bytes()
    rows: dict[Key, dict[str, Any]] = {}
    for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), 1):
        where = f"{path} line {number}"
        row = json_object(line, where)
        for name, kind in _FIELDS.items():
            if not isinstance(row.get(name), kind):
                raise UsageError(
                    where, expected=f"{name} as {kind.__name__}", got=repr(row.get(name))[:40], do="remove it"
                )
        rows[row["prompt_id"], row["index"]] = row
    return list(rows.values())
