"""Every config that ships loads, and its JSON Schema in docs/schemas/ is the one the code has."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel

from eval.config import EvalConfig
from shared.config import load_config, schema_text
from stage1_teacher.config import CaptureConfig
from stage2_student.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
MODELS: dict[str, type[BaseModel]] = {
    "stage1_teacher": CaptureConfig,
    "stage2_student": TrainConfig,
    "eval": EvalConfig,
}
SCHEMAS = {"capture": CaptureConfig, "train": TrainConfig, "eval": EvalConfig}
CONFIGS = sorted(path for package in MODELS for path in (ROOT / package / "configs").glob("*.yaml"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_shipped_config_loads(path: Path) -> None:
    load_config(MODELS[path.relative_to(ROOT).parts[0]], path)


def test_every_package_ships_its_demo() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in CONFIGS if path.name.startswith("demo")} == set(MODELS)


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_config_names_its_schema(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.split("=", 1)[1]).resolve().is_file()


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_current(name: str) -> None:
    path = ROOT / "docs" / "schemas" / f"{name}.json"
    assert path.read_text(encoding="utf-8") == schema_text(SCHEMAS[name]), "run `make schemas`"
