"""The report as Markdown, and the cells that the HTML page shares with it.

NOT for numbers: eval/report.py has them; here they only become words. A dash is a number that was not measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.pass_at_k import Score
from eval.report import ModelFacts, Report, TaskScores, TaskTable

DASH = "–"  # noqa: RUF001  # the dash of a table's empty cell
TITLE = "Evaluation"
CURVES_NOTE = (
    "Only cross-entropy compares between students: the total mixes both losses by each student's own weights, and the "
    "distillation loss depends on its temperature."
)


def headers(report: Report) -> list[str]:
    """Column names, units included."""
    passes = [f"pass@{k} [95 %]" if k == report.k[0] else f"pass@{k}" for k in report.k]
    measures = ["BLEU", "latency mean / median, ms", "size, MB", "loss, nats/token"]
    return ["model", "params", "ratio to teacher", *passes, *measures]


def table_cells(report: Report, table: TaskTable) -> list[list[str]]:
    """One row of strings a model, in the order of `headers`."""
    facts = {model.name: model for model in report.models}
    return [_cells(report, facts[scores.model], scores) for scores in table.scores]


def _cells(report: Report, model: ModelFacts, scores: TaskScores) -> list[str]:
    passes = [_pass_cell(scores.pass_at[str(k)], interval=k == report.k[0]) for k in report.k]
    latency = DASH
    if model.latency_mean is not None and model.latency_median is not None:
        latency = f"{model.latency_mean * 1e3:.0f} / {model.latency_median * 1e3:.0f}"
    return [
        model.name,
        count_text(model.parameters),
        _number(model.ratio_to_teacher, ".3g"),
        *passes,
        _number(scores.bleu, ".1f"),
        latency,
        _number(model.size_mb, ".1f"),
        _number(model.loss, ".3f"),
    ]


def _pass_cell(found: Score | None, *, interval: bool) -> str:
    if found is None:
        return DASH
    return f"{found.value:.3f} [{found.low:.2f}, {found.high:.2f}]" if interval else f"{found.value:.3f}"


def _number(value: float | None, form: str) -> str:
    return DASH if value is None else format(value, form)


def count_text(count: int | None) -> str:
    """44,343,296 as 44.3 M."""
    if count is None:
        return DASH
    for size, letter in ((1_000_000_000, "B"), (1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.3g} {letter}" if count < 1000 * size else f"{count / size:,.0f} {letter}"
    return str(count)


def provenance_lines(report: Report) -> list[tuple[str, str]]:
    """Name and value of every fact about how the numbers came to be, nested names joined by dots."""
    return _flatten("", report.provenance)


def _flatten(prefix: str, value: object) -> list[tuple[str, str]]:
    if isinstance(value, dict):
        return [line for key, inner in value.items() for line in _flatten(f"{prefix}.{key}".lstrip("."), inner)]
    if isinstance(value, (list, tuple)):
        return [(prefix, ", ".join(str(one) for one in value))]
    return [(prefix, DASH if value is None else str(value))]


def verdict_text(scores: TaskScores) -> str:
    """`passed 12, failed 300`."""
    return ", ".join(f"{name} {count}" for name, count in scores.verdicts.items()) or "not judged"


def render_tables(report: Report) -> str:
    """The task sets' tables and the notes, as Markdown; what a terminal shows at the end of a run."""
    parts = []
    for table in report.tables:
        parts += [
            f"## {_escape(table.title)} ({table.tasks} tasks)",
            _escape(table.protocol),
            _markdown_table(headers(report), table_cells(report, table)),
            "\n".join(f"- verdicts of {_escape(one.model)}: {verdict_text(one)}" for one in table.scores),
        ]
    if report.notes:
        parts += ["## Notes", "\n".join(f"- {_escape(note)}" for note in report.notes)]
    return "\n\n".join(parts)


def render_markdown(report: Report) -> str:
    """The whole report as Markdown (GitHub's tables)."""
    parts = [f"# {TITLE}", render_tables(report)]
    if report.curves:
        parts += ["## Training curves", CURVES_NOTE, f"![Losses of {_escape(', '.join(report.curves))}](curves.png)"]
    facts = [[name, value] for name, value in provenance_lines(report)]
    parts += ["## Provenance", _markdown_table(["what", "value"], facts)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to one width, so that the source reads as a table too; numbers to the right."""
    lines = [[_escape(cell) for cell in line] for line in [names, *rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    right = [column > 0 and len(names) > 2 for column in range(len(names))]
    padded = [
        [
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, right, strict=True)
        ]
        for line in lines
    ]
    rule = ["-" * (width - number) + ":" * number for width, number in zip(widths, right, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])


def _escape(text: str) -> str:
    """Text that cannot end a cell, start a tag or make a link of its own."""
    for sign, safe in (("\\", "\\\\"), ("|", "\\|"), ("`", "\\`"), ("<", "&lt;"), ("](", "]\\(")):
        text = text.replace(sign, safe)
    return " ".join(text.split())
