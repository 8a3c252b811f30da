"""The report as one HTML page that opens from disk: styles and pictures inside, no script, no network.

NOT for numbers or their wording: eval/report.py and eval/report_text.py have them. Every text from outside is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from eval.pass_at_k import Score
from eval.report import Report, TaskTable
from eval.report_text import CURVES_NOTE, TITLE, headers, provenance_lines, table_cells, verdict_text

STYLE = """
:root { color-scheme: light dark;
  --line: #d7dbe0; --soft: #5b6470; --tint: #f3f6fa; --ink: #16202b; --paper: #ffffff; --mark: #1f6feb; }
@media (prefers-color-scheme: dark) {
  :root {
  --line: #333c47; --soft: #9aa5b1; --tint: #1b222b; --ink: #e6eaef; --paper: #12171d; --mark: #6ea8fe; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 2.2rem 1.6rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; letter-spacing: -.01em; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem; }
p, ul { margin: .3rem 0 .8rem; color: var(--soft); }
.small { font-size: .85rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  vertical-align: top; }
th { font-weight: 600; font-size: .82rem; color: var(--soft); white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; font-weight: 600; }
tbody tr:hover { background: var(--tint); }
.kind { font-weight: 400; color: var(--soft); font-size: .82rem; margin-left: .4rem; }
.bar { display: block; height: 3px; margin-top: 3px; background: var(--line); border-radius: 2px; }
.bar span { display: block; height: 3px; background: var(--mark); border-radius: 2px; }
.facts td { text-align: left; font-weight: 400; white-space: normal;
  padding: .22rem .7rem; font-size: .85rem; overflow-wrap: anywhere; }
.facts td:first-child { color: var(--soft); width: 18rem; font-weight: 400; }
.notes { background: var(--tint); border-left: 3px solid var(--mark); padding: .6rem 1rem .6rem 2rem; }
img { max-width: 100%; border: 1px solid var(--line); border-radius: 6px; background: #fff; }
"""


def render_html(report: Report, curves_png: bytes | None) -> str:
    """The page.

    Args:
        curves_png: the six panels, or none where no student has training curves.
    """
    sections = [_table_section(report, table) for table in report.tables]
    if report.notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in report.notes)
        sections.append(f'<h2>Read before comparing</h2>\n<ul class="notes">{items}</ul>')
    if curves_png is not None:
        sections.append(_curves_section(report, curves_png))
    facts = [f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in provenance_lines(report)]
    sections.append('<h2>Provenance</h2>\n<table class="facts"><tbody>' + "\n".join(facts) + "</tbody></table>")
    models = ", ".join(f"{model.name} ({model.kind})" for model in report.models)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{TITLE}: {escape(models)}</title><style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{TITLE}</h1>\n<p>{escape(models)}</p>\n" + "\n".join(sections) + "\n</body></html>\n"
    )


def _table_section(report: Report, table: TaskTable) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in headers(report))
    kinds = {model.name: model.kind for model in report.models}
    rows = [
        _row(cells, kinds[cells[0]], scores.pass_at[str(report.k[0])])
        for cells, scores in zip(table_cells(report, table), table.scores, strict=True)
    ]
    verdicts = "<br>".join(f"{escape(one.model)}: {escape(verdict_text(one))}" for one in table.scores)
    return (
        f"<h2>{escape(table.title)} ({table.tasks} tasks)</h2>\n<p>{escape(table.protocol)}</p>\n"
        f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>'
        + "\n".join(rows)
        + "</tbody></table></div>\n"
        f'<p class="small">{verdicts}</p>'
    )


def _row(cells: Sequence[str], kind: str, first: Score | None) -> str:
    """A table row; under the first pass@k a bar of that length, so that models compare at a glance."""
    shown = [escape(cell) for cell in cells]
    shown[0] += f'<span class="kind">{escape(kind)}</span>'
    if first is not None:
        shown[3] += f'<span class="bar"><span style="width:{first.value * 100:.1f}%"></span></span>'
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in shown) + "</tr>"


def _curves_section(report: Report, png: bytes) -> str:
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    label = escape("Training and validation losses of " + ", ".join(report.curves))
    return f'<h2>Training curves</h2>\n<p>{label}. {escape(CURVES_NOTE)}</p>\n<img alt="{label}" src="{source}">'
