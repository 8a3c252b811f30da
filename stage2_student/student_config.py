"""The `student` section of a config: which model is trained, what its first weights are, and another tokenizer.

Not for building it (students.py, student_families.py, warm_start.py, lora.py) nor for the rest of a run (config.py).
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from shared.config import ModelRef, StrictModel

Family = Literal["gpt2", "sinusoidal", "llama"]
PresetName = Literal["gpt2-44m", "gpt2-202m", "sinusoidal-44m", "sinusoidal-202m", "llama-44m", "llama-202m"]


class Architecture(StrictModel):
    """A model of any size; for the published sizes use `preset`."""

    family: Family = Field(
        default="gpt2",
        description="gpt2: learned positions; sinusoidal: fixed ones (XGLM's class); llama: RoPE, SwiGLU, RMSNorm and "
        "grouped queries",
    )
    layers: int = Field(description="transformer blocks", ge=1)
    width: int = Field(description="hidden size; a multiple of heads", ge=1)
    heads: int = Field(description="attention heads", ge=1)
    kv_heads: int | None = Field(
        default=None, description="llama: heads of keys and values, a divisor of heads; none: as many as heads", ge=1
    )
    feed_forward: int | None = Field(
        default=None, description="inner size of a block; none: a block as large as a GPT-2 block of this width", ge=1
    )
    positions: int = Field(default=512, description="longest window, tokens", ge=1)
    dropout: float | None = Field(
        default=None,
        description="on embeddings, attention and residuals (llama: attention alone); none: the family's own, 0.1 and "
        "for llama 0",
        ge=0,
        lt=1,
    )

    @model_validator(mode="after")
    def _whole_heads(self) -> Architecture:
        if self.width % self.heads:
            raise ValueError(f"width to be a multiple of heads ({self.width} / {self.heads} is not whole)")
        if self.kv_heads is not None and self.family != "llama":
            raise ValueError("kv_heads only beside family: llama")
        if self.kv_heads is not None and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads to be a divisor of heads ({self.heads} / {self.kv_heads} is not whole)")
        if self.family == "llama" and self.width // self.heads % 2:
            raise ValueError("an even width of each head, which RoPE turns in pairs")
        return self


class WarmStart(StrictModel):
    """First weights from a larger model: embeddings, some blocks and the final norm."""

    model_config = ConfigDict(serialize_by_alias=True)

    source: ModelRef = Field(
        alias="from", description="a causal LM with the cache's tokenizer, the teacher for one; directory or hub id"
    )
    revision: str | None = Field(default=None, description="hub commit or tag of it")
    layers: tuple[int, ...] | Literal["even"] = Field(
        description="its blocks that are kept, counted from 0, in the student's order; even: spread from first to last, "
        "as many as the architecture has"
    )

    @model_validator(mode="after")
    def _some_layers(self) -> WarmStart:
        if isinstance(self.layers, tuple) and (not self.layers or min(self.layers) < 0):
            raise ValueError("layers as numbers from 0, at least one")
        return self


class Lora(StrictModel):
    """Low-rank adapters on a pretrained student (Hu et al. 2022, arXiv 2106.09685): only they are trained."""

    rank: int = Field(description="of each adapter", ge=1)
    alpha: float = Field(description="the adapters' output is scaled by alpha / rank", gt=0)
    dropout: float = Field(default=0.0, description="on what enters an adapter", ge=0, lt=1)
    targets: tuple[str, ...] | None = Field(
        default=None, description="names of the linear layers that get one; none: all but the head", min_length=1
    )


class StudentConfig(StrictModel):
    """Exactly one of preset, architecture, pretrained; or warm_start, alone or beside one of the first two."""

    preset: PresetName | None = Field(default=None, description="a model of a published size, from scratch")
    architecture: Architecture | None = Field(default=None, description="a model of another size, from scratch")
    warm_start: WarmStart | None = Field(
        default=None,
        description="first weights from a larger model; alone: a student of its very shape with only the chosen blocks",
    )
    pretrained: ModelRef | None = Field(default=None, description="a causal LM; directory or hub id")
    revision: str | None = Field(default=None, description="hub commit or tag of `pretrained`")
    lora: Lora | None = Field(default=None, description="adapters on a pretrained student; published merged")

    @model_validator(mode="after")
    def _one_kind(self) -> StudentConfig:
        kinds = sum(kind is not None for kind in (self.preset, self.architecture, self.pretrained))
        if kinds > 1 or (kinds == 0 and self.warm_start is None):
            raise ValueError("exactly one of preset, architecture, pretrained (or warm_start alone)")
        for name in ("revision", "lora"):
            if getattr(self, name) is not None and self.pretrained is None:
                raise ValueError(f"{name} only beside pretrained")
        if self.warm_start is not None and self.pretrained is not None:
            raise ValueError("warm_start beside preset or architecture, not beside pretrained")
        if self.warm_start is not None and kinds == 0 and self.warm_start.layers == "even":
            raise ValueError("warm_start.layers as a list, or an architecture that says how many")
        return self


class OtherTokenizer(StrictModel):
    """The student's tokenizer is not the cache's. It learns from the cache's text in its own tokens, and with `kd_weight` from
    the teacher by Universal Logit Distillation wherever both tokenizers have read the same text (uld.py)."""

    tokenizer: ModelRef | None = Field(
        default=None, description="of a student from scratch; directory or hub id. A pretrained one brings its own"
    )
    revision: str | None = Field(default=None, description="hub commit or tag of it")

    @model_validator(mode="after")
    def _named(self) -> OtherTokenizer:
        if self.revision is not None and self.tokenizer is None:
            raise ValueError("revision only beside tokenizer")
        return self
