"""`python -m eval VERB`: score teacher, students and baselines through one door.

NOT for work: every verb is a line or two here and a module of its name beside this one.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eval.config import EvalConfig, JudgeSettings
from eval.folder import AGREEMENTS, SPECULATIONS
from eval.sweeps import with_sweeps
from shared.cli import ConfigArg, JsonFlag, Overrides, new_app, print_json
from shared.cli import run as run_app
from shared.config import load_config
from shared.errors import UsageError

if TYPE_CHECKING:
    from eval.judge_pool import Sandbox
    from eval.report import Report
    from eval.stages import Evaluation

app = new_app("Score models on programming tasks: generate, judge, measure, report.")

ProblemsOption = Annotated[Path | None, typer.Option("--problems", help="task file (HumanEval or MBPP format)")]
OutOption = Annotated[Path | None, typer.Option("--out", help="verdict file to write")]
JobsOption = Annotated[int | None, typer.Option("--jobs", min=1, help="programs at once; default: CPU cores + 2")]
WeakOption = Annotated[
    bool, typer.Option("--allow-weak-sandbox", help="go on where this machine cannot isolate programs well")
]
SandboxOption = Annotated[str | None, typer.Option("--sandbox", help="auto: the best here; bwrap: bubblewrap")]
JudgeInput = Annotated[
    Path, typer.Argument(metavar="SAMPLES.jsonl|CONFIG", help="completions to judge, or the config of a result folder")
]
SamplesInput = Annotated[Path, typer.Argument(metavar="SAMPLES.jsonl", help="several completions of each task")]
TestsOption = Annotated[Path | None, typer.Option("--tests", help="generated tests: task_id, completion (asserts)")]
VerdictsOption = Annotated[Path | None, typer.Option("--verdicts", help="verdicts of the samples; none: judged here")]
VerifierOption = Annotated[Path | None, typer.Option("--verifier", help="verifier (JSON) to rank with too")]
TrainOption = Annotated[
    Path | None, typer.Option("--train", help="verifier to write, trained on these samples; scored by cross-validation")
]
CodetOption = Annotated[bool, typer.Option("--codet-only", help="CodeT alone, which runs every program once less")]


def _open(config: Path, overrides: list[str] | None) -> Evaluation:
    from eval.stages import Evaluation

    return Evaluation(with_sweeps(load_config(EvalConfig, config, overrides or [])))


@app.command()
def run(config: ConfigArg, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Generate, judge, measure and report; run again after a crash, it goes on."""
    evaluation = _open(config, overrides)
    evaluation.generate()
    evaluation.judge()
    evaluation.perplexity()
    evaluation.agreement()
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
    sandbox: SandboxOption = None,
    overrides: Overrides = None,
    as_json: JsonFlag = False,
) -> None:
    """Run completions against their tasks' tests, isolated; write one verdict a line."""
    if source.suffix in (".yaml", ".yml"):
        _judge_folder(source, overrides, as_json, given=[problems, out, jobs, allow_weak_sandbox or None, sandbox])
        return
    if problems is None or out is None or overrides:
        got = "--set" if overrides else "neither" if problems is out is None else "only one of them"
        do = "add --problems PROBLEMS.jsonl --out VERDICTS.jsonl"
        raise UsageError(f"judge {source}", expected="--problems and --out, no --set", got=got, do=do)
    from eval.judging import judge_file, summary_text

    settings = JudgeSettings(jobs=jobs, allow_weak_sandbox=allow_weak_sandbox, sandbox=_sandbox(sandbox))
    summary = judge_file(source, problems, out, settings)
    if as_json:
        print_json(summary)
    else:
        print(summary_text(summary))


def _sandbox(name: str | None) -> Sandbox:
    if name not in (None, "auto", "bwrap"):
        raise UsageError("--sandbox", expected="auto or bwrap", got=str(name), do="leave it out")
    return "bwrap" if name == "bwrap" else "auto"


