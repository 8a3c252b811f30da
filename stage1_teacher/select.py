"""`select`: the best of a teacher's answers become a corpus that `capture` reads like any other.

Deterministic: the same answers and config make the same bytes. Not for reading answers (stage1_teacher/answers.py), the order
among them (stage1_teacher/ranking.py) or tests (stage1_teacher/select_judge.py).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared.dedup import NearDuplicates
from shared.errors import RunError
from shared.files import atomic_write, jsonl
from stage1_teacher.answer_folder import Answered, read_answered
from stage1_teacher.answers import Dropped, Reading, read_answer
from stage1_teacher.prompt_sets import Prompt
from stage1_teacher.ranking import ORDER, Ranked, best, ranked
from stage1_teacher.select_config import SelectConfig
from stage1_teacher.select_judge import Judged, judge

FAILED_TESTS, STRANGE = "failed its tests", "of no prompt"
OTHERS_DUPLICATE, OTHERS_NEAR_DUPLICATE = "duplicate of another prompt's", "near duplicate of another prompt's"
FORMAT = "codestill-text/1"


@dataclass(frozen=True)
class Chosen:
    """One answer of the corpus."""

    prompt: Prompt
    ranked: Ranked
    answers: int
    passed: bool | None


def select(config: SelectConfig) -> dict[str, Any]:
    """Read, judge, rank, keep; then write the corpus, NAME.provenance.json and NAME.summary.json.

    Returns:
        the summary: `corpus`, `rows`, `prompts`, `prompts_kept`, `answers`, `dropped` (by reason), `judged`, `passed`,
        `verdicts`, `section` (the corpus section for a capture's config).
    Raises:
        UsageError: the answers cannot be read, or the judge refuses.
        RunError: no answer is good enough; nothing was written but the judge's files.
    """
    answered = read_answered(config.answers)
    dropped: Counter[str] = Counter()
    readings = list(_readings(answered, config, dropped))
    judged = judge(readings, config.out.parent / f"{config.out.stem}.judge", config.judge)
    chosen = list(_choose(readings, judged, config, dropped))
    if not chosen:
        counts = ", ".join(f"{count} {reason}" for reason, count in dropped.most_common()) or "no answer at all"
        do = "raise samples or max_new_tokens, or take a better teacher"
        raise RunError(f"answers {config.answers}", expected="one good enough", got=counts, do=do)
    corpus = jsonl(_row(each, answered) for each in chosen)
    summary = _summary(config, answered, dropped, judged, chosen)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    provenance = _provenance(config, answered, judged, corpus, summary)
    atomic_write(beside(config.out, "provenance"), json.dumps(provenance, indent=2, ensure_ascii=False) + "\n")
    atomic_write(beside(config.out, "summary"), json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    atomic_write(config.out, corpus)
    return summary


def beside(corpus: Path, what: str) -> Path:
    """CORPUS.provenance.json and CORPUS.summary.json."""
    return corpus.with_suffix(f".{what}.json")


def _readings(answered: Answered, config: SelectConfig, dropped: Counter[str]) -> Iterator[tuple[Prompt, int, Reading]]:
    """Answers that can be read, by prompt and index, whatever order they came in."""
    places = {prompt.id: place for place, prompt in enumerate(answered.prompts)}
    known = [row for row in answered.rows if row["prompt_id"] in places]
    dropped.update({STRANGE: len(answered.rows) - len(known)} if len(known) < len(answered.rows) else {})
    for row in sorted(known, key=lambda row: (places[row["prompt_id"]], row["index"])):
        prompt = answered.prompts[places[row["prompt_id"]]]
        try:
            reading = read_answer(
                prompt, row["answer"], row["finish"], shortest=config.shortest, refusals=config.refusals
            )
        except Dropped as reason:
            dropped[str(reason)] += 1
        else:
            yield prompt, row["index"], reading


def _choose(
    readings: Sequence[tuple[Prompt, int, Reading]], judged: Judged, config: SelectConfig, dropped: Counter[str]
) -> Iterator[Chosen]:
    groups: dict[str, list[tuple[int, Reading]]] = defaultdict(list)
    prompts = {prompt.id: prompt for prompt, _, _ in readings}
    for prompt, index, reading in readings:
        if judged.passed.get((prompt.id, index), True):
            groups[prompt.id].append((index, reading))
        else:
            dropped[FAILED_TESTS] += 1
    others = defaultdict[str, _Others](lambda: _Others(config.near, len(groups) * config.keep))
    for prompt_id, group in groups.items():
        prompt = prompts[prompt_id]
        for each, found in best(ranked(group), config.keep, config.near):
            reason = found or others[prompt.kind].reason(prompt.prompt + each.reading.completion)
            if reason is None:
                yield Chosen(prompt, each, len(group), judged.passed.get((prompt_id, each.index)))
            else:
                dropped[reason] += 1


class _Others:
    """Rows of other prompts of one kind: the same seed or instruction may come twice, in nearly the same words."""

    def __init__(self, near: float, most: int) -> None:
        self._texts: set[str] = set()
        self._near = NearDuplicates(near, 2 * most)  # it forgets the older half when it is full

    def reason(self, text: str) -> str | None:
        """Why prompt and answer say nothing new; None, and they are remembered, where they do."""
        words = " ".join(text.split())
        if words in self._texts:
            return OTHERS_DUPLICATE
        self._texts.add(words)
        return OTHERS_NEAR_DUPLICATE if self._near.like(text, "") is not None else None


def _row(chosen: Chosen, answered: Answered) -> dict[str, Any]:
    """A line of the corpus; sections of an answer in instruction format are columns of their own."""
    each = chosen.ranked
    return {
        "id": f"{chosen.prompt.id}#{each.index}",
        "prompt": chosen.prompt.prompt,
        "completion": each.reading.completion,
        "licence": chosen.prompt.licence,
        "provenance": {
            "teacher": answered.record["teacher"]["model"],
            "kind": chosen.prompt.kind,
            "passed": chosen.passed,
            "compared": chosen.answers,
            "agreement": round(each.agreement, 4),
            "similarity": round(each.similarity, 4),
            "documentation": each.documentation,
        },
        **each.reading.sections,
    }


def _summary(
    config: SelectConfig, answered: Answered, dropped: Counter[str], judged: Judged, chosen: Sequence[Chosen]
) -> dict[str, Any]:
    return {
        "corpus": config.out.name,
        "rows": len(chosen),
        "prompts": len(answered.prompts),
        "prompts_kept": len({each.prompt.id for each in chosen}),
        "answers": len(answered.rows),
        "dropped": dict(sorted(dropped.items())),
        "judged": len(judged.passed),
        "passed": sum(judged.passed.values()),
        "verdicts": judged.verdicts,
        "section": section(config.out.name),
    }


def section(name: str) -> str:
    """The corpus section of a capture's config."""
    fields = 'prompt: "{prompt}", completion: "{completion}", id: id, licence: licence'
    return f"corpus: {{path: {name}, {fields}}}"


def _provenance(
    config: SelectConfig, answered: Answered, judged: Judged, corpus: str, summary: Mapping[str, Any]
) -> dict[str, Any]:
    """Who wrote this text, how it was asked for, and how it was chosen: no path, no key."""
    record = answered.record
    return {
        "format": FORMAT,
        "corpus": {"rows": summary["rows"], "sha256": hashlib.sha256(corpus.encode()).hexdigest()},
        "teacher": record["teacher"] | {"answered_as": sorted({str(row.get("model")) for row in answered.rows})},
        "settings": record["settings"],
        "prompts": record["prompts"] | {"left_out": record["left_out"]},
        "begun": record["begun"],
        "generated_with": record["made_with"],
        "selection": {
            "keep": config.keep,
            "shortest": config.shortest,
            "near": config.near,
            "order": list(ORDER),
            "dropped": summary["dropped"],
            "judge": judged.facts,
        },
        "selected_with": {"codestill": version("codestill")},
    }


def text_of(summary: Mapping[str, Any], out: Path) -> str:
    """The summary for a terminal, with the line that a capture's config needs."""
    kept = f"{summary['rows']} answers to {summary['prompts_kept']} of {summary['prompts']} prompts"
    lines = [f"{out}: {kept}, out of {summary['answers']} answers"]
    if summary["judged"]:
        lines.append(f"tests: {summary['passed']} of {summary['judged']} passed")
    lines += [f"dropped {count}: {reason}" for reason, count in summary["dropped"].items()]
    return "\n".join([*lines, f"next, in the config of a capture: {section(str(out))}"])
