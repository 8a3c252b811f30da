"""Verdicts: one line of verdicts.jsonl each, and which samples of a file are judged already.

NOT for judging (eval/judge.py) or for scores made of verdicts (eval/pass_at_k.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypedDict, cast, get_args

from shared.errors import UsageError
from shared.files import read_jsonl, repair_jsonl

Outcome = Literal["passed", "failed", "timeout", "memory", "syntax", "crashed", "forbidden"]
"""passed: every official test held. failed: an assertion or an exception. timeout: too much CPU time, or asleep.
memory: out of its memory limit. syntax: does not compile. crashed: the process ended before the tests did.
forbidden: it died of something the sandbox denies (files, network, processes, system calls)."""

SampleKey = tuple[str, int]
"""task_id and index."""


class Verdict(TypedDict):
    """One judged sample; `cpu_s` and `wall_s` in seconds; `isolation` names what confined the program."""

    task_id: str
    index: int
    passed: bool
    verdict: Outcome
    detail: str
    cpu_s: float
    wall_s: float
    isolation: str


def read_verdicts(path: Path) -> list[Verdict]:
    """The verdicts in a file, in file order.

    Raises:
        UsageError: no such file, or a line that is no verdict; names file and line.
    """
    verdicts = []
    for number, row in enumerate(read_jsonl(path), 1):
        if not set(Verdict.__annotations__) <= set(row) or row["verdict"] not in get_args(Outcome):
            do = "remove the line or judge again into a new file"
            raise UsageError(f"{path} row {number}", expected="a verdict", got="other fields", do=do)
        verdicts.append(cast(Verdict, row))
    return verdicts


def judged_already(path: Path) -> set[SampleKey]:
    """The samples whose verdict a file holds, for `judge(done=...)`; an absent file holds none.

    A last line that a kill left unfinished is cut off, so that the caller can go on appending.
    """
    if not path.is_file():
        return set()
    repair_jsonl(path)
    return {(verdict["task_id"], verdict["index"]) for verdict in read_verdicts(path)}
