"""The config of `train`: one flat file, every field with its unit.

Not for defaults of a model family beyond the presets (students.py) and not for sweeps. What the cache's manifest knows
(teacher, tokenizer, vocabulary) is never repeated here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationInfo, model_validator

from cache.subset import shard_numbers
from cache.tail import node_weights
from shared.config import ConfigPath, StrictModel
from stage2_student.options import EarlyStopping, Samples
from stage2_student.ramp import TemperatureRamp, WeightRamp, constant
from stage2_student.student_config import OtherTokenizer, StudentConfig

Fraction = Annotated[float, Field(gt=0, lt=1)]


def _path_or_url(value: Any, info: ValidationInfo) -> Any:
    """A URL as text; anything else that is text as a path."""
    if not isinstance(value, (str, Path)):
        raise ValueError("a directory or a URL")
    if isinstance(value, str) and "://" in value:
        return str(value)
    return TypeAdapter(ConfigPath).validate_python(value, context=info.context)


CacheRef = Annotated[Path | str, BeforeValidator(_path_or_url, json_schema_input_type=str)]
"""A cache: a URL (str), or a local path (Path, absolute once loaded)."""

ShardNumbers = Annotated[tuple[int, ...], BeforeValidator(shard_numbers, json_schema_input_type=str | tuple[int, ...])]
"""Some of a cache's shards: [0, 3] or "0-9,12"."""

# Fields that may differ between the two halves of a resumed run: where it runs and what it reports, not what is learnt.
FREE_FIELDS = frozenset({"out", "cache", "streaming", "validation", "workers", "device", "report_to", "samples"})


class Validation(StrictModel):
    """Windows the student never trains on: another cache of the same teacher, or a share of this one."""

    cache: CacheRef | None = Field(default=None, description="another cache: directory or URL")
    fraction: Fraction | None = Field(default=None, description="share of windows, chosen by the hash in their ids")

    @model_validator(mode="after")
    def _one_source(self) -> Validation:
        if (self.cache is None) == (self.fraction is None):
            raise ValueError("exactly one of cache, fraction")
        return self


class Streaming(StrictModel):
    """How a cache that lies elsewhere is read: shards come when they are needed and leave when the folder is full."""

    folder: ConfigPath = Field(description="for the shards in use, on a local disk; several runs may share it")
    most_gb: float = Field(description="of all shards in the folder, 10^9 bytes", gt=0)


class DivergenceConfig(StrictModel):
    """How far the student is from the teacher; formulas and sources in measures.py."""

    name: Literal["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "total_variation"] = Field(
        default="forward_kl", description="the measure; forward_kl is KL(teacher || student)"
    )
    beta: Fraction | None = Field(default=None, description="jsd's: the teacher's share of the mixture")
    alpha: Fraction | None = Field(default=None, description="of skew_kl and skew_reverse_kl: the first one's share")

    @model_validator(mode="after")
    def _own_parameter(self) -> DivergenceConfig:
        needed = {"jsd": {"beta"}, "skew_kl": {"alpha"}, "skew_reverse_kl": {"alpha"}}.get(self.name, set())
        if set(self.parameters) != needed:
            one = f"{' and '.join(needed)}, between 0 and 1," if needed else "neither beta nor alpha"
            raise ValueError(f"{one} beside name: {self.name}")
        return self

    @property
    def parameters(self) -> dict[str, float]:
        """beta or alpha, where the measure has one."""
        return {key: value for key, value in (("beta", self.beta), ("alpha", self.alpha)) if value is not None}


