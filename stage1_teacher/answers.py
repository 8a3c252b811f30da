"""What an answer holds, by the kind of its prompt: the text for the corpus, the program in it, or why it is dropped.

Answers are strangers' text: nothing here runs them, and no text raises. Not for comparing answers (stage1_teacher/ranking.py).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from stage1_teacher.markdown import prose, python_block, sections
from stage1_teacher.programs import body_of, documentation, has_code, normal_form, parsed, public_names
from stage1_teacher.prompt_sets import Prompt
from stage1_teacher.prompt_templates import SECTIONS, fenced

_OPEN_FENCE = re.compile(r"\A\s*```\w*\n")  # of a base model that stops at the closing one
REFUSAL_PLACE = 200  # letters of an answer's prose in which a refusal shows

CUT_OFF, REFUSAL, TOO_SHORT = "cut off", "refusal", "too short"
NO_CODE, NO_PARSE, NO_TESTS = "no code", "does not parse", "no tests"
NO_SECTIONS, NO_DOCUMENTATION = "not the four sections", "no documentation"
OTHER_CODE, SAME_CODE, LOST_NAMES = "changed the code", "left the code as it was", "lost public names"


class Dropped(Exception):
    """An answer that the corpus does not get; its text is the reason."""


@dataclass(frozen=True)
class Reading:
    """An answer as far as it can be read.

    Attributes:
        completion: what follows the prompt in the corpus.
        code: the program in it, for comparing; None where it is prose.
        judged: the completion the judge gets, where the task has tests.
        sections: of an answer in instruction format.
    """

    completion: str
    code: str | None
    judged: str | None = None
    sections: dict[str, str] = field(default_factory=dict)


def read_answer(prompt: Prompt, answer: str, finish: str, *, shortest: int, refusals: Sequence[str]) -> Reading:
    """Read one answer.

    Raises:
        Dropped: it was cut off, refuses, is too short, or is not what was asked for.
    """
    whole = answer.replace("\r\n", "\n").replace("\r", "\n")
    text = cut_at(whole, prompt.stop)
    if finish in ("length", "no room") and text == whole:
        raise Dropped(CUT_OFF)
    if finish == "content_filter" or _refuses(text, refusals):
        raise Dropped(REFUSAL)
    reading = _READERS[prompt.kind](prompt, text)
    if len(reading.completion.strip()) < shortest:
        raise Dropped(TOO_SHORT)
    return reading


def cut_at(text: str, words: Sequence[str]) -> str:
    """`text` up to the first of `words`; the one it begins with does not count, since it would leave nothing."""
    ends = [place for word in words if (place := text.find(word, 1)) > 0]
    return text[: min(ends)] if ends else text


def _refuses(text: str, refusals: Sequence[str]) -> bool:
    """Only where no code came with it: some models are sorry first and answer then."""
    if python_block(text) is not None:
        return False
    start = prose(text)[:REFUSAL_PLACE].casefold().replace("\u2019", "'")
    return any(phrase.casefold() in start for phrase in refusals)


def _program(prompt: Prompt, text: str) -> Reading:
    block = python_block(text)
    code = _code(_OPEN_FENCE.sub("", text) if block is None else block)
    return Reading(code, code, judged=code)


def _body(prompt: Prompt, text: str) -> Reading:
    """The rest of a function. A model that was asked in words gives the whole function: its body is taken out of it."""
    block, task = python_block(text), prompt.task
    entry_point = (task.entry_point if task is not None else None) or ""
    if block is None:
        rest = "\n" + text.lstrip("\n").rstrip() + "\n"
    else:
        body = body_of(block, entry_point)
        if body is None:
            raise Dropped(NO_CODE if parsed(block) is not None else NO_PARSE)
        rest = "\n" + body
    if not rest.strip():
        raise Dropped(TOO_SHORT)
    code = _code(prompt.prompt + rest)
    if body_of(code, entry_point) is None:  # it parses, but as something beside the function
        raise Dropped(NO_CODE)
    return Reading(rest, code, judged=rest)


def _code(text: str) -> str:
    code = text.strip("\n").rstrip() + "\n"
    module = parsed(code)
    if module is None:
        raise Dropped(NO_PARSE)
    if not has_code(module):
        raise Dropped(TOO_SHORT if not code.strip() else NO_CODE)
    return code


def _block(text: str) -> str:
    """The block that was asked for; a base model may leave the fence away."""
    block = python_block(text)
    if block is None and parsed(text) is None:
        raise Dropped(NO_CODE)
    return _code(text if block is None else block)


def _explanation(prompt: Prompt, text: str) -> Reading:
    return Reading(text.strip() + "\n", None)


def _document(prompt: Prompt, text: str) -> Reading:
    code = _block(text)
    if normal_form(code, rename=False) != normal_form(prompt.code or "", rename=False):
        raise Dropped(OTHER_CODE)
    if documentation(code) == 0:
        raise Dropped(NO_DOCUMENTATION)
    return Reading(text.strip() + "\n", code)


def _tests(prompt: Prompt, text: str) -> Reading:
    code = _block(text)
    if not _asserts(code):
        raise Dropped(NO_TESTS)
    return Reading(text.strip() + "\n", code)


def _asserts(code: str) -> bool:
    module = parsed(code)
    return module is not None and any(isinstance(node, ast.Assert) or _is_assertion(node) for node in ast.walk(module))


def _is_assertion(node: ast.AST) -> bool:
    """unittest's self.assertEqual and pytest.raises."""
    name = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
    return name.startswith("assert") or name == "raises"


def _refactor(prompt: Prompt, text: str) -> Reading:
    code, seed = _block(text), prompt.code or ""
    module, before = parsed(code), parsed(seed)
    assert module is not None and before is not None, "both were parsed before"
    if not public_names(before) <= public_names(module):
        raise Dropped(LOST_NAMES)
    if normal_form(code, rename=False) == normal_form(seed, rename=False):
        raise Dropped(SAME_CODE)
    return Reading(text.strip() + "\n", code)


def _instruction(prompt: Prompt, text: str) -> Reading:
    parts = sections(text, SECTIONS)
    if parts is None:
        raise Dropped(NO_SECTIONS)
    parts |= {name: _block(parts[name]) for name in ("code", "tests")}
    if not _asserts(parts["tests"]):
        raise Dropped(NO_TESTS)
    shown = {name: fenced(text) if name in ("code", "tests") else text for name, text in parts.items()}
    whole = "\n\n".join(f"## {name.capitalize()}\n{text}" for name, text in shown.items())
    return Reading(whole + "\n", parts["code"], sections=parts)


def _plain(prompt: Prompt, text: str) -> Reading:
    """Anything: code where it says so or goes on with the prompt's code, else prose."""
    block = python_block(text)
    if block is not None:
        return Reading(text.rstrip() + "\n", _code(block))
    whole = prompt.prompt + text
    return Reading(text.rstrip() + "\n", whole if parsed(whole) is not None else None)


_READERS: dict[str, Callable[[Prompt, str], Reading]] = {
    "program": _program,
    "body": _body,
    "explain": _explanation,
    "document": _document,
    "write_tests": _tests,
    "refactor": _refactor,
    "instruction": _instruction,
    "plain": _plain,
}
