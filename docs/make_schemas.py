"""Write docs/schemas/*.json, the JSON Schemas of all configs, so that editors complete and check them (`make schemas`)."""

from __future__ import annotations

from pathlib import Path

from eval.config import EvalConfig
from shared.config import schema_text
from stage1_teacher.config import CaptureConfig
from stage1_teacher.generate_config import GenerateConfig
from stage1_teacher.select_config import SelectConfig
from stage2_student.config import TrainConfig
from stage2_student.sweep_config import SweepConfig

FOLDER = Path(__file__).resolve().parent / "schemas"

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, model in {
        "capture": CaptureConfig,
        "generate": GenerateConfig,
        "select": SelectConfig,
        "train": TrainConfig,
        "sweep": SweepConfig,
        "eval": EvalConfig,
    }.items():
        (FOLDER / f"{name}.json").write_text(schema_text(model), encoding="utf-8")
