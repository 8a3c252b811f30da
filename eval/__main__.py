"""`python -m eval VERB`: score teacher, students and baselines through one door.

NOT for work: every verb is a line or two here and a module of its name beside this one.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.config import EvalConfig, JudgeSettings
from shared.cli import ConfigArg, JsonFlag, Overrides, new_app, print_json
from shared.cli import run as run_app
from shared.config import load_config
from shared.errors import UsageError

if TYPE_CHECKING:
    from eval.report import Report
    from eval.stages import Evaluation

app = new_app("Score models on programming tasks: generate, judge, measure, report.")

ProblemsOption = Annotated[Path | None, typer.Option("--problems", help="task file (HumanEval or MBPP format)")]
OutOption = Annotated[Path | None, typer.Option("--out", help="verdict file to write")]
JobsOption = Annotated[int | None, typer.Option("--jobs", min=1, help="programs at once; default: one per CPU core")]
WeakOption = Annotated[
    bool, typer.Option("--allow-weak-sandbox", help="go on where this machine cannot isolate programs well")
]
JudgeInput = Annotated[
    Path, typer.Argument(metavar="SAMPLES.jsonl|CONFIG", help="completions to judge, or the config of a result folder")
]


def _open(config: Path, overrides: list[str] | None) -> Evaluation:
    from eval.stages import Evaluation

    return Evaluation(load_config(EvalConfig, config, overrides or []))


@app.command()
def run(config: ConfigArg, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Generate, judge, measure and report; run again after a crash, it goes on."""
    evaluation = _open(config, overrides)
    evaluation.generate()
    evaluation.judge()
    evaluation.perplexity()
    evaluation.latency()
    _show(evaluation.report(), evaluation, as_json)


@app.command()
def generate(config: ConfigArg, overrides: Overrides = None) -> None:
    """Write completions.jsonl: samples of every model on every task."""
    _open(config, overrides).generate()


@app.command()
def judge(
    source: JudgeInput,
    problems: ProblemsOption = None,
    out: OutOption = None,
    jobs: JobsOption = None,
    allow_weak_sandbox: WeakOption = False,
    overrides: Overrides = None,
    as_json: JsonFlag = False,
) -> None:
    """Run completions against their tasks' tests, isolated; write one verdict a line."""
    if source.suffix in (".yaml", ".yml"):
        _judge_folder(source, overrides, as_json, given=[problems, out, jobs, allow_weak_sandbox or None])
        return
    if problems is None or out is None or overrides:
        got = "--set" if overrides else "neither" if problems is out is None else "only one of them"
        do = "add --problems PROBLEMS.jsonl --out VERDICTS.jsonl"
        raise UsageError(f"judge {source}", expected="--problems and --out, no --set", got=got, do=do)
    from eval.judging import judge_file, summary_text

    summary = judge_file(source, problems, out, JudgeSettings(jobs=jobs, allow_weak_sandbox=allow_weak_sandbox))
    if as_json:
        print_json(summary)
    else:
        print(summary_text(summary))


def _judge_folder(config: Path, overrides: list[str] | None, as_json: bool, given: list[object]) -> None:
    if any(value is not None for value in given):
        raise UsageError(
            f"judge {config}",
            expected="no --problems, --out, --jobs or --allow-weak-sandbox with a config",
            got="one of them",
            do="use --set judge.jobs=N and the like",
        )
    evaluation = _open(config, overrides)
    counts = evaluation.judge()
    if as_json:
        print_json({"out": str(evaluation.folder.path), "verdicts": counts})
    else:
        print(f"{sum(counts.values())} verdicts in {evaluation.folder.path}: {counts}")


@app.command()
def perplexity(config: ConfigArg, overrides: Overrides = None) -> None:
    """Measure loss and perplexity on the windows of the cache named by held_out."""
    evaluation = _open(config, overrides)
    if evaluation.config.held_out is None:
        raise UsageError(str(config), expected="held_out: a cache directory", got="none", do="set held_out")
    evaluation.perplexity()


@app.command()
def latency(config: ConfigArg, overrides: Overrides = None) -> None:
    """Time single generations."""
    _open(config, overrides).latency()


@app.command()
def report(config: ConfigArg, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Write report.json, report.md and report.html from what the result folder holds."""
    evaluation = _open(config, overrides)
    _show(evaluation.report(), evaluation, as_json)


def _show(report: Report, evaluation: Evaluation, as_json: bool) -> None:
    from eval.folder import REPORT_HTML
    from eval.report_text import render_tables

    if as_json:
        print_json(asdict(report))
    else:
        print(render_tables(report))
        print(f"report: {evaluation.folder.path / REPORT_HTML}")


def main() -> None:
    """Entry point of `distill-eval` and `python -m eval`."""
    run_app(app)


if __name__ == "__main__":
    main()
