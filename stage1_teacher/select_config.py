"""The config of `select`: which answers, what is dropped, how many of a prompt are kept.

Not for the order among answers (stage1_teacher/ranking.py), which is fixed.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from shared.config import ConfigPath, StrictModel

REFUSALS = (
    "i'm sorry",
    "i am sorry",
    "i apologize",
    "i apologise",
    "i can't help",
    "i can't assist",
    "i cannot help",
    "i cannot assist",
    "i cannot fulfil",
    "i can't provide",
    "i cannot provide",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "as an ai",
    "as a language model",
    "as a large language model",
)
"""What an answer without code that is no answer begins with; case and the kind of apostrophe do not matter."""


class JudgeConfig(StrictModel):
    """How the judge, a command of the eval package, is called."""

    jobs: int | None = Field(default=None, ge=1, description="programs at once; one a core if absent")
    sandbox: Literal["auto", "bwrap"] = Field(default="auto", description="bwrap where Landlock is missing")
    allow_weak_sandbox: bool = Field(default=False, description="judge where the machine cannot isolate programs")


class SelectConfig(StrictModel):
    """Everything `python -m stage1_teacher select` needs."""

    answers: ConfigPath = Field(description="the folder that `generate` wrote")
    out: ConfigPath = Field(description="the corpus to write, NAME.jsonl; its provenance and summary stand beside it")
    keep: int = Field(default=1, ge=1, description="answers of a prompt, at most")
    shortest: int = Field(default=10, ge=1, description="letters of an answer; shorter ones are dropped")
    near: float = Field(
        default=0.85,
        gt=0,
        le=1,
        description="share of common word quadruples from which two answers to a prompt are the same",
    )
    refusals: tuple[str, ...] = Field(default=REFUSALS, description="how refusals begin")
    judge: JudgeConfig = Field(default_factory=JudgeConfig, description="of prompts that have tests")

    @field_validator("out")
    @classmethod
    def _jsonl(cls, out: ConfigPath) -> ConfigPath:
        if out.suffix != ".jsonl":
            raise ValueError("a name that ends in .jsonl")
        return out
