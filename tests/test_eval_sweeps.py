"""A sweep's students among the models to score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.config import EvalConfig
from eval.sweeps import with_sweeps
from shared.config import check_config
from shared.errors import UsageError

RUNS = [
    {"run": "ec50c00a0de2", "status": "finished", "label": "preset gpt2-202m, temperature 2.0"},
    {"run": "134721a98dc3", "status": "finished", "label": "preset gpt2-44m, temperature 1.5"},
    {"run": "0123456789ab", "status": "failed", "label": "preset gpt2-44m, temperature 9.0"},
    {"run": "ffffffffffff", "status": "finished", "label": "preset gpt2-44m, temperature 1.5"},
]


def config(folder: Path, **changes: Any) -> EvalConfig:
    data = {"out": "out", "sweeps": ["five"], "tasks": [{"name": "embedded"}]} | changes
    return check_config(EvalConfig, data, base=folder, name="test")


def write(folder: Path, value: Any) -> Path:
    (folder / "five").mkdir(exist_ok=True)
    (folder / "five" / "sweep.json").write_text(json.dumps(value))
    return folder


def test_every_finished_run_is_a_student_named_by_what_sets_it_apart(tmp_path: Path) -> None:
    write(tmp_path, {"runs": RUNS})
    teacher = {"name": "t", "path": "org/t", "kind": "teacher"}
    found = with_sweeps(config(tmp_path, models=[teacher]))
    assert [(model.name, model.kind) for model in found.models] == [
        ("t", "teacher"),
        ("preset gpt2-44m, temperature 1.5", "student"),
        ("preset gpt2-202m, temperature 2.0", "student"),
        ("preset gpt2-44m, temperature 1.5 ffffffffffff", "student"),
    ]
    assert found.models[1].path == str(tmp_path / "five" / "134721a98dc3")
    assert with_sweeps(found) == found


@pytest.mark.parametrize(
    "value",
    [[], {}, {"runs": 3}, {"runs": [{"run": "../../etc"}]}, {"runs": [{"run": "ec50c00a0de2", "label": 1}]}],
)
def test_what_is_no_sweep_is_refused(tmp_path: Path, value: Any) -> None:
    write(tmp_path, value)
    with pytest.raises(
        UsageError, match=r"expected a sweep\.json that stage 2 wrote, got none; name the `out` of a sweep"
    ):
        with_sweeps(config(tmp_path))


def test_no_folder_no_finished_run_no_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"expected a sweep\.json"):
        with_sweeps(config(tmp_path))
    write(tmp_path, {"runs": [RUNS[2]]})
    with pytest.raises(UsageError, match="expected a finished run, got none of 1; run the sweep's command again"):
        with_sweeps(config(tmp_path))
    with pytest.raises(UsageError, match="at least one model, or a sweep"):
        config(tmp_path, sweeps=[])
