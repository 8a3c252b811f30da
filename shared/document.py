"""A document: one text of a corpus, and what is known of it. Not for reading any (shared/corpus.py)."""

from __future__ import annotations

from dataclasses import dataclass

PYTHON = "python"


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus.

    Attributes:
        id: names it inside its corpus, e.g. "mbpp/601" or "pkg/module.py"; "stdlib:os.py" where there are several sources.
        text: prompt and solution.
        prompt_chars: leading characters of `text` that are prompt; 0 if all is to be taught.
        source: recipe, data set, file or folder name; a source's name where there are several.
        licence: the licence(s) the source states, or None.
        language: what the text is written in: "python", or another file's suffix, or what the config says.
    """

    id: str
    text: str
    prompt_chars: int
    source: str
    licence: str | None
    language: str = PYTHON
