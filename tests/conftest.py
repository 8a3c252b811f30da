"""Fixtures that several test files use. Not for helpers of one test file: those stand in that file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from stage2_student.config import TrainConfig

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub; requires_hub tests unset it themselves
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models only lose by threads that wait for each other

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real inputs that developers have beside the checkout; users do not, so the test skips."""
    folder = Path(os.environ.get("CODESTILL_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "SHA256SUMS").is_file():
        pytest.skip(f"real inputs not found at {folder} (set CODESTILL_DATA)")
    return folder


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small caches for a student: to learn from, to be scored on, a stranger's."""
    from student_cache import make_caches  # torch, which most test files do without

    return make_caches(tmp_path_factory.mktemp("caches"))


@pytest.fixture
def config(caches: Path, tmp_path: Path) -> Callable[..., TrainConfig]:
    """The config of a student that trains in a second, with changes."""
    from student_cache import make_config

    return lambda **changes: make_config(tmp_path, caches, changes)
