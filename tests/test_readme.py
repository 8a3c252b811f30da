"""The README stays true: every file is in its tree, every command it names exists, every config it names loads."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stage1_teacher.survey import ADVISED

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGES = ("shared", "cache", "stage1_teacher", "stage2_student", "eval", "benchmarks")


def test_tree_names_every_file_and_no_other() -> None:
    tree = README.split("## Files", 1)[1].split("## ", 1)[0]
    folder, named = "", set()
    for line in tree.splitlines():
        if match := re.match(r"^    (\w+)/\s", line):
            folder = match[1]
        elif match := re.match(r"^      (\w+\.py)\s", line):
            named.add(f"{folder}/{match[1]}")
    there = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).glob("*.py")
        if path.name != "__init__.py"
    }
    assert named == there


@pytest.mark.parametrize("package", ["stage1_teacher", "cache", "stage2_student", "eval"])
def test_commands_of_the_table_exist(package: str) -> None:
    verbs = {
        verb
        for found in re.findall(rf"python -m {package} ([a-z|]+)", README.replace("\\|", "|"))
        for verb in found.split("|")
    }
    assert verbs, f"the README names no command of {package}"
    done = subprocess.run(
        [sys.executable, "-m", package, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    missing = [verb for verb in sorted(verbs) if not re.search(rf"\b{verb}\b", done.stdout)]
    assert not missing


def test_configs_it_names_are_there() -> None:
    shipped = {
        path.name
        for package in ("stage1_teacher", "stage2_student", "eval")
        for path in (ROOT / package).rglob("*.yaml")
    }
    for name in set(re.findall(r"\b[\w/.-]+\.yaml\b", README)) - {ADVISED, f"runs/mbpp/cache-survey/{ADVISED}"}:
        assert (ROOT / name).is_file() or name in shipped, name


def test_makefile_has_the_targets_it_names() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"\bmake (demo|test|check|bench|schemas)\b", README)):
        assert re.search(rf"^{target}:", makefile, re.M), target
