"""What a sweep came to: a table (printed, report.md, sweep.json), the Pareto fronts marked; the picture is sweep_plot.py's.

Quality is the last validation row, of a finished run the one of the student it published. Seconds are training seconds, from
each row's tokens and tokens/s: they do not count the hours between a kill and the next start, nor validation.
Not for one run's curve (curves.py) nor for scores of programs (eval).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shared.files import atomic_write
from stage2_student.sweep_config import HIGHER_IS_BETTER, Metric, Overrides
from stage2_student.sweep_runs import Run, Status

QUALITIES = ("kd", "ce", "perplexity", "agreement")
COSTS = ("parameters", "seconds")
OWN_KD = (
    "kd is at each run's own temperature and loss, and does not compare between them; ce, perplexity and agreement do"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One run as the report shows it; None where it never came so far.

    Attributes:
        step: of the validation row that the quality is of.
        seconds: spent training up to its last training row.
        last_line: of a run that failed.
        front: the quality and cost pairs whose Pareto front it is on, "ce/parameters" for one. Only finished runs stand on any.
    """

    run: str
    overrides: Overrides
    label: str
    status: Status
    parameters: int | None
    step: int | None
    seconds: float | None
    kd: float | None
    ce: float | None
    perplexity: float | None
    agreement: float | None
    loss: float | None
    last_line: str | None
    front: tuple[str, ...] = ()


def row_of(run: Run, status: Status, tokens_per_epoch: int) -> Row:
    """A run's row from its folder."""
    validation = run.rows()
    last = run.record().get("final") or (validation[-1] if validation else {})
    quality: dict[str, Any] = {name: last.get(name) for name in (*QUALITIES, "loss")}
    return Row(
        run=run.id,
        overrides=run.overrides,
        label=run.label,
        status=status,
        parameters=run.record().get("parameters"),
        step=last.get("step"),
        seconds=training_seconds(run.rows("train"), tokens_per_epoch),
        **quality,
        last_line=run.last_line() if status == "failed" else None,
    )


def training_seconds(rows: Sequence[dict[str, Any]], tokens_per_epoch: int) -> float | None:
    """Tokens of each row over its tokens/s, summed; None without rows."""
    seconds, before = 0.0, 0.0
    for row in rows:
        seconds += (row["epoch"] - before) * tokens_per_epoch / row["tokens_per_second"]
        before = row["epoch"]
    return round(seconds, 3) if rows else None


def with_fronts(rows: Sequence[Row], kd_compares: bool) -> list[Row]:
    """The same rows, each knowing the fronts it is on; there is none in kd where that has another meaning in each run."""
    finished = [row for row in rows if row.status == "finished"]
    found: dict[str, list[str]] = {row.run: [] for row in rows}
    for quality in ("kd", "ce") if kd_compares else ("ce",):
        for cost in COSTS:
            for run in pareto([(row.run, getattr(row, cost), getattr(row, quality)) for row in finished]):
                found[run].append(f"{quality}/{cost}")
    return [Row(**{**_fields(row), "front": tuple(found[row.run])}) for row in rows]


def _fields(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Row.__slots__}


def pareto(points: Sequence[tuple[str, float | None, float | None]]) -> list[str]:
    """Names of the (name, cost, quality) points that no other beats in one and equals in the other; lower is better."""
    known = [(name, cost, value) for name, cost, value in points if cost is not None and value is not None]
    return [
        name
        for name, cost, value in known
        if not any(c <= cost and v <= value and (c < cost or v < value) for _, c, v in known)
    ]


def ranked(rows: Sequence[Row], metric: Metric) -> list[Row]:
    """Finished runs first, then by the metric, best first; runs without one last."""
    sign = -1 if metric in HIGHER_IS_BETTER else 1

    def place(row: Row) -> tuple[bool, bool, float]:
        value = getattr(row, metric)
        return row.status != "finished", value is None, sign * (value or 0.0)

    return sorted(rows, key=place)


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, which is also what is printed."""
    head = ["#", "run", "what", "status", "parameters", "step", *QUALITIES, "train s", "front of"]
    return markdown(head, [[str(number), *_cells(row)] for number, row in enumerate(rows, 1)])


def markdown(head: list[str], lines: list[list[str]]) -> str:
    """A table whose columns are wide enough to be read as text too."""
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    shown = [head, ["-" * width for width in widths], *lines]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in shown]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


def _cells(row: Row) -> list[str]:
    forms = {"kd": ".4f", "ce": ".4f", "perplexity": ".2f", "agreement": ".3f"}
    quality = [_number(getattr(row, name), forms[name]) for name in QUALITIES]
    millions = None if row.parameters is None else row.parameters / 1e6
    step = "-" if row.step is None else str(row.step)
    front = ", ".join(row.front) or "-"
    return [
        row.run,
        row.label,
        row.status,
        _number(millions, ".3f", " M"),
        step,
        *quality,
        _number(row.seconds, ".0f"),
        front,
    ]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "-" if value is None else f"{value:{form}}{unit}"


def notes(rows: Sequence[Row], kd_compares: bool) -> list[str]:
    """What a reader must know beside the table."""
    found = [] if kd_compares else [OWN_KD]
    return found + [f"{row.run} ({row.label}) failed: {row.last_line}" for row in rows if row.last_line is not None]


def write_report(
    out: Path, name: str, rows: Sequence[Row], said: Sequence[str], draw: Callable[[Sequence[Row], Path, str], None]
) -> None:
    """sweep.json, report.md and, by `draw`, sweep.png in `out`; nothing is touched where nothing has changed."""
    described = {"sweep": name, "runs": [asdict(row) for row in rows], "notes": list(said)}
    text = json.dumps(described, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False, default=str) + "\n"
    path = out / "sweep.json"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    parts = [f"# Sweep {name}", table(rows), *said, "![quality against parameters and time](sweep.png)"]
    atomic_write(out / "report.md", "\n\n".join(parts) + "\n")
    draw(rows, out / "sweep.png", name)
    atomic_write(path, text)
