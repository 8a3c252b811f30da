"""What a search tries next: drawn at random, or by Optuna's TPE from what the runs before it came to.

A trial follows from seed, its number and (TPE) the history alone, so a killed sweep goes on as it would have. Not for
running trials (sweep.py) nor for stopping them (asha.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from shared.errors import UsageError
from stage2_student.sweep_config import HIGHER_IS_BETTER, Metric, Overrides, Search, Space
from stage2_student.sweep_runs import Status

DIGITS = 6  # significant ones of a drawn number: enough for any setting, and readable


@dataclass(frozen=True, slots=True)
class Tried:
    """A trial begun before: how it stands and its newest validation metric, at `step`."""

    overrides: Overrides
    status: Status
    value: float | None = None
    step: int = 0


def require_sampler(search: Search) -> None:
    """Refuse a sampler that is not installed.

    Raises:
        UsageError: names the extra.
    """
    if search.sampler == "optuna" and find_spec("optuna") is None:
        do = "pip install 'codestill[optuna]', or set search.sampler: random"
        raise UsageError("search.sampler", expected="the package optuna", got="not installed", do=do)


def at_random(search: Search, number: int) -> Overrides:
    """Trial `number`, 0 <= number."""
    draw = np.random.default_rng([search.seed, number])
    return {field: _drawn(space, draw) for field, space in search.space.items()}


def _drawn(space: Space, draw: np.random.Generator) -> Any:
    if space.choice is not None:
        return space.choice[int(draw.integers(len(space.choice)))]
    if space.integer is not None:
        return int(draw.integers(space.integer[0], space.integer[1], endpoint=True))
    if space.uniform is not None:
        return _rounded(draw.uniform(*space.uniform), space.uniform)
    assert space.log_uniform is not None
    return _rounded(math.exp(draw.uniform(*np.log(space.log_uniform))), space.log_uniform)


def _rounded(value: float, ends: tuple[float, float]) -> float:
    return min(max(float(f"{value:.{DIGITS}g}"), ends[0]), ends[1])


def corners(search: Search) -> list[Overrides]:
    """Trials with every choice and both ends of every range in one of them: what is checked before anything starts."""
    rows = max(len(space.ends) for space in search.space.values())
    return [{field: space.ends[row % len(space.ends)] for field, space in search.space.items()} for row in range(rows)]


def by_optuna(search: Search, metric: Metric, number: int, history: Sequence[Tried]) -> Overrides:
    """Trial `number` by the tree-structured Parzen estimator (Bergstra et al. 2011), as Optuna has it.

    A study in memory is told the whole history each time, so nothing but the sweep's own ledger has to survive a crash.
    Running trials count as bad ones (Optuna's constant liar), so that trials side by side differ.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=search.seed + number)
    directions = optuna.study.StudyDirection
    direction = directions.MAXIMIZE if metric in HIGHER_IS_BETTER else directions.MINIMIZE
    study = optuna.create_study(sampler=sampler, direction=direction)
    distributions = {field: _distribution(space) for field, space in search.space.items()}
    for tried in history:
        if not _inside(search, tried.overrides):
            continue  # the space was changed since
        study.add_trial(_as_trial(search, tried, distributions))
    params = study.ask(distributions).params
    return {field: _from_param(space, params[field]) for field, space in search.space.items()}


def _inside(search: Search, overrides: Overrides) -> bool:
    """Whether the trial could be drawn from the space as it is now."""
    return overrides.keys() == search.space.keys() and all(
        value in space.choice if space.choice is not None else space.ends[0] <= value <= space.ends[1]
        for space, value in ((space, overrides[field]) for field, space in search.space.items())
    )


def _as_trial(search: Search, tried: Tried, distributions: Mapping[str, Any]) -> Any:
    from optuna.trial import TrialState, create_trial

    ends = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}
    state = ends.get(tried.status, TrialState.RUNNING)
    known = tried.value is not None and tried.status in ("finished", "stopped")
    params = {field: _to_param(space, tried.overrides[field]) for field, space in search.space.items()}
    return create_trial(
        state=state,
        value=tried.value if state == TrialState.COMPLETE else None,
        params=params,
        distributions=dict(distributions),
        intermediate_values={tried.step: tried.value} if known and tried.value is not None else {},
    )


def _distribution(space: Space) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.choice is not None:
        return CategoricalDistribution(range(len(space.choice)))  # a choice may be a whole section
    if space.integer is not None:
        return IntDistribution(*space.integer)
    pair = space.uniform or space.log_uniform
    assert pair is not None
    return FloatDistribution(*pair, log=space.log_uniform is not None)


def _to_param(space: Space, value: Any) -> Any:
    return space.choice.index(value) if space.choice is not None else value


def _from_param(space: Space, value: Any) -> Any:
    if space.choice is not None:
        return space.choice[value]
    pair = space.uniform or space.log_uniform
    return value if pair is None else _rounded(value, pair)
