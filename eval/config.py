"""The config of `python -m eval`: which models, on which tasks, generated, judged and timed how.

NOT for reading tasks (shared/tasks.py) or for what a prompt preset does (eval/prompts.py).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from shared.config import ConfigPath, ModelRef, StrictModel

TaskName = Literal["humaneval", "mbpp", "embedded"]
PresetName = Literal["humaneval-stripped", "mbpp-docstring", "as-is"]

PRESETS_OF: dict[TaskName, tuple[PresetName, ...]] = {  # the usual one first
    "humaneval": ("humaneval-stripped", "as-is"),
    "mbpp": ("mbpp-docstring",),
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
        return self


class JudgeSettings(StrictModel):
    """Limits of one program."""

    jobs: int | None = Field(default=None, ge=1, description="programs judged at once; none: one per CPU core")
    cpu_seconds: int = Field(default=5, ge=1, description="CPU time of one program, seconds; decides a timeout")
    memory_mb: int = Field(default=1024, ge=64, description="address space of one program, MB (10^6 bytes)")
    allow_weak_sandbox: bool = Field(default=False, description="go on where this machine cannot isolate programs well")


class LatencySettings(StrictModel):
    """Timing of single generations, batch 1, greedy, a fixed number of new tokens."""

    runs: int = Field(default=20, ge=1, description="timed generations")
    warmup: int = Field(default=3, ge=0, description="generations before timing starts")
    new_tokens: int = Field(default=64, ge=1, description="tokens generated in each run")


class EvalConfig(StrictModel):
    """Everything `python -m eval run` needs."""

    out: ConfigPath = Field(description="result directory; run again on it to go on")
    models: list[ModelSpec] = Field(min_length=1, description="models to score; ratios are to the teacher")
    tasks: list[TaskSpec] = Field(min_length=1, description="task sets; one table each")
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
    mask_prompt: bool = Field(default=True, description="leave prompt tokens out of the held-out loss")
    judge: JudgeSettings = Field(default=JudgeSettings(), description="limits of model-written programs")
    latency: LatencySettings = Field(default=LatencySettings(), description="timing of single generations")

    @property
    def samples_per_task(self) -> int:
        """Completions per task: greedy decoding has only one."""
        return self.samples if self.temperature > 0 else 1

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
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
