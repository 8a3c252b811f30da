"""`python -m stage2_student`: the command line. Not for the work (train.py), which is imported only when asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shared.cli import ConfigArg, Overrides, new_app, run
from shared.config import load_config
from stage2_student.config import TrainConfig

app = new_app("Train students from a cache; no teacher in memory.")


@app.callback()
def stage2() -> None:
    """Train students from a cache; no teacher in memory."""


@app.command()
def train(config: ConfigArg, overrides: Overrides = None) -> None:
    """Train one student; run again after a crash, it goes on."""
    checked = load_config(TrainConfig, config, overrides or [])
    from stage2_student.train import train as train_student

    train_student(checked)
    print(checked.out)


@app.command()
def push(
    directory: Annotated[Path, typer.Argument(metavar="RUN", help="the `out` of a finished training")],
    url: Annotated[str, typer.Argument(metavar="URL", help="hf://org/name or hf://org/name@branch")],
) -> None:
    """Put a finished student on the Hugging Face hub, with its model card."""
    from stage2_student.push import push as push_student

    print(f"{url}: commit {push_student(directory, url)}")


def main() -> None:
    """Entry point of the console script."""
    run(app)


if __name__ == "__main__":
    main()
