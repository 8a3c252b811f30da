"""Training curves: what is read from metrics.jsonl, and the six panels."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from eval.curves import Curves, draw_curves, read_curves
from shared.errors import UsageError
from shared.files import write_jsonl


def test_reads_both_splits_and_passes_over_other_rows(tmp_path: Path) -> None:
    rows = [
        {"step": 1, "epoch": 0.1, "split": "train", "loss": 5.5, "kd": 6.0, "ce": 5.0},
        {"step": 2, "epoch": 0.2, "split": "train", "loss": 5.0, "kd": 5.5, "ce": 4.5},
        {"step": 2, "epoch": 0.2, "split": "validation", "loss": 5.25, "ce": 4.75},
        {"step": 2, "train_runtime": 12.5},
    ]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    assert read_curves("a", tmp_path / "metrics.jsonl").panels == {
        ("train", "loss"): [(1, 5.5), (2, 5.0)],
        ("train", "kd"): [(1, 6.0), (2, 5.5)],
        ("train", "ce"): [(1, 5.0), (2, 4.5)],
        ("validation", "loss"): [(2, 5.25)],
        ("validation", "ce"): [(2, 4.75)],
    }


def test_a_row_that_is_no_number_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "m.jsonl", [{"step": 1, "split": "train", "loss": "low"}])
    with pytest.raises(UsageError) as error:
        read_curves("a", tmp_path / "m.jsonl")
    assert str(error.value) == (
        f"{tmp_path / 'm.jsonl'} row 1: expected numbers for step and loss, got 1 and 'low'; repair the row"
    )


def test_six_panels_are_a_png_that_depends_on_the_points() -> None:
    one = Curves("a", {("train", "loss"): [(1, 2.0), (2, 1.0)], ("validation", "loss"): [(2, 1.5)]})
    two = Curves("b", {("train", "loss"): [(1, 2.5), (2, 2.0)]})
    png = draw_curves([one, two])
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", png[16:24])
    assert width > 1200 and height > 700
    assert draw_curves([one, two]) == png
    assert draw_curves([one]) != png
