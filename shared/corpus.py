"""Documents of a corpus, one at a time, in a fixed order, whatever they come from.

A corpus is a recipe by name, a hub data set, a local file or folder, or the embedded programming domain; its config is
in shared/corpus_config.py, reading of files in shared/rows.py. Not for tokens: shared/windows.py makes those.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from shared.care import Dropped, careful
from shared.corpus_config import (
    ROW_FIELDS,
    CorpusConfig,
    EmbeddedCorpus,
    SourceConfig,
    WeightedSource,
    corpus_name,
    describe_corpus,
    fill_in,
    source_name,
)
from shared.document import PYTHON, Document
from shared.errors import UsageError
from shared.mixture import interleave
from shared.recipes import RECIPES, Recipe
from shared.rows import (
    ROW_SUFFIXES,
    PlacedRow,
    Spoilt,
    file_rows,
    folder_files,
    hub_rows,
    read_source,
    unless_spoilt,
)
from shared.template import Template, not_text, require_column

__all__ = [
    "CorpusConfig",
    "Document",
    "EmbeddedCorpus",
    "corpus_name",
    "describe_corpus",
    "not_empty",
    "read_documents",
    "read_rows",
]

LANGUAGES = {".py": PYTHON, ".pyi": PYTHON}
_HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON can write them, UTF-8 and tokenizers cannot hold them


def read_documents(
    config: CorpusConfig, spoilt: Spoilt | None = None, dropped: Dropped | None = None
) -> Iterator[Document]:
    """The corpus, document by document.

    Args:
        spoilt: hears of rows and files that cannot be read, which are then left out.
        dropped: hears of documents that `config.care` leaves out.
    Raises:
        UsageError: on the first step: nothing there, a missing column, no document at all; later: a damaged row or
            file. Each names the place.
    """
    if config.sources is None:
        found = _of_source(config, spoilt)
    else:
        sources = [(source.weight, _named(source, spoilt)) for source in config.sources]
        found = islice(interleave(sources, config.seed or 0), config.max_documents)
    return careful(found, config.care, dropped)


def _of_source(config: SourceConfig, spoilt: Spoilt | None) -> Iterator[Document]:
    if config.embedded is not None:
        found = _embedded(config.embedded)
    elif config.recipe is None and config.path is not None and config.path.is_dir() and not _has_columns(config):
        found = _source_files(config, config.path, spoilt)
    else:
        found = read_rows(config, RECIPES.get(config.recipe or ""), spoilt)
    do = (
        "check path, glob, split, where (links out of a folder are not followed)"
        if config.embedded is None
        else "ask for more"
    )
    return not_empty(islice(found, config.max_documents), what=f"corpus {corpus_name(config)}", do=do)


def _named(source: WeightedSource, spoilt: Spoilt | None) -> Iterator[Document]:
    """One of several sources: its name in every id; where nothing of it can be read, what is wrong with the first."""
    name, troubles, empty = source_name(source), list[UsageError](), True

    def hear(error: UsageError) -> None:
        assert spoilt is not None, "somebody listens"
        if not troubles:
            troubles.append(error)
        spoilt(error)

    try:
        for document in _of_source(source, spoilt and hear):
            empty = False
            yield replace(document, id=f"{name}:{document.id}", source=name)
    except UsageError:
        if empty and troubles:
            raise troubles[0] from None
        raise


def _has_columns(config: SourceConfig) -> bool:
    return any(getattr(config, name) is not None for name in ROW_FIELDS)


def not_empty(documents: Iterable[Document], *, what: str, do: str) -> Iterator[Document]:
    """The documents as they are; a UsageError at the end if there was none."""
    empty = True
    for document in documents:
        empty = False
        yield document
    if empty:
        raise UsageError(what, expected="at least one document", got="none", do=do)


def _embedded(config: EmbeddedCorpus) -> Iterator[Document]:
    from shared.embedded import training_documents

    for made in training_documents(config.count, config.seed, config.faulty):
        yield Document(made.id, made.prompt + made.solution, len(made.prompt), "embedded", "Apache-2.0")


def _source_files(config: SourceConfig, root: Path, spoilt: Spoilt | None) -> Iterator[Document]:
    for path in folder_files(root, config.glob or "**/*.py", config.exclude):
        name = path.relative_to(root).as_posix()
        printable = name.encode(errors="replace").decode()  # a file name need not be valid UTF-8, an id must be
        text = unless_spoilt(partial(read_source, path, printable), spoilt)
        if text is not None:
            language = config.language or LANGUAGES.get(path.suffix) or path.suffix.removeprefix(".")
            yield Document(printable, text, 0, root.name, None, language)


def read_rows(config: SourceConfig, recipe: Recipe | None, spoilt: Spoilt | None = None) -> Iterator[Document]:
    """Documents out of rows: a hub data set, a JSONL or Parquet file, or a folder of such files ordered by name."""
    filled = fill_in(config, recipe) if recipe is not None else config
    shape = RowShape(filled, recipe)
    for placed in _rows(filled, shape.columns, spoilt):
        document = unless_spoilt(partial(shape.document, *placed), spoilt)
        if document is not None:
            yield document


def _rows(config: SourceConfig, columns: tuple[str, ...], spoilt: Spoilt | None) -> Iterator[PlacedRow]:
    if config.path is None:
        assert config.dataset is not None, "validated: rows come from a path or a data set"
        yield from hub_rows(
            config.dataset,
            config=config.config,
            split=config.split or "train",
            revision=config.revision,
            data_dir=config.data_dir,
            streaming=bool(config.streaming),
        )
    elif config.path.is_dir():
        files = folder_files(config.path, config.glob or "**/*", config.exclude)
        for path in (path for path in files if path.name.endswith(ROW_SUFFIXES)):
            yield from file_rows(path, path.relative_to(config.path).as_posix(), columns, spoilt)
    elif config.glob is not None or config.exclude:
        raise UsageError(f"corpus {config.path}", expected="a folder", got="no folder", do="remove glob and exclude")
    else:
        yield from file_rows(config.path, config.path.name, columns, spoilt)


class RowShape:
    """How a row of one corpus becomes a document; made once, used for every row."""

    def __init__(self, config: SourceConfig, recipe: Recipe | None) -> None:
        self.config, self.recipe, self.name = config, recipe, corpus_name(config)
        self.where = config.where or {}
        self.prompt = Template(config.prompt or "", "corpus.prompt")
        self.completion = Template(config.completion, "corpus.completion") if config.completion is not None else None
        self.text = config.text or "text"
        body = self.completion.columns if self.completion is not None else (self.text,)
        named = [name for name in (config.id, config.licence) if name is not None]
        self.columns = tuple(dict.fromkeys([*self.prompt.columns, *body, *named, *self.where]))

    def document(self, place: str, name: str, row: dict[str, Any]) -> Document | None:
        """The document of one row, or None where `where` leaves the row out."""
        if not all(self._counts(row, column, place) for column in self.where):
            return None
        prompt = self._clean(self.prompt.render(row, place), place)
        solution = self._clean(self._solution(row, place), place)
        named, licence = self._id(row, place, name), self._licence(row, place)
        return Document(named, prompt + solution, len(prompt), self.name, licence, self.config.language or PYTHON)

    def _solution(self, row: dict[str, Any], place: str) -> str:
        if self.completion is not None:
            return self.completion.render(row, place)
        require_column(row, self.text, place=place, key="corpus.text (or corpus.prompt and corpus.completion)")
        value = row[self.text]
        if not isinstance(value, str):
            raise not_text(value, place=place, what=f"text in column '{self.text}'", key="corpus.text")
        return value

    def _clean(self, text: str, place: str) -> str:
        if _HALF_PAIR.search(text):
            raise UsageError(
                place, expected="text that UTF-8 can hold", got="half a surrogate pair", do="repair the row"
            )
        return text.replace("\r\n", "\n") if self.recipe is not None and self.recipe.lf_newlines else text

    def _counts(self, row: dict[str, Any], column: str, place: str) -> bool:
        require_column(row, column, place=place, key="corpus.where")
        wanted, value = self.where[column], row[column]
        if isinstance(wanted, tuple):
            return isinstance(value, int) and wanted[0] <= value <= wanted[1]
        return bool(value) if wanted == "*" else str(value).casefold() == wanted.casefold()

    def _id(self, row: dict[str, Any], place: str, name: str) -> str:
        if self.config.id is None:
            return name
        require_column(row, self.config.id, place=place, key="corpus.id")
        return f"{self.name}/{row[self.config.id]}"

    def _licence(self, row: dict[str, Any], place: str) -> str | None:
        if self.config.licence is None:
            return self.recipe.licence_name if self.recipe is not None else None
        require_column(row, self.config.licence, place=place, key="corpus.licence")
        value = row[self.config.licence]
        if value is None or isinstance(value, str):
            return value
        return ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)
