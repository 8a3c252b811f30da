"""Stage 1's command line: `python -m stage1_teacher capture CONFIG`. Not for the work itself (capture.py)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli import ConfigArg, JsonFlag, Overrides, new_app, print_json, run
from shared.config import load_config
from shared.errors import UsageError
from stage1_teacher.parts import Part
from stage1_teacher.signals import Terminated, terminable

if TYPE_CHECKING:
    from cache.manifest import Manifest
    from stage1_teacher.config import CaptureConfig
    from stage1_teacher.rates import Rates

app = new_app("Let a teacher read a corpus once and leave a cache of what it believed.")
PartOption = Annotated[
    str | None,
    typer.Option(
        "--part",
        metavar="I/N",
        help="capture part I of N alone, counted from 1, into CACHE-part-I-of-N; `python -m cache merge` joins the parts. "
        "A Slurm array of 16 (--array=1-16) writes --part $SLURM_ARRAY_TASK_ID/16; under torchrun each process takes its own",
    ),
]
PartsOption = Annotated[
    int | None,
    typer.Option(
        "--parts",
        metavar="N",
        min=1,
        help="capture N parts side by side and merge them; as many as run at once if only --engine is given",
    ),
]
EngineOption = Annotated[
    str | None,
    typer.Option(
        "--engine",
        metavar="local|ray",
        help="where the parts run: local is one process a visible GPU, or N on the CPU; ray is a cluster (extra `ray`)",
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="of the Ray cluster, auto: the one on this machine; RAY_ADDRESS if absent, else Ray starts here alone",
    ),
]
ShapeOption = Annotated[
    Path | None,
    typer.Option("--shape", metavar="FILE", help="take the tail's shape that `fit` wrote, instead of fitting it"),
]


@app.callback()
def _stage1() -> None:
    """Let a teacher read a corpus once and leave a cache of what it believed."""


@app.command()
def capture(
    config: ConfigArg,
    overrides: Overrides = None,
    part: PartOption = None,
    shape: ShapeOption = None,
    parts: PartsOption = None,
    engine: EngineOption = None,
    address: AddressOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Text -> cache directory. Run again after a crash, it goes on."""
    from stage1_teacher.config import CaptureConfig

    settings = load_config(CaptureConfig, config, overrides or [])
    if parts is not None or engine is not None:
        if part is not None:
            do = "leave out --part to capture all of them, or --parts and --engine to capture one"
            raise UsageError(f"--part {part}", expected="no --parts nor --engine beside it", got="both", do=do)
        typed = [str(config), *(word for override in overrides or [] for word in ("--set", override))]
        _capture_everywhere(settings, typed, parts, engine or "local", address, shape, as_json)
        return
    if address is not None:
        raise UsageError(f"--address {address}", expected="--engine ray", got="no --engine", do="add --engine ray")
    chosen = Part.of_rank(os.environ) if part is None else Part.parse(part)
    first = chosen is None or part is not None or chosen.number == 1  # of torchrun's processes one speaks
    directory = settings.cache if chosen is None else chosen.directory(settings.cache)
    rates: list[Rates] = []  # of this run, if it reads anything
    start = time.perf_counter()
    with terminable():
        try:
            from stage1_teacher.capture import capture as run_capture  # torch loads only after the config is right

            if part is None and chosen is not None:
                from stage1_teacher.machines import on_own_device

                settings = on_own_device(settings, os.environ)
            manifest = run_capture(settings, part=chosen, shape=shape, progress=first, told=rates.append)
        except Terminated:
            _say_stopped([directory], as_json)
            return
    seconds = time.perf_counter() - start
    _say_captured(settings.cache, manifest, chosen, seconds, as_json, next_step=first, rates=rates)


def _capture_everywhere(
    settings: CaptureConfig,
    typed: list[str],
    parts: int | None,
    kind: str,
    address: str | None,
    shape: Path | None,
    as_json: bool,
) -> None:
    from stage1_teacher.machines import capture_everywhere, open_engine
    from stage1_teacher.parts import parts_beside

    start = time.perf_counter()
    with terminable():
        try:
            with redirect_stdout(sys.stderr), open_engine(kind, address, settings, parts) as engine:  # Ray prints there
                manifest = capture_everywhere(settings, typed, engine, parts=parts, shape=shape)
        except Terminated:
            _say_stopped(parts_beside(settings.cache), as_json)
            return
    _say_captured(settings.cache, manifest, None, time.perf_counter() - start, as_json)