def _judge_folder(config: Path, overrides: list[str] | None, as_json: bool, given: list[object]) -> None:
    if any(value is not None for value in given):
        raise UsageError(
            f"judge {config}",
            expected="no --problems, --out, --jobs, --sandbox or --allow-weak-sandbox with a config",
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
def rerank(
    samples: SamplesInput,
    problems: Annotated[Path, typer.Option("--problems", help="task file (HumanEval or MBPP format)")],
    out: Annotated[Path, typer.Option("--out", help="folder for choices, crossings and verdicts; run again to go on")],
    tests: TestsOption = None,
    verdicts: VerdictsOption = None,
    verifier: VerifierOption = None,
    train: TrainOption = None,
    codet_only: CodetOption = False,
    jobs: JobsOption = None,
    allow_weak_sandbox: WeakOption = False,
    sandbox: SandboxOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Choose among a task's samples without its official tests: CodeT, AlphaCode, a verifier; pass@k before and after."""
    from eval.rerank import RerankFiles, rerank_files, rerank_text

    settings = JudgeSettings(jobs=jobs, allow_weak_sandbox=allow_weak_sandbox, sandbox=_sandbox(sandbox))
    files = RerankFiles(samples, problems, out, tests, verdicts, verifier, train, codet_only)
    summary = rerank_files(files, settings)
    if as_json:
        print_json(summary)
    else:
        print(rerank_text(summary))


@app.command()
def selftest(as_json: JsonFlag = False) -> None:
    """Judge programs of known verdicts, hostile ones too: does this machine's sandbox hold?"""
    from eval.selftest import selftest as ask
    from eval.selftest import selftest_text

    found = ask()
    if as_json:
        print_json(found.row())
    else:
        print(selftest_text(found))
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def perplexity(config: ConfigArg, overrides: Overrides = None) -> None:
    """Measure held-out loss, perplexity and bits a byte: on the cache of held_out, on the text of held_out_text."""
    evaluation = _open(config, overrides)
    if evaluation.config.held_out_text is None:
        _require_held_out(evaluation, config)
    evaluation.perplexity()


def _require_held_out(evaluation: Evaluation, config: Path) -> None:
    if evaluation.config.held_out is None:
        raise UsageError(str(config), expected="held_out: a cache directory", got="none", do="set held_out")


@app.command()
def agreement(config: ConfigArg, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Compare students with the teacher's cache named by held_out: KL, agreement, calibration, predicted acceptance."""
    from eval.agreement_text import agreement_table, aligned

    evaluation = _open(config, overrides)
    _require_held_out(evaluation, config)
    evaluation.agreement()
    rows = evaluation.folder.rows(AGREEMENTS)
    if as_json:
        print_json({"agreement": rows})
    else:
        print(aligned(agreement_table(rows)))


@app.command()
def speculate(config: ConfigArg, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Decode with each student as the teacher's draft: acceptance, tokens a call, speed-up, beside the prediction."""
    from eval.agreement_text import aligned, speculation_table

    evaluation = _open(config, overrides)
    evaluation.speculate()
    rows = evaluation.folder.rows(SPECULATIONS)
    if as_json:
        print_json({"speculate": rows})
    else:
        print(aligned(speculation_table(rows, evaluation.folder.rows(AGREEMENTS))))


@app.command()
def protocols() -> None:
    """Print the published protocols that a config may name, and the published numbers each reproduces."""
    from eval.protocols import protocol_table

    print(protocol_table(), end="")


@app.command()
def latency(config: ConfigArg, overrides: Overrides = None) -> None:
    """Time generations, one at a time and in batches: first token, each step, whole; throughput; peak memory."""
    _open(config, overrides).latency()


@app.command()
def report(config: ConfigArg, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Write report.json, report.md and report.html from what the result folder holds."""
    evaluation = _open(config, overrides)
    _show(evaluation.report(), evaluation, as_json)


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="result folder or report.json")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="the same of the other run")],
    html: Annotated[Path | None, typer.Option("--html", help="write a page there too")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Compare two runs: tasks that flipped, score differences with paired intervals, settings that differ."""
    from eval.compare import compare as find
    from eval.compare_text import comparison_html, comparison_markdown
    from shared.files import atomic_write

    found = find(old, new)
    if html is not None:
        atomic_write(html, comparison_html(found))
    if as_json:
        print_json(asdict(found))
    else:
        print(comparison_markdown(found), end="")


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
