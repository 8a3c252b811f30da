"""Fixtures every test file may use. Not for helpers of one test file: those stand in that file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

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
