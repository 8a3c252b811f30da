"""Which documents of a corpus are not worth teaching or not allowed: licence, duplicates, syntax. In a stream, in order.

Not for overlap with evaluation tasks (shared/decontaminate.py) nor for rows that cannot be read (shared/rows.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from pydantic import Field, model_validator

from shared.config import StrictModel
from shared.dedup import NearDuplicates, text_hash
from shared.document import PYTHON, Document
from shared.seen import SeenIds
from shared.syntax import why_not_python

UNSTATED = "unstated"

Dropped = Callable[[Document, str, str], object]
"""Called with a document that is left out, the reason as it is counted, and why, in words."""


class CareConfig(StrictModel):
    """Which documents are left out, in the order of these fields; each is counted under the first that says so."""

    licences: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="licences a document may have, in any case; of several all must be here; 'unstated' for none stated",
    )
    exact_duplicates: bool = Field(
        default=False, description="drop a text that came before, line ends and the like aside"
    )
    python_syntax: bool = Field(
        default=False, description="drop what Python 3.11's grammar refuses; text in other languages passes"
    )
    near_duplicates: float | None = Field(
        default=None, ge=0.5, le=1, description="drop a text this similar to one before (Jaccard, 5 tokens in a row)"
    )
    remember: int = Field(
        default=1_000_000,
        ge=2,
        description="texts to look for near duplicates among, 1 kB each; then the older half goes",
    )

    @model_validator(mode="after")
    def _used(self) -> CareConfig:
        if self.near_duplicates is None and "remember" in self.model_fields_set:
            raise ValueError("no field 'remember' without near_duplicates, which alone uses it")
        return self


def careful(documents: Iterable[Document], config: CareConfig | None, dropped: Dropped | None) -> Iterator[Document]:
    """The documents that pass, in their order; `dropped` hears of the others."""
    why_not = Care(config or CareConfig()).why_not
    for document in documents:
        found = why_not(document)
        if found is None:
            yield document
        elif dropped is not None:
            dropped(document, *found)


class Care:
    """The filters of one reading of a corpus; they remember what has passed."""

    def __init__(self, config: CareConfig) -> None:
        self.config = config
        self.licences = None if config.licences is None else {name.casefold() for name in config.licences}
        self.seen = SeenIds()
        self.near = None if config.near_duplicates is None else NearDuplicates(config.near_duplicates, config.remember)

    def why_not(self, document: Document) -> tuple[str, str] | None:
        """(Reason as it is counted, why in words) to leave `document` out; None if it passes."""
        if self.licences is not None and not self._licensed(document.licence):
            return "licence", document.licence or UNSTATED
        if self.config.exact_duplicates and not self.seen.add(text_hash(document.text)):
            return "duplicate", "came before"
        if self.config.python_syntax and document.language == PYTHON and (why := why_not_python(document.text)):
            return "syntax", why
        if self.near is not None and (earlier := self.near.like(document.text, document.id)):
            return "near_duplicate", f"like {earlier}"
        return None

    def _licensed(self, licence: str | None) -> bool:
        assert self.licences is not None, "asked for"
        stated = (licence or UNSTATED).casefold()
        return stated in self.licences or all(name.strip() in self.licences for name in stated.split(","))
