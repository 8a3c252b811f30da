"""pass@k against brute force, and its interval."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from eval.pass_at_k import pass_at_k, score
from shared.errors import UsageError


@pytest.mark.parametrize("samples", range(1, 9))
def test_equals_the_share_of_all_draws_with_a_pass(samples: int) -> None:
    for passed in range(samples + 1):
        outcomes = [True] * passed + [False] * (samples - passed)
        for k in range(1, samples + 1):
            draws = list(combinations(outcomes, k))
            assert pass_at_k(samples, passed, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_large_counts_do_not_overflow() -> None:
    # log C(n - c, k) - log C(n, k) by lgamma, an independent route
    from math import exp, lgamma

    def log_choose(n: int, k: int) -> float:
        return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1)

    expected = 1 - exp(log_choose(100_000 - 37, 500) - log_choose(100_000, 500))
    assert pass_at_k(100_000, 37, 500) == pytest.approx(expected, rel=1e-6)


def test_more_draws_than_samples_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        pass_at_k(5, 2, 10)
    assert str(error.value) == ("pass@10: expected at least 10 samples a task, got 5; raise samples or lower k")


def test_score_is_the_mean_over_tasks_with_an_interval_around_it() -> None:
    found = score([(10, 0), (10, 10), (10, 5), (10, 1)], 1)
    assert found.value == pytest.approx((0 + 1 + 0.5 + 0.1) / 4)
    assert 0 <= found.low < found.value < found.high <= 1
    assert found == score([(10, 0), (10, 10), (10, 5), (10, 1)], 1)  # the bootstrap has a fixed seed


def test_interval_has_the_width_of_the_normal_approximation() -> None:
    rng = np.random.default_rng(5)
    passed = rng.binomial(1, 0.3, size=400)
    found = score([(1, int(one)) for one in passed], 1)
    sigma = np.sqrt(passed.mean() * (1 - passed.mean()) / len(passed))
    assert found.high - found.low == pytest.approx(2 * 1.96 * sigma, rel=0.06)


def test_one_task_that_passes_has_an_interval_of_no_width() -> None:
    found = score([(3, 3)], 2)
    assert (found.value, found.low, found.high) == (1.0, 1.0, 1.0)
