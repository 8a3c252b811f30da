"""Collect what a result folder holds into one report: a table a task set, facts of each model, notes on what is missing.

NOT for layout: eval/report_text.py writes Markdown, eval/report_page.py HTML. Nothing here is measured anew except BLEU,
which is read off the completions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eval.bleu import corpus_bleu
from eval.config import EvalConfig, ModelSpec, TaskSpec
from eval.folder import COMPLETIONS, LATENCIES, LOSSES, VERDICTS, Folder
from eval.judging import row_key
from eval.pass_at_k import Score, score
from eval.prompts import PRESETS
from shared.tasks import Task

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ModelFacts:
    """What a model is and costs, whatever the tasks. None: not measured."""

    name: str
    kind: str
    path: str
    identity: str | None = None
    parameters: int | None = None
    ratio_to_teacher: float | None = None
    size_mb: float | None = None
    loss: float | None = None  # nats a token
    perplexity: float | None = None
    latency_mean: float | None = None  # seconds a generation
    latency_median: float | None = None
    latency_per_token: float | None = None  # seconds
    latency_device: str | None = None


@dataclass(frozen=True)
class TaskScores:
    """One model on one task set. `per_task`: task id -> [samples judged, passed]; `pass_at`: None where k > samples."""

    model: str
    pass_at: dict[str, Score | None]
    bleu: float | None
    samples: int
    verdicts: dict[str, int]
    incomplete_tasks: int
    cut_by_length: int
    no_room: int
    split_prompts: int  # prompts that end inside a token (eval/prompts.py)
    per_task: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class TaskTable:
    """One task set: its protocol, in words, and a row a model."""

    title: str
    protocol: str
    tasks: int
    scores: list[TaskScores]


@dataclass(frozen=True)
class Report:
    """Everything the report shows."""

    models: list[ModelFacts]
    tables: list[TaskTable]
    k: list[int]
    notes: list[str]
    provenance: dict[str, Any] = field(default_factory=dict)
    curves: list[str] = field(default_factory=list)  # students with training curves


def build_report(
    config: EvalConfig, folder: Folder, task_sets: Mapping[str, Sequence[Task]], provenance: dict[str, Any]
) -> Report:
    """Join completions, verdicts, losses and latencies of the configured models and task sets."""
    results = _Results(config, folder)
    tables = []
    for spec in config.tasks:
        tasks = task_sets[spec.title]
        scores = [results.scores(model, spec, tasks) for model in config.models]
        tables.append(TaskTable(spec.title, describe_protocol(spec, config), len(tasks), scores))
    models = _model_facts(config, folder)
    return Report(models, tables, list(config.k), _notes(tables, models, config), provenance)


def describe_protocol(spec: TaskSpec, config: EvalConfig) -> str:
    """Everything that decides whether two numbers may be compared, in one line."""
    how = "greedy, 1 sample"
    if config.temperature > 0:
        how = f"{config.samples} samples at T = {config.temperature:g}, top-p {config.top_p:g}, seed {config.seed}"
    preset = PRESETS[spec.prompt_preset].id
    latency = f"latency of {config.latency.new_tokens} new tokens, batch 1, greedy"
    return f"prompt preset {preset}; {how}; at most {config.max_new_tokens} new tokens; {config.dtype}; {latency}"


class _Results:
    """The folder's completions and verdicts, ready to be asked for one model on one task set."""

    def __init__(self, config: EvalConfig, folder: Folder) -> None:
        self.config, self.prompts = config, folder.record["prompts"]
        self.verdicts = {row_key(row): row for row in folder.rows(VERDICTS)}
        self.samples: dict[tuple[str, str], list[Row]] = {}
        for row in folder.rows(COMPLETIONS):
            self.samples.setdefault((row["model"], row["task_set"]), []).append(row)

    def scores(self, model: ModelSpec, spec: TaskSpec, tasks: Sequence[Task]) -> TaskScores:
        rows = self.samples.get((model.name, spec.title), [])
        judged = [verdict for row in rows if (verdict := self.verdicts.get(row_key(row))) is not None]
        samples = Counter(row["task_id"] for row in judged)
        passed = Counter(row["task_id"] for row in judged if row["passed"])
        finish = Counter(row["finish"] for row in rows)
        return TaskScores(
            model=model.name,
            pass_at={str(k): _pass_at(samples, passed, k) for k in self.config.k},
            bleu=_bleu(tasks, rows),
            samples=len(judged),
            verdicts=dict(sorted(Counter(str(row["verdict"]) for row in judged).items())),
            incomplete_tasks=sum(samples[task.task_id] < self.config.samples_per_task for task in tasks),
            cut_by_length=finish["length"],
            no_room=finish["no room"],
            split_prompts=self.prompts.get(f"{spec.title}/{model.name}", {}).get("split_prompts", 0),
            per_task={task.task_id: (samples[task.task_id], passed[task.task_id]) for task in tasks},
        )