def _say_captured(
    cache: Path,
    manifest: Manifest,
    part: Part | None,
    seconds: float,
    as_json: bool,
    *,
    next_step: bool = True,
    rates: Sequence[Rates] = (),
) -> None:
    directory = cache if part is None else part.directory(cache)
    facts = _facts(directory, manifest, part, seconds) | {"rates": rates[0].facts() if rates else None}
    if as_json:
        print_json(facts)
        return
    size = (facts["bytes"] - facts["basis_bytes"]) / facts["tokens"]
    basis = f", and {facts['basis_bytes'] / 1e6:.1f} MB of basis once" if facts["basis_bytes"] else ""
    print(f"{directory}: {facts['windows']} windows, {facts['tokens']} tokens, {size:.1f} bytes a token{basis}")
    print(f"teacher's own loss on this text {manifest.teacher_loss:.3f} nats a token; took {facts['seconds']:.1f} s")
    if rates:
        print(rates[0].line())
    if part is None:
        print(f"next: python -m cache inspect {directory}")
    elif next_step:
        every = f"{cache}-part-*-of-{part.of:03d}"
        print(f"next, when all {part.of} parts are there: python -m cache merge {every} --out {cache}")


def _facts(directory: Path, manifest: Manifest, part: Part | None, seconds: float) -> dict[str, Any]:
    return {
        "cache": str(directory),
        "part": None if part is None else str(part),
        "finished": True,
        "cache_id": manifest.cache_id,
        "windows": manifest.total("windows"),
        "tokens": manifest.total("tokens"),
        "bytes": manifest.size,
        "basis_bytes": manifest.size - manifest.total("bytes"),
        "teacher_loss": manifest.teacher_loss,
        "seconds": seconds,
    }


def _say_stopped(directories: list[Path], as_json: bool) -> None:
    from stage1_teacher.status import sealed_in

    counts = [sealed_in(directory) for directory in directories]
    sealed, totals = sum(count for count, _ in counts), [total for _, total in counts]
    known = [total for total in totals if total is not None]
    many = f"{sealed} of {sum(known)} shards" if len(known) == len(totals) == 1 else f"{sealed} shards"
    places = ", ".join(map(str, directories)) or "no part yet"
    print(f"stopped by SIGTERM: {many} are sealed in {places}; the same command goes on", file=sys.stderr)
    if as_json:
        print_json({"cache": places, "finished": False, "shards": sealed})


@app.command()
def fit(
    config: ConfigArg,
    out: Annotated[Path, typer.Option(help="the file to write, a few MB")],
    overrides: Overrides = None,
) -> None:
    """Fit the tail's shape alone: one file for all parts, where machines of different kinds capture them."""
    from stage1_teacher.config import CaptureConfig

    settings = load_config(CaptureConfig, config, overrides or [])
    if not out.parent.is_dir():
        raise typer.BadParameter(f"no directory {out.parent}", param_hint="--out")
    from stage1_teacher.capture import fit as run_fit

    found = run_fit(settings, out)
    print(f"{out}: {found.directions_DR.shape[1]} directions in steps of {found.step:g}")
    print(f"next, on each machine: python -m stage1_teacher capture {config} --part I/N --shape {out}")


@app.command()
def survey(
    config: ConfigArg,
    overrides: Overrides = None,
    kl: Annotated[
        float | None, typer.Option("--kl", min=1e-4, help="nats wanted; the config's shape.kl, or 0.03, if absent")
    ] = None,
    usd_per_hour: Annotated[
        float | None, typer.Option("--usd-per-hour", min=0, help="price of this machine, for the cost of the whole")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            "--against", metavar="MODEL", help="the unquantised teacher (./directory or hub id) to compare with"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder for its files; CACHE-survey if absent")] = None,
    as_json: JsonFlag = False,
) -> None:
    """On a sample, before paying: what to keep, what it loses, how long it takes, what it costs."""
    from stage1_teacher.config import CaptureConfig

    settings = load_config(CaptureConfig, config, overrides or [])
    from stage1_teacher.survey import Wish, folder_of, survey_to

    wanted = kl or (settings.shape and settings.shape.kl) or 0.03
    found, text = survey_to(settings, Wish(wanted, usd_per_hour, against), folder_of(settings, out))
    if as_json:
        print_json(found)
    else:
        print(text)


@app.command()
def status(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="the cache's directory, or a part's")],
    as_json: JsonFlag = False,
) -> None:
    """How far a capture is, from another terminal or after a crash."""
    from stage1_teacher.status import read_status, screen

    found = read_status(directory)
    if as_json:
        print_json(found)
    else:
        print(screen(found))


@app.command()
def generate(config: ConfigArg, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Let a teacher, here or behind an endpoint, answer prompts. Run again after a kill, it goes on."""
    from stage1_teacher.text_verbs import run_generate

    run_generate(config, overrides or [], as_json)


@app.command()
def select(config: ConfigArg, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Keep the best of a teacher's answers, as a corpus for capture."""
    from stage1_teacher.text_verbs import run_select

    run_select(config, overrides or [], as_json)


def main() -> None:
    """Entry point of the console script `stage1-teacher`."""
    run(app)


if __name__ == "__main__":
    main()
