"""pass@k: the unbiased estimator and a bootstrap interval over tasks.

NOT for deciding what passes: eval/judge.py does that.

Source: Chen et al. 2021, "Evaluating Large Language Models Trained on Code" (arXiv 2107.03374), equation 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from shared.errors import UsageError

RESAMPLES = 10_000  # bootstrap draws: the ends of a 95 % interval then move by less than 0.1 of its width
CONFIDENCE = 0.95


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Probability that at least one of k samples, drawn without replacement from those at hand, passes.

    1 - C(n - c, k) / C(n, k), as the product 1 - prod_{i = n-c+1..n} (1 - k / i), which never overflows.

    Args:
        samples: n, completions judged for the task.
        passed: c of them that passed, 0 <= c <= n.
        k: draws, 1 <= k <= n.
    Raises:
        UsageError: k > n, for which there is no unbiased estimate.
    """
    assert 0 <= passed <= samples and k >= 1
    if k > samples:
        raise UsageError(
            f"pass@{k}", expected=f"at least {k} samples a task", got=str(samples), do="raise samples or lower k"
        )
    if samples - passed < k:
        return 1.0
    return float(1.0 - np.prod(1.0 - k / np.arange(samples - passed + 1, samples + 1)))


@dataclass(frozen=True)
class Score:
    """A mean over tasks with its 95 % bootstrap interval; all in [0, 1]."""

    value: float
    low: float
    high: float


def score(counts: Sequence[tuple[int, int]], k: int) -> Score:
    """pass@k over tasks, with a percentile bootstrap interval (10,000 resamples of the tasks, fixed seed).

    The interval covers the choice of tasks: 164 tasks carry about +-0.07 whatever the number of samples.

    Args:
        counts: (samples, passed) of every task.
        k: draws.
    Raises:
        UsageError: a task has fewer than k samples.
    """
    assert counts, "no task has a verdict"
    return mean_of(np.array([pass_at_k(samples, passed, k) for samples, passed in counts]))


def mean_of(per_task: np.ndarray) -> Score:
    """Mean over tasks; percentile bootstrap of the tasks with a fixed seed, so that paired means resample alike."""
    picks = np.random.default_rng(0).multinomial(len(per_task), np.full(len(per_task), 1 / len(per_task)), RESAMPLES)
    means = picks @ per_task / len(per_task)
    edge = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [edge, 1 - edge])
    return Score(float(per_task.mean()), float(low), float(high))


def score_verdicts(passed: Iterable[bool], task_ids: Iterable[str], k: int) -> Score:
    """`score` from one verdict a sample and the id of its task.

    Raises:
        UsageError: a task has fewer than k samples.
    """
    counts: dict[str, tuple[int, int]] = {}
    for good, task_id in zip(passed, task_ids, strict=True):
        samples, right = counts.get(task_id, (0, 0))
        counts[task_id] = samples + 1, right + bool(good)
    return score(list(counts.values()), k)
