"""Configs: strict, overridable, relative to their file. Not the shipped configs: test_configs.py loads those."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import Field

from shared.config import ConfigPath, ModelRef, StrictModel, load_config, schema_text
from shared.errors import UsageError


class Inner(StrictModel):
    learning_rate: float = Field(5e-5, description="per step")
    layers: int = Field(2, description="count", ge=1)


class Outer(StrictModel):
    out: ConfigPath = Field(description="directory")
    teacher: ModelRef = Field("org/name", description="model")
    student: Inner = Field(default_factory=Inner, description="section")
    many: list[Inner] = Field(default_factory=list, description="sections")


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_5e_5_is_a_number_and_paths_start_at_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    config = load_config(Outer, write(folder, "out: ../runs\nteacher: ./t\nstudent: {learning_rate: 5e-5}\n"))
    assert config.student.learning_rate == 5e-5
    assert config.out == tmp_path / "runs"
    assert config.teacher == str(folder / "t")
    assert load_config(Outer, write(folder, "out: x\nteacher: org/model\n")).teacher == "org/model"


def test_set_overrides_any_field_and_its_paths_start_at_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "out: runs\nstudent: {layers: 3}\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    overrides = ["out=here", "student.learning_rate=1e-3", "many=[{layers: 4}]", "teacher=./t"]
    config = load_config(Outer, path, overrides)
    assert config.out == elsewhere / "here"
    assert config.teacher == str(elsewhere / "t")
    assert (config.student.learning_rate, config.student.layers) == (1e-3, 3)
    assert config.many[0].layers == 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("out: x\nstudnet: {}\n", "unknown key 'studnet': expected one of many, out, student, teacher; did you mean 'student'?"),
        ("out: x\nstudent: {learning_rte: 1}\n", "unknown key 'student.learning_rte': expected one of layers, learning_rate; did you mean 'learning_rate'?"),
        ("out: x\nmany: [{layer: 1}]\n", "unknown key 'many.0.layer': expected one of layers, learning_rate; did you mean 'layers'?"),
        ("teacher: x\n", "key 'out': expected a value, got nothing; add the key"),
        ("out: x\nstudent: {layers: 0}\n", "key 'student.layers': expected Input should be greater than or equal to 1, got 0; correct the value"),
        ("out: x\nout: y\n", "expected valid YAML, got key 'out' stands twice, line 1; correct the line"),
        ("- 1\n", "expected a mapping of keys, got list; see the README's configs"),
        ("out: [\n", "expected valid YAML"),
    ],
)  # fmt: skip
def test_each_mistake_is_one_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(Outer, write(tmp_path, text))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_override_and_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--set layers: expected a\.b=c"):
        load_config(Outer, write(tmp_path, "out: x\n"), ["layers"])
    with pytest.raises(UsageError, match="no such file"):
        load_config(Outer, tmp_path / "absent.yaml")


def test_schema_names_every_field_with_its_meaning() -> None:
    schema = json.loads(schema_text(Outer))
    assert schema["additionalProperties"] is False
    assert schema["properties"]["out"]["description"] == "directory"
    assert schema["$defs"]["Inner"]["properties"]["layers"]["minimum"] == 1
