"""Every config that ships loads, and its JSON Schema in docs/schemas/ is the one the code has."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from eval.config import EvalConfig
from shared.config import load_config, schema_text
from stage1_teacher.config import CaptureConfig
from stage1_teacher.generate_config import GenerateConfig
from stage1_teacher.select_config import SelectConfig
from stage2_student.config import TrainConfig
from stage2_student.sweep_config import SweepConfig

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("stage1_teacher", "stage2_student", "eval")
SCHEMAS: dict[str, type[BaseModel]] = {
    "capture": CaptureConfig,
    "generate": GenerateConfig,
    "select": SelectConfig,
    "train": TrainConfig,
    "sweep": SweepConfig,
    "eval": EvalConfig,
}
CONFIGS = sorted(path for package in PACKAGES for path in (ROOT / package / "configs").glob("*.yaml"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def schema_of(path: Path) -> Path:
    """What its first line names, for editors."""
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema="), path
    return (path.parent / first.split("=", 1)[1]).resolve()


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_shipped_config_loads(path: Path) -> None:
    load_config(SCHEMAS[schema_of(path).stem], path)


def test_every_package_ships_its_demo() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in CONFIGS if path.name.startswith("demo")} == set(PACKAGES)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_names_its_schema(path: Path) -> None:
    assert schema_of(path).is_file()


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_current(name: str) -> None:
    path = ROOT / "docs" / "schemas" / f"{name}.json"
    assert path.read_text(encoding="utf-8") == schema_text(SCHEMAS[name]), "run `make schemas`"
