"""metrics.jsonl, its lines for people, and the picture. Not for the numbers in them (test_stage2_student_train.py)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from shared.errors import UsageError
from shared.files import read_jsonl, write_jsonl
from stage2_student.curves import draw_curves, series
from stage2_student.watch import as_row, cut_back, line_of, validation_at

ROWS = [
    {"step": 2, "epoch": 0.5, "split": "train", "loss": 3.0, "ce": 3.0, "tokens_per_second": 1234.5},
    {"step": 4, "epoch": 1.0, "split": "train", "loss": 2.5, "kd": 1.0, "ce": 3.0},
    {
        "step": 4,
        "epoch": 1.0,
        "split": "validation",
        "loss": 2.6,
        "kd": 1.1,
        "ce": 3.1,
        "perplexity": 22.2,
        "agreement": 0.25,
    },
    {"step": 6, "epoch": 1.5, "split": "train", "loss": 2.0, "ce": 2.0},
]


def test_cut_back_drops_what_comes_after_the_checkpoint_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write_jsonl(path, ROWS)
    with path.open("a") as file:
        file.write('{"step": 7, "spl')
    cut_back(path, 4)
    assert list(read_jsonl(path)) == ROWS[:3]
    cut_back(path, 0)
    assert path.read_text() == ""
    cut_back(tmp_path / "none.jsonl", 0)
    assert not (tmp_path / "none.jsonl").exists()


def test_the_last_validation_is_found(tmp_path: Path) -> None:
    assert validation_at(tmp_path / "none.jsonl", None) is None
    write_jsonl(tmp_path / "metrics.jsonl", ROWS)
    assert validation_at(tmp_path / "metrics.jsonl", None) == ROWS[2] == validation_at(tmp_path / "metrics.jsonl", 4)
    assert validation_at(tmp_path / "metrics.jsonl", 2) is None


def test_rows_keep_what_belongs_to_them() -> None:
    assert as_row({"train_runtime": 3.0, "train_loss": 1.0}, 5, 1.0) is None
    train = as_row({"loss": 1.0, "ce": 1.0, "learning_rate": 0.1, "total_flos": 5, "epoch": 1.0}, 5, 1 / 3)
    assert train == {"step": 5, "epoch": 0.333333, "split": "train", "loss": 1.0, "ce": 1.0, "learning_rate": 0.1}
    validation = as_row({"eval_loss": 1.0, "eval_kd": 0.5, "epoch": 1.0}, 5, 1.0)
    assert validation == {"step": 5, "epoch": 1.0, "split": "validation", "loss": 1.0, "kd": 0.5}


def test_lines_for_people() -> None:
    assert line_of(ROWS[0], 8) == "train      step 2/8 epoch 0.50  loss 3.0000  ce 3.0000  1,234 tokens/s"
    assert line_of(ROWS[2], 8).endswith("loss 2.6000  kd 1.1000  ce 3.1000  perplexity 22.20  agreement 0.250")
    diverged = {**ROWS[2], "perplexity": math.exp(700)}
    assert line_of(diverged, 8).endswith("perplexity 1.01e+304  agreement 0.250")


def test_a_line_leaves_out_rows_without_its_number() -> None:
    assert series(ROWS, "train", "loss") == ([2, 4, 6], [3.0, 2.5, 2.0])
    assert series(ROWS, "train", "kd") == ([4], [1.0])


def test_the_picture_is_a_png_and_needs_metrics(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", ROWS)
    draw_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png", "a run")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.jsonl", "curves.png"}
    with pytest.raises(UsageError, match="no such file"):
        draw_curves(tmp_path / "none.jsonl", tmp_path / "curves.png", "a run")
