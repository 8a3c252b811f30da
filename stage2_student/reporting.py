"""TensorBoard and Weights & Biases: where a run's reports go, and that a resumed run goes on in the same one.

transformers' own callbacks send the rows; they learn places and names from the environment only. W&B works without a network
when WANDB_MODE=offline is set; `wandb sync` sends the run later. Not for metrics.jsonl (watch.py).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from shared.files import atomic_write
from stage2_student.config import TrainConfig
from stage2_student.ranks import Ranks

TENSORBOARD, WANDB = "tensorboard", "wandb"  # folders in the run's own


@contextmanager
def reporting(config: TrainConfig, ranks: Ranks) -> Iterator[None]:
    """While the body runs, reporters write into the run's folder; the user's own W&B settings come first."""
    wanted: dict[str, str] = {}
    if ranks.first and "tensorboard" in config.report_to:
        wanted["TENSORBOARD_LOGGING_DIR"] = str(config.out / TENSORBOARD)
    if ranks.first and "wandb" in config.report_to:
        ours = {"WANDB_PROJECT": "codestill", "WANDB_DIR": str(config.out), "WANDB_RESUME": "allow"}
        ours["WANDB_RUN_ID"] = _run_id(config)
        wanted |= {name: value for name, value in ours.items() if name not in os.environ}
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        if ranks.first and "wandb" in config.report_to:
            _end_wandb()
        for name in wanted:
            os.environ.pop(name)
        os.environ.update({name: before[name] for name in wanted if name in before})


def _run_id(config: TrainConfig) -> str:
    path = config.out / WANDB / "run-id"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, secrets.token_hex(4))
    return path.read_text()


def _end_wandb() -> None:
    """The run is complete on disk or sent, and wandb's own process has ended."""
    import wandb

    if wandb.run is not None:
        wandb.finish()
    wandb.teardown()
