"""Which documents: the `corpus` section of a config, with the rules about what goes together.

Not for reading them: shared/corpus.py does that. A recipe (shared/recipes.py) is defaults for these fields.
"""

from __future__ import annotations

from collections import Counter
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field, field_validator, model_validator

from shared.care import CareConfig
from shared.config import ConfigPath, StrictModel
from shared.recipes import RECIPES, Recipe, Where

HUB_FIELDS = ("config", "split", "revision", "data_dir", "streaming")
ROW_FIELDS = ("prompt", "completion", "text", "id", "licence", "where")
FOLDER_FIELDS = ("glob", "exclude")
EMBEDDED_IDLE = (*HUB_FIELDS, *ROW_FIELDS, *FOLDER_FIELDS, "language")


class EmbeddedCorpus(StrictModel):
    """The programming domain that ships with the project (shared/embedded.py)."""

    count: int = Field(gt=0, description="training documents to make")
    seed: int = Field(default=0, ge=0, description="seed of the generator; the held-out tasks are disjoint from all")
    faulty: float = Field(
        default=0.0, ge=0, le=1, description="share of documents whose code does something else than their text says"
    )


class SourceConfig(StrictModel):
    """Which documents. Exactly one of recipe, dataset, path, embedded; recipe + path: the recipe's rows, read locally."""

    recipe: str | None = Field(default=None, description="a known data set: " + ", ".join(RECIPES))
    dataset: str | None = Field(default=None, min_length=1, description="a hub data set, owner/name")
    path: ConfigPath | None = Field(
        default=None, description="a .jsonl, .jsonl.gz or .parquet file, or a folder (of source files or of such files)"
    )
    embedded: EmbeddedCorpus | None = Field(default=None, description="the built-in generator of small programs")

    config: str | None = Field(default=None, description="hub: the data set's configuration")
    split: str | None = Field(default=None, description="hub: the split; train unless the recipe says otherwise")
    revision: str | None = Field(default=None, description="hub: commit or tag to pin; the newest if absent")
    data_dir: str | None = Field(default=None, description="hub: folder inside the data set")
    streaming: bool | None = Field(default=None, description="hub: read without storing; for sets larger than the disk")

    prompt: str | None = Field(
        default=None, description="template of the part a student is not taught, e.g. '{text}\\n'"
    )
    completion: str | None = Field(default=None, description="template of the part to be learned, e.g. '{code}'")
    text: str | None = Field(default=None, description="the column with the whole text, instead of the two templates")
    id: str | None = Field(default=None, description="column that names a document; its row number if absent")
    licence: str | None = Field(default=None, description="column with a document's licence(s)")
    where: Where | None = Field(
        default=None, description="rows that count, by column: [first, last] of a number, a word, or '*' for not empty"
    )
    language: str | None = Field(
        default=None, min_length=1, description="what the text is written in; a source file's suffix, else python"
    )

    glob: str | None = Field(default=None, min_length=1, description="folder: which files; **/*.py if absent")
    exclude: tuple[str, ...] = Field(
        default=(), description="folder: relative paths to leave out; * matches any characters, also slashes"
    )
    max_documents: int | None = Field(
        default=None, gt=0, description="stop after so many documents, dropped ones included; all if absent"
    )

    @field_validator("recipe")
    @classmethod
    def _known(cls, name: str | None) -> str | None:
        if name is not None and name not in RECIPES:
            raise ValueError("one of the recipes " + ", ".join(RECIPES))
        return name

    @field_validator("glob")
    @classmethod
    def _inside(cls, glob: str | None) -> str | None:
        if glob is not None and (glob.startswith("/") or ".." in PurePosixPath(glob).parts):
            raise ValueError("a pattern inside the folder, such as **/*.py")
        return glob

    @model_validator(mode="after")
    def _consistent(self) -> SourceConfig:
        self._one_source()
        return self

    def _one_source(self) -> None:
        sources = [name for name in ("recipe", "dataset", "path", "embedded") if getattr(self, name) is not None]
        if len(sources) != 1 and sources != ["recipe", "path"]:
            named = " and ".join(sources) or "none of them"
            raise ValueError(f"exactly one of recipe, dataset, path, embedded (or recipe with path), not {named}")
        self._no_idle_fields(sources)
        if self.text is not None and (self.prompt is not None or self.completion is not None):
            raise ValueError("text, or prompt and completion, not both")
        if self.prompt is not None and self.completion is None:
            raise ValueError("a completion template beside the prompt template")

    def _no_idle_fields(self, sources: list[str]) -> None:
        """A field that would do nothing is a mistake somewhere: say so."""
        idle = {"path": HUB_FIELDS, "embedded": EMBEDDED_IDLE}.get(sources[-1], FOLDER_FIELDS)
        given = [name for name in idle if name in self.model_fields_set and getattr(self, name) is not None]
        if given:
            raise ValueError(f"no field '{given[0]}' where documents come from '{sources[-1]}', which does not use it")


