"""The config of `sweep`: one file, many runs. Not for what a run may be told (config.py) nor for running (sweep.py).

out: ../../runs/sweep
base: {cache: ..., student: {preset: gpt2-44m}, ...}       # a train config, or the path of one; `out` is the sweep's
grid: {learning_rate: [1e-4, 5e-4], student.preset: [gpt2-44m, gpt2-202m]}    # every combination
runs: [{temperature: 1.5, kd_weight: 0.3}, {temperature: 2}]                  # or these
search: {space: {learning_rate: {log_uniform: [1e-5, 1e-3]}}, trials: 20}     # or drawn from these
halving: {min_steps: 100, eta: 3}                                             # stop what lags behind; any of the three
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from shared.config import ConfigPath, StrictModel, apply_override, check_config, load_config, read_config_file
from shared.errors import UsageError
from stage2_student.config import TrainConfig

Overrides = dict[str, Any]
"""Dotted field name of a train config -> value."""

Metric = Literal["kd", "loss", "ce", "perplexity", "agreement"]
HIGHER_IS_BETTER = frozenset({"agreement"})

# Fields whose values give kd, and loss, another meaning: runs that differ in them cannot be compared by it.
KD_MEANS = frozenset({"temperature", "divergence", "form", "cache", "validation"})
LOSS_MEANS = KD_MEANS | {"kd_weight", "ce_weight", "t_squared"}


class Space(StrictModel):
    """The values one field may take: exactly one of these."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = Field(default=None, description="one of these")
    uniform: tuple[float, float] | None = Field(default=None, description="from a to b, all equally likely")
    log_uniform: tuple[float, float] | None = Field(
        default=None, description="from a to b, every factor equally likely"
    )
    integer: tuple[int, int] | None = Field(default=None, alias="int", description="whole numbers from a to b, both in")

    @model_validator(mode="after")
    def _one_range(self) -> Space:
        ranges = (self.uniform, self.log_uniform, self.integer)
        if sum(kind is not None for kind in (self.choice, *ranges)) != 1:
            raise ValueError("exactly one of choice, uniform, log_uniform, int")
        if any(pair is not None and pair[0] >= pair[1] for pair in ranges):
            raise ValueError("two numbers, the smaller one first")
        if self.log_uniform is not None and self.log_uniform[0] <= 0:
            raise ValueError("numbers above 0 for log_uniform")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """Every choice, or the two ends of the range: what is checked before anything starts."""
        found = self.choice or self.uniform or self.log_uniform or self.integer
        assert found is not None
        return found


class Search(StrictModel):
    """Runs drawn from a space."""

    space: dict[str, Space] = Field(description="train field -> values", min_length=1)
    trials: int = Field(description="runs", ge=1)
    seed: int = Field(default=0, description="of the draws", ge=0)
    sampler: Literal["random", "optuna"] = Field(
        default="random", description="optuna: its TPE, which learns from the runs that ended (needs the extra optuna)"
    )


class Halving(StrictModel):
    """ASHA: at min_steps, min_steps * eta, ... optimizer steps the best 1 / eta of the runs seen there go on."""

    min_steps: int = Field(description="optimizer steps of the first rung", ge=1)
    eta: int = Field(default=3, description="one of so many goes on from each rung", ge=2)


