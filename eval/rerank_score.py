"""What a ranking of samples is worth: pass rates before and after it, on the same samples.

NOT for making rankings (eval/codet.py, eval/clusters.py, eval/verifier.py).

Source of pass@k of a ranking: evaluation.py of CodeT's authors (arXiv 2207.10397): one sample at random from each of the
k best groups, samples of equal score being one group; with fewer groups than k, round again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.pass_at_k import Score, mean_of, pass_at_k

RANKED_AT = (1, 2, 10)
"""k of pass@k before and after."""


@dataclass(frozen=True)
class Group:
    """Samples of one score; `samples` are places in the task's list of samples."""

    score: float
    samples: tuple[int, ...]


def ranked(scores: Sequence[float | None]) -> list[Group]:
    """Groups, best first. None is no score: such samples are left out, unless no sample has one; then all tie at 0."""
    known = sorted({score for score in scores if score is not None}, reverse=True)
    if not known:
        return [Group(0.0, tuple(range(len(scores))))]
    return [Group(best, tuple(place for place, score in enumerate(scores) if score == best)) for best in known]


def ranked_pass_at_k(groups: Sequence[Group], passed: Sequence[bool], k: int) -> float:
    """Probability that one of k samples, chosen by the ranking, passes.

    Args:
        groups: as `ranked` makes them; one group of all samples is no ranking and gives the usual pass@k.
        passed: of every sample of the task.
        k: samples chosen, at most as many as there are.
    """
    if len(groups[0].samples) == len(passed):
        return pass_at_k(len(passed), sum(passed), k)
    wrong = 1.0
    for pick in range(k):
        samples = groups[pick % len(groups)].samples
        wrong *= 1 - sum(passed[place] for place in samples) / len(samples)
    return 1 - wrong


@dataclass(frozen=True)
class Gain:
    """Means over tasks with 95 % bootstrap intervals; `gain` is of the paired differences after - before.

    `chosen` is the share of tasks whose one chosen sample passes; `after` takes the mean of those that tie with it.
    """

    k: int
    tasks: int
    before: Score
    after: Score
    gain: Score
    chosen: float | None


def gain_of(rankings: Sequence[Sequence[Group]], passed: Sequence[Sequence[bool]], k: int) -> Gain | None:
    """pass@k before and after; None where a task has fewer than k samples.

    Args:
        rankings: of every task.
        passed: of every sample of every task.
        k: samples chosen.
    """
    if min(map(len, passed)) < k:
        return None
    before = np.array([pass_at_k(len(row), sum(row), k) for row in passed])
    after = np.array([ranked_pass_at_k(groups, row, k) for groups, row in zip(rankings, passed, strict=True)])
    chosen = [row[groups[0].samples[0]] for groups, row in zip(rankings, passed, strict=True)]
    share = sum(chosen) / len(chosen) if k == 1 else None
    return Gain(k, len(passed), mean_of(before), mean_of(after), mean_of(after - before), share)
