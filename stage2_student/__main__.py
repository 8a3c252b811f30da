"""`python -m stage2_student`: the command line. Not for the work (train.py), which is imported only when asked for."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from shared.cli import ConfigArg, JsonFlag, Overrides, new_app, print_json, run
from shared.config import load_config
from stage2_student.config import TrainConfig
from stage2_student.sweep_config import load_sweep

if TYPE_CHECKING:
    from shared.jobs import Engine
    from stage2_student.sweep import Sweep

app = new_app("Train students from a cache; no teacher in memory.")


@app.callback()
def stage2() -> None:
    """Train students from a cache; no teacher in memory."""
    # peft, which transformers loads where it is installed, loads this one, which wants a kernel that nothing here uses
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@app.command()
def train(config: ConfigArg, overrides: Overrides = None) -> None:
    """Train one student; run again after a crash, it goes on."""
    checked = load_config(TrainConfig, config, overrides or [])
    from stage2_student.train import train as train_student

    train_student(checked)
    if os.environ.get("RANK", "0") == "0":
        print(checked.out)


@app.command()
def estimate(config: ConfigArg, overrides: Overrides = None, json: JsonFlag = False) -> None:
    """What `train` would take on this machine: parameters, memory, steps, time. The cache's manifest is enough."""
    checked = load_config(TrainConfig, config, overrides or [])
    from stage2_student.estimate_time import Clock
    from stage2_student.sweep_plan import estimate_text

    known = Clock().estimate(checked)
    if json:
        print_json(known.as_json())
    else:
        print(estimate_text(checked, known))


@app.command()
def sweep(
    config: ConfigArg,
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the table of runs and what they would take")] = False,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="runs at once; one a visible GPU, on a CPU one, on Ray what its nodes hold"),
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="this machine, or a Ray cluster")] = "local",
    address: Annotated[
        str | None,
        typer.Option(
            help="of the Ray cluster, auto: the one on this machine; RAY_ADDRESS if absent, else Ray starts here alone"
        ),
    ] = None,
    json: JsonFlag = False,
) -> None:
    """Train many students; run again after a kill, it goes on: finished runs are skipped, broken ones resumed."""
    from stage2_student.sweep import Sweep

    checked, for_base = load_sweep(config, overrides or [])
    whole = Sweep(checked, config, for_base)
    if dry_run:
        _show_plan(whole, jobs, json)
    else:
        _work(whole, lambda: _engine(whole, engine, address, jobs), json)


def _show_plan(whole: Sweep, jobs: int | None, json: bool) -> None:
    from shared.jobs import visible_devices
    from stage2_student.sweep_plan import plan, plan_text

    at_once = jobs or len(visible_devices()) or 1
    planned = plan(whole.planned(), at_once)
    if json:
        print_json({"runs": [row.as_json() for row in planned], "trials_to_draw": whole.to_draw, "at_once": at_once})
    else:
        print(plan_text(planned, at_once, whole.to_draw))


def _work(whole: Sweep, engine: Callable[[], Engine], json: bool) -> None:
    from stage2_student.sweep_report import table

    with redirect_stdout(sys.stderr):  # Ray prints there as it likes
        rows = whole.work(engine)
    notes = whole.notes(rows)
    if json:
        print_json({"out": str(whole.out), "runs": [asdict(row) for row in rows], "notes": notes})
    else:
        print("\n\n".join([table(rows), *notes, str(whole.out / "report.md")]))
    whole.require_all_ended(rows)


def _engine(whole: Sweep, name: str, address: str | None, jobs: int | None) -> Engine:
    if name == "local":
        from shared.jobs import LocalEngine

        return LocalEngine(jobs)
    from shared.jobs_ray import RayEngine

    return RayEngine(address, gpus=whole.gpus, at_once=jobs)


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
