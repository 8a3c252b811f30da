"""`generate`: prompts in, answers.jsonl out; goes on after a kill, and says what it costs before and while it does.

Not for reading prompts, for asking (generate_local.py, endpoint.py), nor for choosing among answers (select.py).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from tqdm import tqdm

from shared.errors import RunError
from stage1_teacher.answer_folder import ANSWERS, FORMAT, AnswerFile, Key, writing
from stage1_teacher.endpoint import CHARS_PER_TOKEN, Endpoint, tokens_of
from stage1_teacher.endpoint_pool import Job, Pool
from stage1_teacher.generate_config import GenerateConfig, Prices
from stage1_teacher.prompt_sets import Prompts, read_prompts

MILLION = 1_000_000


@dataclass
class Tally:
    """Tokens of the answers so far, those of earlier runs included; money where a price is known."""

    prices: Prices | None
    answers: int = 0
    estimated: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    models: set[str] = field(default_factory=set)

    def add(self, row: Mapping[str, Any]) -> None:
        """One answer's row."""
        self.answers += 1
        self.estimated += bool(row.get("estimated"))
        self.prompt_tokens += row["prompt_tokens"]
        self.completion_tokens += row["completion_tokens"]
        self.models.add(str(row.get("model")))

    @property
    def usd(self) -> float | None:
        """What these answers cost."""
        return self._usd(self.prompt_tokens, self.completion_tokens)

    def expected_usd(self, asked: Sequence[Job], most_new: int) -> float | None:
        """What all will cost: these, and those still to be asked, at the length of an answer so far.

        Before the first answer every one counts with max_new_tokens, so that no run costs more than was said; prompts
        count by CHARS_PER_TOKEN.
        """
        output = self.completion_tokens / self.answers if self.answers else float(most_new)
        prompt_tokens = sum(tokens_of(prompt.asked) for prompt, _ in asked)
        more = self._usd(prompt_tokens, output * len(asked))
        return None if self.usd is None or more is None else self.usd + more

    def _usd(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        if self.prices is None:
            return None
        return (self.prices.input * prompt_tokens + self.prices.output * completion_tokens) / MILLION


def generate(config: GenerateConfig) -> dict[str, Any]:
    """Ask every prompt `config.samples` times, but for the answers that are there.

    Returns:
        the facts: `answers` (path), `prompts`, `wanted`, `there`, `new`, `failed` (by kind), `why` (of the last one),
        `left_out` (seeds, by reason), `prompt_tokens`, `completion_tokens`, `estimated`, `usd`, `expected_usd`, `seconds`.
    Raises:
        UsageError: prompts, teacher, endpoint, key or folder are wrong; nothing was written.
        RunError: the endpoint or the device gave up; what was answered is kept.
    """
    start = time.perf_counter()
    prompts = read_prompts(config.prompts, config.style)
    teacher = _Teacher(config, prompts)
    with writing(config.out, prompts, _record(config, prompts, teacher), config.checkpoint_every) as (file, known):
        tally = Tally(config.endpoint.usd_per_million if config.endpoint else None)
        for row in known:
            tally.add(row)
        done = {(row["prompt_id"], row["index"]) for row in known}
        wanted = [(prompt, index) for prompt in prompts.prompts for index in range(config.samples)]
        asked = [(prompt, index) for prompt, index in wanted if (prompt.id, index) not in done]
        expected = tally.expected_usd(asked, config.max_new_tokens)
        _say_before(config, prompts, len(asked), len(wanted), expected)
        with _bar(len(wanted), len(wanted) - len(asked)) as bar:
            teacher.answer(asked, done, _Saving(file, tally, bar))
    return {
        "answers": str(config.out / ANSWERS),
        "prompts": len(prompts.prompts),
        "wanted": len(wanted),
        "there": len(wanted) - len(asked) + bar.n - bar.initial,
        "new": bar.n - bar.initial,
        "failed": dict(sorted(teacher.failed.items())),
        "why": teacher.why,
        "left_out": prompts.left_out,
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "estimated": tally.estimated,
        "usd": tally.usd,
        "expected_usd": expected,
        "seconds": time.perf_counter() - start,
    }


class _Saving:
    """What happens to an answer: into the file, into the sums, onto the screen."""

    def __init__(self, file: AnswerFile, tally: Tally, bar: Any) -> None:
        self.file, self.tally, self.bar = file, tally, bar

    def __call__(self, row: Mapping[str, Any]) -> None:
        self.file.add(row)
        self.tally.add(row)
        if (usd := self.tally.usd) is not None:
            whole = usd + usd / self.tally.answers * (self.bar.total - self.bar.n - 1)
            self.bar.set_postfix_str(f"${usd:.4f} of about ${whole:.4f}", refresh=False)
        self.bar.update()


class _Teacher:
    """Whoever answers, a model here or an endpoint; made before anything is written, so that what is wrong shows here."""

    def __init__(self, config: GenerateConfig, prompts: Prompts) -> None:
        self.config = config
        self.failed: dict[str, int] = {}
        self.why = ""
        if config.endpoint is not None:
            self.endpoint = Endpoint(config)
            self.facts: dict[str, Any] = {"model": config.endpoint.model, "endpoint": self.endpoint.url}
            return
        from stage1_teacher.generate_local import open_local, plan, teacher_facts  # torch, for a model that runs here

        assert config.teacher is not None, "validated: one of the two"
        self.local = open_local(config.teacher)
        self.batches = plan(self.local, prompts.prompts, config)
        self.facts = teacher_facts(self.local, config.teacher)

    def answer(self, asked: Sequence[Job], done: set[Key], save: _Saving) -> None:
        if self.config.endpoint is not None:
            pool = Pool(self.endpoint, iter(asked), save)
            try:
                pool.run()
            finally:
                self.failed, self.why = dict(pool.failed), pool.said
            return
        from stage1_teacher.generate_local import local_answers

        for row in local_answers(self.local, self.batches, done, self.config):
            save(row)


def _record(config: GenerateConfig, prompts: Prompts, teacher: _Teacher) -> dict[str, Any]:
    """generate.json. What may change between two runs of one folder is not among `prompts`, `teacher` and `settings`."""
    names = ("style", "temperature", "top_p", "max_new_tokens", "seed")
    libraries = ("codestill", "torch", "transformers") if config.teacher is not None else ("codestill",)
    return {
        "format": FORMAT,
        "prompts": {"count": len(prompts.prompts), "sha256": prompts.sha256},
        "teacher": teacher.facts,
        "settings": {name: getattr(config, name) for name in names},
        "left_out": prompts.left_out,
        "begun": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "made_with": {name: version(name) for name in libraries},
    }


def _say_before(config: GenerateConfig, prompts: Prompts, asked: int, wanted: int, expected: float | None) -> None:
    lines = [
        f"{len(prompts.prompts)} prompts, {config.samples} answers each from {config.name}: {asked} of {wanted} to ask"
    ]
    lines += [f"left out: {count} {reason}" for reason, count in prompts.left_out.items()]
    if expected is not None:
        how = f"prompts at {CHARS_PER_TOKEN} letters a token, answers at {config.max_new_tokens} tokens"
        if asked < wanted:
            how = f"prompts at {CHARS_PER_TOKEN} letters a token, answers as long as those there"
        lines.append(f"expected cost ${expected:.4f} in all ({how})")
    print("\n".join(lines), file=sys.stderr)


def _bar(total: int, initial: int) -> Any:
    return tqdm(total=total, initial=initial, unit="answer", desc="generate", file=sys.stderr, mininterval=1.0)


def failure(facts: Mapping[str, Any]) -> RunError | None:
    """The error that a run ends with in which questions stayed without an answer."""
    count = sum(facts["failed"].values())
    if not count:
        return None
    kinds = ", ".join(f"{number} {kind}" for kind, number in facts["failed"].items())
    return RunError(
        f"{facts['answers']}: {count} of {facts['wanted']} answers missing",
        expected="an answer to every question",
        got=f"{kinds}; the last: {facts['why']}",
        do="run the same command again to ask for these alone",
    )


def text_of(facts: Mapping[str, Any]) -> str:
    """The facts in two lines."""
    tokens = f"{facts['prompt_tokens']} prompt and {facts['completion_tokens']} answer tokens"
    guessed = f" ({facts['estimated']} answers counted by the rule)" if facts["estimated"] else ""
    cost = f", ${facts['usd']:.4f}" if facts["usd"] is not None else ""
    return (
        f"{facts['answers']}: {facts['there']} of {facts['wanted']} answers, {facts['new']} of them new, "
        f"in {facts['seconds']:.1f} s\n{tokens}{guessed}{cost}"
    )
