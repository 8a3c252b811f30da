"""The config of `capture`: which teacher reads which text, and how much of its belief is kept.

Not for the meaning of a record (cache/FORMAT.md) nor for reading text (shared/corpus.py).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from cache.manifest import Selection
from shared.config import ConfigPath, ModelRef, StrictModel
from shared.corpus_config import CorpusConfig
from shared.windows import WindowConfig


class QuantisationConfig(StrictModel):
    """Fewer bits for the teacher's body (bitsandbytes, extra `quant`); its head stays as it is."""

    bits: Literal[4, 8] = Field(
        description="of a weight: 4 is NF4, quantised twice, computed in teacher.dtype; 8 is LLM.int8"
    )


class TeacherConfig(StrictModel):
    """A Hugging Face causal language model. Safetensors only; code that came with it is never run."""

    model: ModelRef = Field(description="directory (./x, ../x, /x, ~/x) or hub id")
    revision: str | None = Field(
        default=None, description="hub commit or tag; the newest if absent. The manifest names the commit that was read"
    )
    dtype: Literal["bfloat16", "float32"] = Field(default="bfloat16", description="of the weights while capturing")
    device_map: str = Field(default="auto", description="accelerate's device_map: auto, cpu, cuda:0, balanced, ...")
    quantisation: QuantisationConfig | None = Field(default=None, description="fewer bits for a card that is too small")
    attention: Literal["sdpa", "flash_attention_2", "eager"] = Field(
        default="sdpa", description="transformers' attn_implementation; flash_attention_2 needs the package flash-attn"
    )


class FidelityConfig(StrictModel):
    """How much is measured of what the record keeps; goes into the manifest."""

    positions_per_shard: int = Field(
        default=64, ge=1, le=4096, description="random positions compared with the full logits"
    )
    temperatures: tuple[float, ...] = Field(
        default=(1.0, 1.5, 2.0, 4.0), min_length=1, description="T at which they are"
    )


class ShapeConfig(StrictModel):
    """How the tail's shape is kept: for a wanted error, for a wanted size, or with numbers given. One of the three."""

    kl: float | None = Field(
        default=None, gt=0, description="wanted KL(teacher || rebuilt), nats, mean at the worst of T = 1, 1.5, 2"
    )
    bytes: float | None = Field(default=None, gt=0, description="wanted bytes a position, basis included")
    directions: int | None = Field(
        default=None, ge=1, le=1024, description="coordinates a position, at most the teacher's width; needs step"
    )
    step: float | None = Field(
        default=None, gt=0, le=1, description="a code of a coordinate (an error of 1 is half a nat); needs directions"
    )
    sample_windows: int = Field(default=256, ge=2, description="windows, evenly spread, that the basis is fitted on")

    @model_validator(mode="after")
    def _one_of_three(self) -> ShapeConfig:
        if [self.kl is not None, self.bytes is not None, self.directions is not None, self.step is not None] not in (
            [True, False, False, False],
            [False, True, False, False],
            [False, False, True, True],
        ):
            raise ValueError("either kl, or bytes, or directions and step")
        return self


class CaptureConfig(StrictModel):
    """Everything `python -m stage1_teacher capture` needs."""

    cache: ConfigPath = Field(description="directory the cache is written to")
    teacher: TeacherConfig = Field(description="who teaches")
    corpus: CorpusConfig = Field(description="the text")
    windows: WindowConfig = Field(default_factory=WindowConfig, description="how documents are cut")
    selection: Selection = Field(default=Selection(k=4, top_p=0.9), description="which tokens enter the head")
    shape: ShapeConfig | None = Field(
        default=ShapeConfig(kl=0.03), description="the tail's shape; null keeps only its mass"
    )
    fidelity: FidelityConfig = Field(default_factory=FidelityConfig, description="the cache's own quality report")
    windows_per_shard: int = Field(
        default=512, ge=1, le=65536, description="windows a file; a crash loses at most one file"
    )
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        description="tokens in one forward pass, padding included; auto is what the GPU's memory holds, 4096 on a CPU. It "
        "decides the last digits of bfloat16: give a number where machines of different memory must write the same bytes",
    )