class WeightedSource(SourceConfig):
    """One of several sources of a corpus."""

    weight: float = Field(default=1.0, gt=0, description="its share of the documents drawn, beside the others' weights")
    name: str | None = Field(
        default=None, min_length=1, description="begins its documents' ids; recipe, data set or file name if absent"
    )


class CorpusConfig(SourceConfig):
    """The documents of one source, or of several in a mixture; then which of them are left out."""

    sources: tuple[WeightedSource, ...] | None = Field(
        default=None,
        min_length=1,
        description="several sources instead of one; drawn by weight, each read once, in order",
    )
    seed: int | None = Field(default=None, ge=0, description="sources: of the order they are drawn in; 0 if absent")
    care: CareConfig | None = Field(
        default=None, description="licences, duplicates, syntax; nothing is dropped if absent"
    )

    def _one_source(self) -> None:
        if self.sources is None:
            if self.seed is not None:
                raise ValueError("no field 'seed' without sources, which it would shuffle")
            super()._one_source()
            return
        given = self.model_fields_set - {"sources", "seed", "care", "max_documents"}
        if idle := sorted(name for name in given if getattr(self, name) is not None):
            raise ValueError(f"no field '{idle[0]}' beside sources; write it into the source it is for")
        names = Counter(source_name(source) for source in self.sources)
        doubled = next((name for name, count in names.items() if count > 1 or ":" in name), None)
        if doubled is not None:
            raise ValueError(f"sources of different names without ':' (set `name`), not '{doubled}'")

    @property
    def streamed(self) -> bool:
        """Whether it is read from the hub without being stored, by its own word or its recipe's."""
        return any(_filled(source).streaming for source in self.sources or (self,))


def source_name(source: WeightedSource) -> str:
    """What the source's documents are told apart by."""
    return source.name or corpus_name(source)


def corpus_name(config: SourceConfig) -> str:
    """What messages and documents call this corpus: recipe, data set, or the file's or folder's own name."""
    if isinstance(config, CorpusConfig) and config.sources is not None:
        return " + ".join(map(source_name, config.sources))
    if config.path is not None and config.recipe is None:
        return config.path.name
    return config.recipe or config.dataset or "embedded"


def describe_corpus(config: CorpusConfig) -> dict[str, Any]:
    """The corpus for a manifest: every field that counts with the recipe's defaults filled in; no absolute path."""
    if config.sources is None:
        return _describe(config)
    facts = config.model_dump(mode="json", exclude_none=True, exclude={"sources"})
    sources = [_describe(source) | {"name": source_name(source)} for source in config.sources]
    stated = dict.fromkeys(source["licence_name"] for source in sources if "licence_name" in source)
    named = {"licence_name": ", ".join(stated)} if stated else {}
    return facts | {"sources": sources, "seed": config.seed or 0} | named


def _describe(config: SourceConfig) -> dict[str, Any]:
    facts = _filled(config).model_dump(mode="json", exclude_none=True)
    if config.path is not None:
        facts["path"] = config.path.name
    if config.recipe is not None and RECIPES[config.recipe].licence_name:
        facts["licence_name"] = RECIPES[config.recipe].licence_name
    return facts


def _filled(config: SourceConfig) -> SourceConfig:
    return fill_in(config, RECIPES[config.recipe]) if config.recipe else config


def fill_in(config: SourceConfig, recipe: Recipe) -> SourceConfig:
    """`config` with the recipe's defaults in the fields it leaves open."""
    defaults: dict[str, Any] = {name: getattr(recipe, name) for name in ("id", "licence")}
    defaults["where"] = recipe.where or None
    if config.text is None and config.completion is None:
        defaults |= recipe.columns()
    if config.path is None:
        defaults |= {name: getattr(recipe, name) for name in ("config", "split", "data_dir", "streaming", "dataset")}
    open_fields = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    return config.model_copy(update=open_fields)