class SweepConfig(StrictModel):
    """`python -m stage2_student sweep CONFIG`: a base, and exactly one of grid, runs, search."""

    out: ConfigPath = Field(description="folder of the sweep: a folder a run, report.md, sweep.json, sweep.png")
    base: dict[str, Any] | ConfigPath = Field(description="a train config without `out`, or the path of one")
    grid: dict[str, Annotated[tuple[Any, ...], Field(min_length=1)]] | None = Field(
        default=None, description="train field -> values; every combination is a run", min_length=1
    )
    runs: Annotated[tuple[Overrides, ...], Field(min_length=1)] | None = Field(
        default=None, description="train fields and values of each run"
    )
    search: Search | None = Field(default=None, description="runs drawn from a space")
    halving: Halving | None = Field(default=None, description="stop runs that lag behind (ASHA)")
    metric: Metric = Field(
        default="kd",
        description="of validation, what halving, search and the table's order go by; kd and loss are at each run's own "
        "temperature and weights, so where these vary take ce or agreement",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> SweepConfig:
        if sum(kind is not None for kind in (self.grid, self.runs, self.search)) != 1:
            raise ValueError("exactly one of grid, runs, search")
        return self

    @model_validator(mode="after")
    def _comparable(self) -> SweepConfig:
        means = {"kd": KD_MEANS, "loss": LOSS_MEANS}.get(self.metric, frozenset())
        moving = sorted({field.split(".")[0] for field in self.fields} & means)
        if moving and (self.halving is not None or self.search is not None):
            raise ValueError(
                f"metric: ce or agreement, since runs differ in {moving[0]}, which changes what {self.metric} means"
            )
        return self

    @property
    def fields(self) -> list[str]:
        """Train fields that differ between runs, as written."""
        if self.search is not None:
            return list(self.search.space)
        return list(self.grid or dict.fromkeys(name for run in self.runs or () for name in run))


def listed(config: SweepConfig) -> Iterator[Overrides]:
    """The runs that stand in the file: the grid's combinations, the last field fastest, or the list."""
    if config.grid is not None:
        for values in itertools.product(*config.grid.values()):
            yield dict(zip(config.grid, values, strict=True))
    yield from config.runs or ()


@dataclass(frozen=True, slots=True)
class Base:
    """What all runs share, unchecked, and the two folders where relative paths start: the base's file, the sweep's."""

    data: dict[str, Any]
    folder: Path
    sweep: Path
    name: str


def load_sweep(path: Path, overrides: Sequence[str]) -> tuple[SweepConfig, list[str]]:
    """The sweep in a file, and what of `overrides` (`a.b=c`) goes into the file that its base names, without `base.`."""
    inside = [override for override in overrides if override.startswith("base.")]
    config = load_config(SweepConfig, path, [override for override in overrides if override not in inside])
    if isinstance(config.base, Path):
        return config, [override.removeprefix("base.") for override in inside]
    return load_config(SweepConfig, path, overrides), []


def read_base(config: SweepConfig, path: Path, overrides: Sequence[str] = ()) -> Base:
    """The base of the sweep in the file `path`, with `overrides` put into a base that is a path.

    Raises:
        UsageError: it is a path, and no such file, or not YAML.
    """
    here = path.resolve().parent
    if not isinstance(config.base, Path):
        return Base(config.base, here, here, str(path))
    data = read_config_file(config.base)
    for override in overrides:
        apply_override(data, override)
    return Base(data, config.base.parent, here, str(path))


def resolve(base: Base, overrides: Overrides, out: Path) -> TrainConfig:
    """The checked train config of one run, its folder under `out` not yet named.

    Raises:
        UsageError: a field that does not exist (the nearest known one is named), or a value that cannot be.
    """
    name = f"{base.name}, run {label(overrides)}" if overrides else base.name
    if any(field.split(".")[0] == "out" for field in overrides):
        raise UsageError(name, expected="fields of a run", got="out", do="leave it out: a run's folder is the sweep's")
    data = {**overlaid(base.data, overrides), "out": str(out)}
    config = check_config(TrainConfig, data, base=base.folder, name=name)
    if base.folder == base.sweep:
        return config
    # The base's paths start at its own file, the overrides' at the sweep's.
    theirs = _leaves(config.model_dump(mode="json", exclude_unset=True))
    here = check_config(TrainConfig, data, base=base.sweep, name=name)
    ours = _leaves(here.model_dump(mode="json", exclude_unset=True))
    mixed: dict[str, Any] = {}
    for leaf, value in theirs.items():
        from_sweep = any(f"{leaf}.".startswith(f"{field}.") for field in overrides)
        mixed = overlaid(mixed, {leaf: ours[leaf] if from_sweep else value})
    return check_config(TrainConfig, mixed, base=base.sweep, name=name)


def overlaid(data: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    """A copy of nested `data` with dotted fields set; what is no mapping on the way becomes one."""
    found = copy.deepcopy(data)
    for field, value in overrides.items():
        *parents, last = field.split(".")
        place = found
        for parent in parents:
            inner = place.get(parent)
            place[parent] = place = inner if isinstance(inner, dict) else {}
        place[last] = copy.deepcopy(value)
    return found


def _leaves(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in data.items():
        nested = isinstance(value, dict) and bool(value)
        found |= _leaves(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def label(overrides: Overrides) -> str:
    """What makes a run another one, for people: last part of each field's name and its value."""
    return ", ".join(f"{field.rsplit('.', 1)[-1]} {_short(value)}" for field, value in overrides.items()) or "base"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return "/".join(_short(inner) for inner in value.values())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
