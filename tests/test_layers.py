"""The structure of the code, read from its imports: arrows, from-imports, file length. Not for behaviour.

stage1_teacher | stage2_student | eval   ->   cache   ->   shared
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "shared": set(),
    "cache": {"shared"},
    "stage1_teacher": {"cache", "shared"},
    "stage2_student": {"cache", "shared"},
    "eval": {"cache", "shared"},
}
MOST_LINES = 400
SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
EVERY_FILE = sorted([*SOURCES, *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> list[tuple[str, bool]]:
    """(imported module, whether by `from`) of every import in the file, function bodies included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(path)}: relative import"
            found.append((node.module or "", True))
    return found


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").replace("/", ".")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_arrows_point_down(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    used = {module.split(".")[0] for module, _ in imports(path)} & set(MAY_IMPORT)
    assert used <= MAY_IMPORT[package] | {package}, f"{package} may import {MAY_IMPORT[package] or 'nothing of ours'}"


@pytest.mark.parametrize("path", EVERY_FILE, ids=name_of)
def test_our_packages_are_imported_by_from(path: Path) -> None:
    plain = [module for module, is_from in imports(path) if not is_from and module.split(".")[0] in MAY_IMPORT]
    assert not plain, f"`import {plain[0]}` hides a builtin or functools.cache: write `from ... import ...`"


@pytest.mark.parametrize("path", EVERY_FILE, ids=name_of)
def test_files_are_short_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    if path.name != "__init__.py":
        assert ast.get_docstring(ast.parse(text)), "a file opens with what it is for and what it is not for"


def test_no_import_goes_round() -> None:
    ours = {module_of(path): path for path in SOURCES}
    arrows = {name: {module for module, _ in imports(path)} & set(ours) - {name} for name, path in ours.items()}
    while leaves := {name for name, targets in arrows.items() if not targets & set(arrows)}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"import cycle among {sorted(arrows)}"


def test_init_files_are_empty_and_tests_are_flat() -> None:
    assert all(not (ROOT / package / "__init__.py").read_text() for package in MAY_IMPORT)
    assert all((ROOT / package / "py.typed").is_file() for package in MAY_IMPORT)
    assert not [path for path in (ROOT / "tests").rglob("*.py") if path.parent != ROOT / "tests"]


FORBIDDEN = re.compile(r"trust_remote_code\s*=\s*True|pickle\.loads?\(|except:|NotImplementedError|shell=True")


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_nothing_forbidden(path: Path) -> None:
    found = FORBIDDEN.search(path.read_text(encoding="utf-8"))
    assert found is None, f"{name_of(path)} has {found and found.group()}"
