"""Drop training documents that share a long n-gram with the evaluation tasks, and say how many and which.

After Brown et al. 2020 (GPT-3), appendix C: an overlap of 13 words. Differences: a document is dropped whole, not cut
around the overlap, and numbers are no words, so that a list 1, 2, 3, ... is no evidence. Memory is bounded by the
evaluation tasks; documents stream through. Not for duplicates inside the corpus.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field, field_validator, model_validator

from shared.config import ConfigPath, StrictModel
from shared.corpus import CorpusConfig, Document, not_empty, read_documents, read_rows
from shared.errors import UsageError
from shared.recipes import EVALUATION_RECIPES
from shared.rows import file_rows

WORD = re.compile(r"[^\W\d]\w*")
DISTINCT = 8  # different words an n-gram needs: "for i in range n for j in range n" is every nested loop, no evidence
EXAMPLES = 100  # dropped documents that are kept by name


class EvaluationTasks(StrictModel):
    """Tasks that training must not have seen: a recipe's scored rows (from the hub, or from `path`), or a task file."""

    recipe: str | None = Field(default=None, description="known tasks: " + ", ".join(EVALUATION_RECIPES))
    path: ConfigPath | None = Field(
        default=None, description="a file of HumanEval or MBPP format; without recipe every row counts"
    )

    @field_validator("recipe")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in EVALUATION_RECIPES:
            raise ValueError("one of the task recipes " + ", ".join(EVALUATION_RECIPES))
        return name

    @model_validator(mode="after")
    def _named(self) -> EvaluationTasks:
        if self.recipe is None and self.path is None:
            raise ValueError("recipe, path, or both")
        return self


class DecontaminationConfig(StrictModel):
    """Which tasks must not be in the corpus, and how long an overlap counts."""

    against: tuple[EvaluationTasks, ...] = Field(min_length=1, description="the evaluation tasks")
    ngram: int = Field(default=13, ge=DISTINCT, description="words in a row that count as an overlap (GPT-3: 13)")


@dataclass
class Decontamination:
    """What was dropped.

    Attributes:
        tasks: evaluation tasks compared with.
        sets: task set (recipe or file name) -> its tasks.
        documents: documents looked at.
        dropped: documents dropped.
        by_task: task id -> documents dropped because of it (the first task that matches counts).
        examples: (document id, task id) of the first dropped ones, at most EXAMPLES.
    """

    tasks: int = 0
    sets: Counter[str] = field(default_factory=Counter)
    documents: int = 0
    dropped: int = 0
    by_task: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str]] = field(default_factory=list)

    def note(self, document: str, task: str) -> None:
        """Count one dropped document."""
        self.dropped += 1
        self.by_task[task] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append((document, task))

    @property
    def by_set(self) -> dict[str, int]:
        """Task set -> documents dropped because of its tasks; 0 for a set that was compared and found nowhere."""
        found = dict.fromkeys(self.sets, 0)
        for task, count in self.by_task.items():
            found[set_of(task)] += count
        return found


def set_of(task: str) -> str:
    """The task set of a task id: "humaneval" of "humaneval/HumanEval/0"."""
    return task.split("/", 1)[0]


def evaluation_texts(config: DecontaminationConfig) -> Iterator[tuple[str, list[str]]]:
    """(task id, its texts: description and solution) of every task in `config`, read as a corpus is read.

    Raises:
        UsageError: a file is missing, empty, damaged, or of neither format.
    """
    for tasks in config.against:
        for document in _task_documents(tasks):
            yield document.id, [document.text[: document.prompt_chars], document.text[document.prompt_chars :]]


def _task_documents(tasks: EvaluationTasks) -> Iterator[Document]:
    if tasks.recipe is None:
        return read_documents(_sniffed(tasks))
    rows = read_rows(CorpusConfig(recipe=tasks.recipe, path=tasks.path), EVALUATION_RECIPES[tasks.recipe])
    what = f"decontaminate.against: scored rows of {tasks.recipe} in {tasks.path or 'the hub'}"
    return not_empty(rows, what=what, do="give the file that eval uses")


def _sniffed(tasks: EvaluationTasks) -> CorpusConfig:
    """The corpus that reads a task file: its first row says which of the two formats it has."""
    assert tasks.path is not None, "validated: recipe or path"
    columns: set[str] = next((set(row) for _, _, row in file_rows(tasks.path, tasks.path.name, ())), set())
    for prompt, completion in (("prompt", "canonical_solution"), ("text", "code"), ("prompt", "code")):
        if {"task_id", prompt, completion} <= columns:
            fields: dict[str, Any] = {"prompt": f"{{{prompt}}}", "completion": f"{{{completion}}}", "id": "task_id"}
            return CorpusConfig(path=tasks.path, **fields)
    raise UsageError(
        f"decontaminate.against {tasks.path}",
        expected="tasks with task_id, prompt, canonical_solution (HumanEval) or task_id, text, code (MBPP)",
        got="columns " + (", ".join(sorted(columns)) or "none"),
        do="give the task file that eval uses",
    )


class TaskIndex:
    """The n-grams of the evaluation tasks.

    Args:
        tasks: (task id, texts). A text of fewer than `ngram` words is matched as a whole if DISTINCT of
            them differ.
        ngram: words in an n-gram.
    """

    def __init__(self, tasks: Iterable[tuple[str, list[str]]], ngram: int) -> None:
        self.tasks, self.sets = 0, Counter[str]()
        self._grams: dict[int, dict[str, str]] = {}  # length in words -> n-gram -> the first task that has it
        for task, texts in tasks:
            self.tasks += 1
            self.sets[set_of(task)] += 1
            for text in texts:
                words = _words(text)
                self._add(task, words, min(ngram, len(words)))

    def _add(self, task: str, words: list[str], length: int) -> None:
        for gram in _grams(words, length):
            if len(set(gram.split())) >= DISTINCT:
                self._grams.setdefault(length, {}).setdefault(gram, task)

    def match(self, text: str) -> str | None:
        """The task that shares an n-gram with `text`, or None."""
        words = _words(text)
        for length, grams in sorted(self._grams.items(), reverse=True):
            for gram in _grams(words, length):
                if gram in grams:
                    return grams[gram]
        return None


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())


def _grams(words: list[str], length: int) -> Iterator[str]:
    return (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))


def drop_contaminated(documents: Iterable[Document], index: TaskIndex, result: Decontamination) -> Iterator[Document]:
    """The documents that share no n-gram with a task; `result` counts as they pass."""
    result.tasks, result.sets = index.tasks, index.sets
    for document in documents:
        result.documents += 1
        task = index.match(document.text)
        if task is None:
            yield document
        else:
            result.note(document.id, task)
