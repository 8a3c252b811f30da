"""The config of `generate`: which prompts, who answers them, how answers are drawn, what a paid endpoint costs.

Not for reading prompts (stage1_teacher/prompt_sets.py) nor for choosing among answers (stage1_teacher/select_config.py).
"""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from shared.config import ConfigPath, StrictModel
from shared.corpus_config import CorpusConfig
from shared.tasks import HUB_SETS, HubName
from stage1_teacher.config import TeacherConfig

CodeTask = Literal["explain", "document", "write_tests", "refactor"]
Style = Literal["completion", "chat"]

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


class TaskPrompts(StrictModel):
    """Programming tasks with tests: MBPP's, HumanEval's, or one's own in either format."""

    path: ConfigPath | None = Field(default=None, description="a .jsonl, .jsonl.gz or .parquet file of tasks")
    hub: HubName | None = Field(default=None, description="a data set of the hub: " + ", ".join(HUB_SETS))
    revision: str | None = Field(default=None, description="hub: commit or tag to pin; the newest if absent")
    split: Literal["prompt", "test", "validation", "train"] | None = Field(
        default=None, description="of MBPP's published splits; train is the one that no evaluation uses; all if absent"
    )
    licence: str | None = Field(default=None, description="of the tasks, for every row of the corpus")
    count: int | None = Field(default=None, gt=0, description="the first so many; all if absent")

    @model_validator(mode="after")
    def _one_source(self) -> TaskPrompts:
        if (self.path is None) == (self.hub is None):
            raise ValueError("exactly one of path and hub")
        if self.revision is not None and self.hub is None:
            raise ValueError("no revision beside a path")
        return self


class CodePrompts(StrictModel):
    """Real code as seeds: the teacher explains, documents, tests or rewrites each document of a corpus."""

    corpus: CorpusConfig = Field(description="Python source, one document a seed")
    tasks: tuple[CodeTask, ...] = Field(
        default=("explain", "document", "write_tests", "refactor"),
        min_length=1,
        description="what is asked about each seed",
    )
    most_chars: int = Field(default=4000, ge=1, description="letters of a seed; longer ones are left out and counted")


class FilePrompts(StrictModel):
    """Prompts of a JSONL file; `id` and `licence` are taken where a row has them."""

    path: ConfigPath = Field(description="a .jsonl, .jsonl.gz or .parquet file")
    count: int | None = Field(default=None, gt=0, description="the first so many; all if absent")


class PromptSets(StrictModel):
    """Which prompts; every set that is named is used."""

    mbpp: TaskPrompts | None = Field(default=None, description="tasks with tests")
    code: CodePrompts | None = Field(default=None, description="real code as seeds")
    instructions: FilePrompts | None = Field(
        default=None,
        description="rows with `instruction` and perhaps `input`, answered as reasoning, code, explanation, tests",
    )
    plain: FilePrompts | None = Field(default=None, description="rows with `prompt`, shown to the teacher as they are")

    @model_validator(mode="after")
    def _some(self) -> PromptSets:
        if not any((self.mbpp, self.code, self.instructions, self.plain)):
            raise ValueError("at least one of mbpp, code, instructions, plain")
        return self


class Prices(StrictModel):
    """US dollars for a million tokens."""

    input: float = Field(ge=0, description="of prompts")
    output: float = Field(ge=0, description="of answers")


class EndpointConfig(StrictModel):
    """A server that speaks OpenAI's protocol: a provider's, or one's own vLLM, llama.cpp, TGI, Ollama, ..."""

    url: str = Field(description="up to the version, e.g. https://host/v1; /completions or /chat/completions is added")
    model: str = Field(min_length=1, description="the model's name there")
    key_env: str | None = Field(
        default=None, description="NAME of the environment variable that holds the API key; the key itself never here"
    )
    usd_per_million: Prices | None = Field(default=None, description="prices; none where the endpoint is one's own")
    requests_per_minute: float | None = Field(default=None, gt=0, description="at most; no limit if absent")
    concurrency: int = Field(default=8, ge=1, le=256, description="requests under way at once")
    timeout_s: float = Field(default=120, gt=0, description="seconds for one answer, the last byte included")
    retries: int = Field(default=5, ge=0, le=20, description="further tries of one answer, each after a longer wait")
    send_seed: bool = Field(default=True, description="send `seed`; false for servers that refuse the field")
    length_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        default="max_tokens", description="how the server calls max_new_tokens"
    )

    @model_validator(mode="after")
    def _no_secret(self) -> EndpointConfig:
        """Checked on the whole section, whose values no error repeats: what stands here by mistake is often the key."""
        if self.key_env is not None and not _VARIABLE.fullmatch(self.key_env):
            raise ValueError("key_env: the NAME of an environment variable in capitals, such as OPENAI_API_KEY")
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url: http:// or https:// and a host")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("url: no user, password or query; the key comes from the variable named by key_env")
        return self


class GenerateConfig(StrictModel):
    """Everything `python -m stage1_teacher generate` needs."""

    out: ConfigPath = Field(description="folder for answers.jsonl, prompts.jsonl and generate.json")
    prompts: PromptSets = Field(description="what is asked")
    teacher: TeacherConfig | None = Field(default=None, description="a model that runs here")
    endpoint: EndpointConfig | None = Field(default=None, description="or one that runs elsewhere")
    style: Style = Field(
        default="completion", description="completion: a base model goes on with the text; chat: an instructed one"
    )
    samples: int = Field(default=4, ge=1, le=1000, description="answers a prompt; may be raised later")
    temperature: float = Field(default=0.8, ge=0, le=10, description="0: always the likeliest token")
    top_p: float = Field(default=0.95, gt=0, le=1, description="nucleus: the fewest tokens with this probability")
    max_new_tokens: int = Field(default=512, ge=1, description="tokens of an answer, at most")
    seed: int = Field(default=0, ge=0, description="each sample draws from (seed, prompt, index) alone")
    batch_size: int = Field(default=16, ge=1, description="teacher: sequences at once; halved where memory runs out")
    checkpoint_every: int = Field(
        default=20, ge=1, description="answers between two syncs with the disk: what a power cut can cost, a kill none"
    )

    @model_validator(mode="after")
    def _one_teacher(self) -> GenerateConfig:
        if (self.teacher is None) == (self.endpoint is None):
            raise ValueError("exactly one of teacher and endpoint")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("samples: 1 where temperature is 0, since all would be the same")
        return self

    @property
    def name(self) -> str:
        """What messages and provenance call the teacher."""
        assert self.endpoint is not None or self.teacher is not None, "validated"
        return self.endpoint.model if self.endpoint is not None else self.teacher.model  # type: ignore[union-attr]