def _pass_at(samples: Mapping[str, int], passed: Mapping[str, int], k: int) -> Score | None:
    """None (a dash) where nothing was judged or some judged task has fewer than k samples."""
    if not samples or min(samples.values()) < k:
        return None
    return score([(count, passed[task_id]) for task_id, count in samples.items()], k)


def _bleu(tasks: Sequence[Task], rows: Sequence[Row]) -> float | None:
    first = {row["task_id"]: row["completion"] for row in rows if row["index"] == 0}
    pairs = [(first[task.task_id], task.reference) for task in tasks if task.task_id in first]
    return corpus_bleu(*zip(*pairs, strict=True)).value if pairs else None


def _model_facts(config: EvalConfig, folder: Folder) -> list[ModelFacts]:
    losses = {row["model"]: row for row in folder.rows(LOSSES)}
    latencies = {row["model"]: row for row in folder.rows(LATENCIES)}
    recorded: dict[str, Row] = folder.record["models"]
    teacher = next((model.name for model in config.models if model.kind == "teacher"), None)
    teacher_size = recorded.get(teacher or "", {}).get("parameters")
    facts = []
    for model in config.models:
        known, loss, latency = (found.get(model.name, {}) for found in (recorded, losses, latencies))
        own_size = known.get("parameters")
        facts.append(
            ModelFacts(
                name=model.name,
                kind=model.kind,
                path=model.path,
                identity=known.get("identity"),
                parameters=own_size,
                ratio_to_teacher=own_size / teacher_size if own_size and teacher_size else None,
                size_mb=known.get("size_mb"),
                loss=loss.get("loss"),
                perplexity=loss.get("perplexity"),
                latency_mean=latency.get("mean"),
                latency_median=latency.get("median"),
                latency_per_token=latency.get("per_token"),
                latency_device=latency.get("device"),
            )
        )
    return facts


def _notes(tables: Sequence[TaskTable], models: Sequence[ModelFacts], config: EvalConfig) -> list[str]:
    """What a reader must know before believing a number."""
    notes = []
    for table in tables:
        for scores in table.scores:
            where = f"{table.title}, {scores.model}"
            if scores.incomplete_tasks:
                share = f"{scores.incomplete_tasks} of {table.tasks} tasks lack samples or verdicts"
                notes.append(f"{where}: incomplete, {share}; scores cover the others and do not compare")
            if scores.split_prompts:
                share = f"{scores.split_prompts} of {table.tasks} prompts end inside a token of the canonical text"
                notes.append(f"{where}: {share}; a preset that strips them may score far higher")
            if scores.no_room:
                notes.append(f"{where}: {scores.no_room} prompts fill the model's positions and count as empty answers")
            if scores.cut_by_length:
                notes.append(f"{where}: {scores.cut_by_length} of {scores.samples} completions were cut by length")
    missing = [str(k) for k in config.k if k > config.samples_per_task]
    if missing:
        notes.append(f"pass@{', pass@'.join(missing)}: needs more than the {config.samples_per_task} samples a task")
    unmeasured = [model.name for model in models if model.loss is None]
    if config.held_out is not None and unmeasured:
        notes.append(f"held-out loss not measured for {', '.join(unmeasured)}")
    return notes