class TrainConfig(StrictModel):
    """`python -m stage2_student train CONFIG`."""

    out: ConfigPath = Field(description="run directory: checkpoints, metrics, and the finished student")
    cache: CacheRef = Field(description="cache to learn from: a directory, or with `streaming` any URL that pull takes")
    streaming: Streaming | None = Field(default=None, description="needed where a cache is a URL")
    shards: ShardNumbers | None = Field(
        default=None, description='shards of `cache` to learn from, [0, 3] or "0-9,12"; none: all'
    )
    validation: Validation = Field(description="what the student is scored on")
    student: StudentConfig = Field(description="what is trained")
    other_tokenizer: OtherTokenizer | None = Field(
        default=None, description="needed where the student's tokenizer is not the cache's: {} for a pretrained student"
    )

    form: Literal["full", "bucket", "renormalised"] = Field(
        default="full",
        description="full: over the whole vocabulary, the tail rebuilt from its stored shape; bucket: over head + one "
        "cell for the rest, for caches without a shape; renormalised: plain top-k, for comparison",
    )
    divergence: DivergenceConfig = Field(default=DivergenceConfig(), description="what teacher and student differ by")
    temperature: TemperatureRamp = Field(
        default=constant(1.0), description="T of teacher and student in the distillation term: a number or a ramp"
    )
    kd_weight: WeightRamp = Field(
        description="weight of T^2 * divergence, or of ULD beside other_tokenizer: a number or a ramp"
    )
    ce_weight: WeightRamp = Field(description="weight of cross-entropy on the corpus's own tokens: a number or a ramp")
    t_squared: bool = Field(
        default=True, description="multiply the divergence by T^2, which keeps KL's gradient independent of T"
    )
    mask_prompt: bool = Field(default=False, description="leave prompt tokens out of the loss as targets")
    shuffle_shards: int = Field(
        default=64,
        description="shards whose windows are mixed at any moment, and the most that are read from at once; a cache of "
        "no more shards is shuffled uniformly",
        ge=1,
    )

    epochs: int | None = Field(default=None, description="passes over the training windows; this or max_steps", ge=1)
    max_steps: int | None = Field(default=None, description="optimizer steps; this or epochs", ge=1)
    batch_size: int = Field(default=8, description="windows held at once", ge=1)
    gradient_accumulation: int = Field(default=1, description="batches per optimizer step and process", ge=1)
    learning_rate: float = Field(default=5e-5, description="AdamW's highest", gt=0)
    weight_decay: float = Field(default=0.0, description="AdamW's, not on biases and norms", ge=0)
    warmup: int = Field(default=0, description="optimizer steps from 0 to learning_rate", ge=0)
    scheduler: Literal["constant", "linear", "cosine", "wsd"] = Field(
        default="linear", description="after the warm-up; wsd: constant, then a fall to 0 over the last `decay` steps"
    )
    decay: int | None = Field(default=None, description="wsd's fall, optimizer steps", ge=1)
    clip: float = Field(default=1.0, description="largest gradient norm; 0 for none", ge=0)
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32",
        description="of the matrix products; weights stay float32. float16 scales the loss, and leaves the head's products "
        "in float32: its gradients are too small for float16",
    )
    gradient_checkpointing: bool = Field(
        default=False, description="compute each block's activations again on the way back: less memory, more time"
    )
    compile: bool = Field(default=False, description="torch.compile the student's body; needs a C++ compiler")
    ema: Fraction | None = Field(
        default=None,
        description="decay of a moving average of the weights, which is then what is validated and published",
    )
    keep_best: bool = Field(default=False, description="publish the student of the lowest validation kd, not the last")
    early_stopping: EarlyStopping | None = Field(default=None, description="end when the validation kd stops falling")
    seed: int = Field(default=0, description="of weights, order and dropout", ge=0)

    log_every: int = Field(default=10, description="optimizer steps between training rows in metrics.jsonl", ge=1)
    eval_every: int | None = Field(
        default=None, description="optimizer steps between validations; none: once an epoch", ge=1
    )
    save_every: int | None = Field(
        default=None, description="optimizer steps between checkpoints; none: once an epoch", ge=1
    )
    samples: Samples | None = Field(default=None, description="completions to look at while it learns")
    workers: int = Field(default=0, description="processes that read the cache; 0 reads in the training process", ge=0)
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto takes a GPU where there is one")
    report_to: tuple[Literal["tensorboard", "wandb"], ...] = Field(default=(), description="besides metrics.jsonl")

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if (self.epochs is None) == (self.max_steps is None):
            raise ValueError("exactly one of epochs, max_steps")
        if self.kd_weight.ends[1] == 0 and self.ce_weight.ends[1] == 0:
            raise ValueError("kd_weight or ce_weight above 0")
        if (self.scheduler == "wsd") != (self.decay is not None):
            raise ValueError("decay beside scheduler: wsd, and only there")
        if self.other_tokenizer is not None:
            self._speaks_otherwise(self.other_tokenizer)
        if self.streaming is None and "://" in f"{self.cache} {self.validation.cache}":
            raise ValueError("streaming beside a cache that is a URL (or pull it first and give the directory)")
        node_weights(1 / self.temperature.ends[0])  # ValueError names the coldest temperature that a cache holds
        return self

    def _speaks_otherwise(self, other: OtherTokenizer) -> None:
        """What a student with another tokenizer can and cannot be told."""
        if (self.student.pretrained is None) != (other.tokenizer is not None):
            raise ValueError("other_tokenizer.tokenizer for a student from scratch, none beside pretrained")
        if self.form == "renormalised":
            raise ValueError("form full or bucket beside other_tokenizer")
        idle = [name for name in ("divergence", "t_squared") if name in self.model_fields_set]
        if idle:
            raise ValueError(f"no field '{idle[0]}' beside other_tokenizer, whose measure is ULD without T^2")

    def settings(self) -> dict[str, object]:
        """What a resumed run must share with the run it continues."""
        return self.model_dump(mode="json", exclude=set(FREE_FIELDS))
