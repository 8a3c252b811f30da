"""The students of a sweep as models to score: stage 2 leaves `sweep.json` in its folder, and that is all eval knows of it.

NOT for how a sweep is run or reported (stage 2).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from eval.config import EvalConfig, ModelSpec
from shared.errors import UsageError

SWEEP = "sweep.json"
LONGEST = 100  # characters of a name
_RUN = re.compile("[0-9a-f]{12}")


def with_sweeps(config: EvalConfig) -> EvalConfig:
    """The config with every finished run of its sweeps among the models, named by what sets it apart.

    Raises:
        UsageError: a folder holds no sweep, or none of its runs has finished.
    """
    names = {model.name for model in config.models}
    models = list(config.models)
    for folder in config.sweeps:
        for run in _finished(folder):
            label = run["label"][:LONGEST].strip() or run["run"]
            name = label if label not in names else f"{label} {run['run']}"
            names.add(name)
            models.append(ModelSpec(name=name, path=str(folder / run["run"]), kind="student"))
    return config.model_copy(update={"models": models, "sweeps": ()})


def _finished(folder: Path) -> list[dict[str, Any]]:
    what, do = f"sweep {folder}", "name the `out` of a sweep that has finished"
    try:
        runs = json.loads((folder / SWEEP).read_bytes())["runs"]
        known = all(_RUN.fullmatch(run["run"]) and isinstance(run["label"], str) for run in runs)
    except (OSError, ValueError, KeyError, TypeError):
        known, runs = False, []
    if not known:
        raise UsageError(what, expected=f"a {SWEEP} that stage 2 wrote", got="none", do=do)
    finished = sorted((run for run in runs if run.get("status") == "finished"), key=lambda run: str(run["run"]))
    if not finished:
        raise UsageError(
            what, expected="a finished run", got=f"none of {len(runs)}", do="run the sweep's command again"
        )
    return finished
