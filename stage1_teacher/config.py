"""The config of `capture`: which teacher reads which text, and how much of its belief is kept.

Not for the meaning of a record (cache/FORMAT.md) nor for reading text (shared/corpus.py).
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cache.manifest import Selection
from shared.config import ConfigPath, ModelRef, StrictModel
from shared.corpus_config import CorpusConfig
from shared.windows import WindowConfig


class TeacherConfig(StrictModel):
    """A Hugging Face causal language model. Safetensors only; code that came with it is never run."""

    model: ModelRef = Field(description="directory (./x, ../x, /x, ~/x) or hub id")
    revision: str | None = Field(default=None, description="hub commit or tag; the newest if absent")
    dtype: Literal["bfloat16", "float32"] = Field(default="bfloat16", description="of the weights while capturing")
    device_map: str = Field(default="auto", description="accelerate's device_map: auto, cpu, cuda:0, balanced, ...")


class FidelityConfig(StrictModel):
    """How much is measured of what the record keeps; goes into the manifest."""

    positions_per_shard: int = Field(
        default=64, ge=1, le=4096, description="random positions compared with the full logits"
    )
    temperatures: tuple[float, ...] = Field(
        default=(1.0, 1.5, 2.0, 4.0), min_length=1, description="T at which they are"
    )


class ShapeConfig(StrictModel):
    """How the tail's shape is kept. More directions and a smaller step cost bytes and lower the KL error."""

    directions: int = Field(
        default=64, ge=1, le=1024, description="coordinates a position; at most the teacher's width"
    )
    step: float = Field(default=0.1, gt=0, le=1, description="nats a code (root mean square over the logits)")
    sample_windows: int = Field(default=256, ge=2, description="windows, evenly spread, that the basis is fitted on")


class CaptureConfig(StrictModel):
    """Everything `python -m stage1_teacher capture` needs."""

    cache: ConfigPath = Field(description="directory the cache is written to")
    teacher: TeacherConfig = Field(description="who teaches")
    corpus: CorpusConfig = Field(description="the text")
    windows: WindowConfig = Field(default_factory=WindowConfig, description="how documents are cut")
    selection: Selection = Field(default=Selection(k=16, top_p=0.95), description="which tokens enter the head")
    shape: ShapeConfig | None = Field(
        default=ShapeConfig(), description="the tail's shape; null keeps only its mass (soft-capped teachers need null)"
    )
    fidelity: FidelityConfig = Field(default_factory=FidelityConfig, description="the cache's own quality report")
    windows_per_shard: int = Field(
        default=512, ge=1, le=65536, description="windows a file; a crash loses at most one file"
    )
    batch_tokens: int = Field(default=4096, ge=1, description="tokens in one forward pass, padding included")
