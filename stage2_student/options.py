"""Optional parts of a training run's config: when it stops early, and what it is seen to write.

Not for the rest of the config (config.py) and not for what the parts do (scores.py, samples.py).
"""

from __future__ import annotations

from pydantic import Field, model_validator

from shared.config import StrictModel


class EarlyStopping(StrictModel):
    """Stop when the validation divergence `kd` has stopped falling."""

    patience: int = Field(description="validations without a new lowest kd before the run ends", ge=1)
    min_delta: float = Field(default=0.0, description="nats below the lowest kd that count as lower", ge=0)


class Samples(StrictModel):
    """What the student writes, greedily, while it learns: samples.jsonl, and in TensorBoard and W&B as text."""

    every: int = Field(description="optimizer steps between samples", ge=1)
    prompts: tuple[str, ...] = Field(default=(), description="texts to continue; these or count")
    count: int = Field(default=0, description="prompts of the validation windows to continue instead", ge=0)
    max_new_tokens: int = Field(default=64, description="longest completion, tokens", ge=1)

    @model_validator(mode="after")
    def _one_source(self) -> Samples:
        if bool(self.prompts) == bool(self.count) or not all(self.prompts):
            raise ValueError("exactly one of prompts (none of them empty), count")
        return self
