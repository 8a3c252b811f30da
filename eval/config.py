"""The config of `python -m eval`: which models, on which tasks, generated, judged and timed how.

NOT for reading tasks (shared/tasks.py) or for what a prompt preset does (eval/prompts.py).
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from cache.tail import BETA_RANGE
from eval.protocols import hold_to_protocol
from shared.config import ConfigPath, ModelRef, StrictModel
from shared.corpus_config import CorpusConfig

TaskName = Literal["humaneval", "humaneval+", "mbpp", "mbpp-sanitized", "mbpp+", "embedded"]
PresetName = Literal[
    "humaneval-stripped", "mbpp-docstring", "mbpp-3-shot", "deepseek-humaneval", "evalplus-humaneval", "evalplus-mbpp",
    "evalplus-humaneval-newline", "evalplus-mbpp-newline", "as-is",
]  # fmt: skip

_HUMANEVAL: tuple[PresetName, ...] = (
    "humaneval-stripped", "deepseek-humaneval", "evalplus-humaneval", "evalplus-humaneval-newline", "as-is",
)  # fmt: skip
_MBPP: tuple[PresetName, ...] = ("mbpp-docstring", "mbpp-3-shot", "evalplus-mbpp", "evalplus-mbpp-newline")
PRESETS_OF: dict[TaskName, tuple[PresetName, ...]] = {  # the usual one first
    "humaneval": _HUMANEVAL,
    "humaneval+": _HUMANEVAL,
    "mbpp": _MBPP,
    "mbpp-sanitized": _MBPP,
    "mbpp+": ("evalplus-mbpp", "evalplus-mbpp-newline", "mbpp-docstring", "mbpp-3-shot"),
    "embedded": ("humaneval-stripped", "as-is"),
}


class ModelSpec(StrictModel):
    """One model to score."""

    name: str = Field(min_length=1, description="name in tables and files")
    path: ModelRef = Field(description="checkpoint directory (./x) or hub id, safetensors weights")
    revision: str | None = Field(default=None, description="hub commit, tag or branch; none: the default branch")
    kind: Literal["teacher", "student", "baseline"] = Field(default="student", description="role in the report")


class TaskSpec(StrictModel):
    """One set of programming tasks."""

    name: TaskName = Field(description="format and, without a path, the hub data set")
    label: str | None = Field(default=None, description="name in tables and files; none: `name`")
    path: ConfigPath | None = Field(default=None, description="local JSONL in that format; none: from the hub")
    revision: str | None = Field(default=None, description="hub commit of the data set; none: the default branch")
    split: str | None = Field(default=None, description="published split; none: test (hub) or all rows (path)")
    count: int | None = Field(default=None, ge=1, description="first tasks only; none: all (embedded: 40)")
    seed: int = Field(default=0, ge=0, description="embedded tasks only: which held-out tasks are drawn")
    tests: Literal["all", "base"] = Field(default="all", description="humaneval+ and mbpp+: base is the original tests")
    preset: PresetName | None = Field(default=None, description="prompt preset; none: the published one of `name`")

    @property
    def title(self) -> str:
        """The name this set has in files and tables."""
        return self.label or self.name

    @property
    def prompt_preset(self) -> PresetName:
        """The preset in force."""
        return self.preset or PRESETS_OF[self.name][0]

    @model_validator(mode="after")
    def _fits_the_name(self) -> Self:
        if self.prompt_preset not in PRESETS_OF[self.name]:
            raise ValueError(f"a preset for {self.name} tasks ({' or '.join(PRESETS_OF[self.name])})")
        if self.name == "embedded" and (self.path or self.split or self.revision):
            raise ValueError("no path, split or revision for the embedded tasks, which are generated")
        if self.path and self.revision:
            raise ValueError("either a path or a revision of the hub's data set, not both")
        if self.tests == "base" and self.name not in ("humaneval+", "mbpp+"):
            raise ValueError("tests: base for humaneval+ or mbpp+ alone; the others have no more than base tests")
        return self


class JudgeSettings(StrictModel):
    """Limits of one program."""

    jobs: int | None = Field(default=None, ge=1, description="programs judged at once; none: CPU cores + 2")
    cpu_seconds: int = Field(default=5, ge=1, description="CPU time of one program, seconds; decides a timeout")
    memory_mb: int = Field(default=1024, ge=64, description="address space of one program, MB (10^6 bytes)")
    allow_weak_sandbox: bool = Field(default=False, description="go on where this machine cannot isolate programs well")
    sandbox: Literal["auto", "bwrap"] = Field(default="auto", description="auto: the best wall here; bwrap: bubblewrap")


class LatencySettings(StrictModel):
    """Timing of generations, greedy, a fixed number of new tokens."""

    runs: int = Field(default=20, ge=1, description="timed generations")
    warmup: int = Field(default=3, ge=0, description="generations before timing starts")
    new_tokens: int = Field(default=64, ge=1, description="tokens generated in each run")
    batches: list[int] = Field(default=[1, 8], min_length=1, description="sequences generated at once; the first leads")
    devices: list[str] = Field(default=[], description="cpu, cuda, cuda:1; none: the device of the evaluation")

    @model_validator(mode="after")
    def _different_batches(self) -> Self:
        if min(self.batches) < 1 or len(set(self.batches)) < len(self.batches):
            raise ValueError("different batch sizes of at least 1")
        return self


class AgreementSettings(StrictModel):
    """Student against teacher on the held-out cache, and what the student would be worth as a speculative draft."""

    temperatures: list[float] = Field(
        default=[0.7, 1.0, 1.5, 2.0], min_length=1, description="T of KL, acceptance and calibration; 0.69 and up"
    )
    draft_lengths: list[int] = Field(
        default=[1, 2, 3, 4, 5, 6, 8, 10], min_length=1, description="tokens drafted before the teacher checks them"
    )
    cost_ratio: float | None = Field(
        default=None, gt=0, description="a student's token in teacher calls; none: the ratio of their parameters"
    )

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        if min(self.temperatures) < 1 / BETA_RANGE[1] or len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"different temperatures of at least {1 / BETA_RANGE[1]:.2f}, the coldest a cache holds")
        if min(self.draft_lengths) < 1 or len(set(self.draft_lengths)) < len(self.draft_lengths):
            raise ValueError("different draft lengths of at least 1")
        return self


class SpeculateSettings(StrictModel):
    """Real speculative decoding with the teacher, greedy and sampled, over prompts of the first task set."""

    prompts: int = Field(default=20, ge=1, description="first tasks of the set that are decoded")
    new_tokens: int = Field(default=64, ge=1, description="most tokens a prompt gets")
    draft_length: int = Field(default=4, ge=1, description="tokens the student drafts before the teacher checks them")
    temperature: float = Field(default=1.0, gt=0, description="T of the sampled half; no top-k, no top-p")


class WandbSettings(StrictModel):
    """Weights & Biases: scores and the report as a run."""

    project: str = Field(min_length=1, description="name of the project")
    entity: str | None = Field(default=None, description="user or team; none: the one logged in")
    mode: Literal["offline", "online"] = Field(
        default="offline", description="offline: files for `wandb sync`, no upload"
    )


class EvalConfig(StrictModel):
    """Everything `python -m eval run` needs."""

    out: ConfigPath = Field(description="result directory; run again on it to go on")
    models: list[ModelSpec] = Field(default=[], description="models to score; ratios are to the teacher")
    sweeps: tuple[ConfigPath, ...] = Field(
        default=(), description="folders of stage 2's sweeps: each finished run is one more student"
    )
    tasks: list[TaskSpec] = Field(min_length=1, description="task sets; one table each")
    protocol: str | None = Field(
        default=None, description="published protocol that fixes prompt, decoding and samples (docs/protocols.md)"
    )
    samples: int = Field(default=10, ge=1, description="completions a task; greedy makes one")
    temperature: float = Field(default=0.8, ge=0, description="sampling temperature; 0: greedy, one sample")
    top_p: float = Field(default=0.95, gt=0, le=1, description="nucleus sampling: smallest set with this mass")
    max_new_tokens: int = Field(default=512, ge=1, description="tokens a completion may have")
    batch_size: int = Field(default=32, ge=1, description="sequences generated at once; halves when memory runs out")
    seed: int = Field(default=0, ge=0, description="every sample's randomness: (seed, task set, task, index)")
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="weights and arithmetic of the models"
    )
    device: str = Field(default="auto", description="auto, cpu, cuda or cuda:1; auto: CUDA where there is one")
    k: list[int] = Field(default=[1, 10], min_length=1, description="pass@k to report; k > samples shows a dash")
    held_out: ConfigPath | None = Field(default=None, description="cache directory whose windows measure the loss")
    held_out_text: CorpusConfig | None = Field(
        default=None, description="text that measures the loss in bits a byte, whatever a model's tokenizer"
    )
    mask_prompt: bool = Field(default=True, description="leave prompt tokens out of the held-out loss")
    judge: JudgeSettings = Field(default=JudgeSettings(), description="limits of model-written programs")
    latency: LatencySettings = Field(default=LatencySettings(), description="timing of generations")
    agreement: AgreementSettings = Field(
        default=AgreementSettings(), description="students against the teacher's cache in held_out"
    )
    speculate: SpeculateSettings = Field(default=SpeculateSettings(), description="decoding with a student as draft")
    wandb: WandbSettings | None = Field(default=None, description="log the report to Weights & Biases; none: nowhere")

    @model_validator(mode="before")
    @classmethod
    def _held_to_protocol(cls, data: Any) -> Any:
        return hold_to_protocol(data) if isinstance(data, dict) else data

    @property
    def samples_per_task(self) -> int:
        """Completions per task: greedy decoding has only one."""
        return self.samples if self.temperature > 0 else 1

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        if not self.models and not self.sweeps:
            raise ValueError("at least one model, or a sweep")
        for key, names in (
            ("models", [model.name for model in self.models]),
            ("tasks", [task.title for task in self.tasks]),
        ):
            doubled = next((name for name in names if names.count(name) > 1), None)
            if doubled is not None:
                raise ValueError(f"a different name for each of {key} ('{doubled}' stands twice; tasks take a label)")
        if sum(model.kind == "teacher" for model in self.models) > 1:
            raise ValueError("at most one model of kind teacher, since ratios are to the teacher")
        if min(self.k) < 1:
            raise ValueError("k of at least 1")
        return self
