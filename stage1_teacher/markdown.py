"""Code blocks and sections of an answer in Markdown, read line by line: linear in any text, however hostile.

Not for what they should hold (stage1_teacher/answers.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})\s*([\w+-]*)")
_HEADING = re.compile(r"#{1,4}\s+(\w+)\s*:?\s*")
_PYTHON = ("", "python", "python3", "py")


def _lines(text: str) -> Iterator[tuple[str, str | None, str]]:
    """Every line as (what, language, line): "text", "open", "code", "close"."""
    fence, language = "", ""
    for line in text.split("\n"):
        found = _FENCE.match(line)
        if not fence and found:
            fence, language = found[1], found[2].lower()
            yield "open", language, line
        elif fence and found and found[1].startswith(fence) and not line[found.end(1) :].strip():
            fence = ""
            yield "close", language, line
        else:
            yield ("code", language, line) if fence else ("text", None, line)


def python_block(text: str) -> str | None:
    """The longest whole block of Python, or of no named language; None where there is none."""
    blocks: list[str] = []
    lines: list[str] = []
    for what, language, line in _lines(text):
        if what == "open":
            lines = []
        elif what == "code":
            lines.append(line)
        elif what == "close" and language in _PYTHON:
            blocks.append("\n".join(lines).rstrip() + "\n")
    return max(blocks, key=len, default=None)


def prose(text: str) -> str:
    """The text outside of blocks."""
    return "\n".join(line for what, _, line in _lines(text) if what == "text").strip()


def sections(text: str, names: Sequence[str]) -> dict[str, str] | None:
    """The text under each `## Name`, if all are there once, in this order, and none is empty; headings in code do not count.

    Returns:
        lower-case name -> text without its heading; what stands before the first heading is left out. None otherwise.
    """
    found: dict[str, list[str]] = {}
    for what, _, line in _lines(text):
        heading = _HEADING.fullmatch(line) if what == "text" else None
        name = heading[1].lower() if heading else ""
        if name in names:
            if name in found:
                return None
            found[name] = []
        elif found:
            found[next(reversed(found))].append(line)
    texts = {name: "\n".join(lines).strip() for name, lines in found.items()}
    return texts if tuple(texts) == tuple(names) and all(texts.values()) else None
