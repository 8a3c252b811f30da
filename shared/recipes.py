"""Data sets known by name: where they live, which columns hold the text, which rows count, under which licence.

A recipe is nothing but defaults for the fields of CorpusConfig (shared/corpus.py), so a config can replace any of them.
Not for reading: shared/corpus.py and shared/rows.py do that.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Where = dict[str, tuple[int, int] | str]
"""Which rows count, by column: [first, last] inclusive of a number, a word (in any case), or "*" (not empty)."""

MBPP_PROMPT = '"""\n{text}\n{test_list[0]}\n"""\n'  # BigCode's MBPP prompt: description and first assert as a docstring


@dataclass(frozen=True)
class Recipe:
    """Defaults by the names of CorpusConfig's fields; `licence_name` where one licence covers every row."""

    dataset: str
    split: str = "train"
    config: str | None = None
    data_dir: str | None = None
    streaming: bool = False
    prompt: str | None = None
    completion: str | None = None
    text: str | None = None
    id: str | None = None
    licence: str | None = None
    licence_name: str | None = None
    where: Where = field(default_factory=dict)
    lf_newlines: bool = False  # CRLF becomes LF: 972 of MBPP's 974 solutions have CRLF, which no student should learn

    def columns(self) -> dict[str, str | None]:
        """The defaults that choose text; a config that chooses its own replaces all three."""
        return {"prompt": self.prompt, "completion": self.completion, "text": self.text}


RECIPES: dict[str, Recipe] = {
    # The published split: task_id 1-10 prompts, 11-510 test, 511-600 validation, 601-974 train (374 rows). The range
    # makes the original 974-row file serve as well as the hub's split.
    "mbpp": Recipe(
        dataset="google-research-datasets/mbpp",
        config="full",
        prompt=MBPP_PROMPT,
        completion="{code}",
        id="task_id",
        licence_name="CC-BY-4.0",
        where={"task_id": (601, 974)},
        lf_newlines=True,
    ),
    "humaneval": Recipe(
        dataset="openai/openai_humaneval",
        split="test",
        prompt="{prompt}",
        completion="{canonical_solution}",
        id="task_id",
        licence_name="MIT",
    ),
    # Columns as public users of the set read them (code, original_docstring, cleaned_generated_code, language); the
    # card itself could not be read when this was written. Rows of other languages and rows without code are left out.
    "humanized-code": Recipe(
        dataset="DaniilOr/humanized_cleaned_code",
        text="cleaned_generated_code",
        where={"language": "python", "cleaned_generated_code": "*"},
        streaming=True,
    ),
    # Gated: its terms must be accepted on the hub, then `hf auth login`. 3 TB in all, so it is streamed.
    "the-stack-dedup": Recipe(
        dataset="bigcode/the-stack-dedup",
        data_dir="data/python",
        text="content",
        id="hexsha",
        licence="max_stars_repo_licenses",
        streaming=True,
    ),
}

# The same sets seen as evaluation tasks: description and solution apart, and only the rows that are scored.
EVALUATION_RECIPES: dict[str, Recipe] = {
    "humaneval": RECIPES["humaneval"],
    "mbpp": Recipe(
        dataset="google-research-datasets/mbpp",
        config="full",
        split="test",
        prompt="{text}",
        completion="{code}",
        id="task_id",
        where={"task_id": (11, 510)},
    ),
}
