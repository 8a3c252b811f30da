"""Prompt presets: named, versioned, byte for byte; what a model is shown, and where its answer ends.

A score can only be compared with another of the same preset, so a change of any byte here raises the preset's version.
NOT for the programs that are run: Task.program makes them from the task's own prompt and the completion.

The trap: HumanEval prompts end in a newline, and a tokenizer that joins newline and indentation into one token has then
been shown a boundary it never saw in training. StarCoder2-3B scores 1.8 % so and 29.9 % with the prompt stripped. The
completion of a stripped prompt starts with the newline itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared.recipes import MBPP_PROMPT
from shared.tasks import Task


@dataclass(frozen=True)
class Preset:
    """How a task becomes a prompt, and the words that end a completion (they are cut off with all that follows)."""

    name: str
    version: int
    source: str
    render: Callable[[Task], str]
    stop_words: tuple[str, ...]

    @property
    def id(self) -> str:
        """Name and version, as recorded beside every completion."""
        return f"{self.name}/{self.version}"

    def cut(self, text: str) -> str:
        """`text` up to the first stop word."""
        ends = [place for word in self.stop_words if (place := text.find(word)) >= 0]
        return text[: min(ends)] if ends else text


_FUNCTION_BODY = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "<file_sep>")
_WHOLE_FUNCTION = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")


def _stripped(task: Task) -> str:
    return task.prompt.strip()


def _docstring(task: Task) -> str:
    return MBPP_PROMPT.format(text=task.text, test_list=task.test_list)


def _as_is(task: Task) -> str:
    return task.prompt


_ALL = (
    Preset("humaneval-stripped", 1, "BigCode evaluation harness, task humaneval", _stripped, _FUNCTION_BODY),
    Preset(
        "mbpp-docstring", 1, "BigCode evaluation harness, task mbpp (0-shot, InCoder's)", _docstring, _WHOLE_FUNCTION
    ),
    Preset("as-is", 1, "the task's prompt, unchanged", _as_is, _FUNCTION_BODY),
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
