"""The cache's command line: `python -m cache inspect DIR`, `python -m cache verify DIR`. Needs neither torch nor a teacher."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from shared.cli import JsonFlag, new_app, print_json, run

app = new_app("Look into a cache of a teacher's logits, and check every byte of it.")
Directory = Annotated[Path, typer.Argument(metavar="DIR", help="the cache's directory")]


class Depth(StrEnum):
    """How deep `verify` looks."""

    size = "size"
    hash = "hash"
    deep = "deep"


@app.command()
def inspect(directory: Directory, as_json: JsonFlag = False) -> None:
    """What is in it, what it cost per token, how good it is."""
    from cache.inspect import facts, screen
    from cache.manifest import read_manifest

    found = facts(directory, read_manifest(directory))
    if as_json:
        print_json(found)
    else:
        print(screen(found))


@app.command()
def verify(
    directory: Directory,
    level: Annotated[Depth, typer.Option(help="names and sizes; every byte; every window decoded")] = Depth.hash,
    as_json: JsonFlag = False,
) -> None:
    """Is every byte what the capture wrote? Exit code 1 when not."""
    from cache.verify import verify as run_verify

    problems = run_verify(directory, level.value, progress=not as_json)
    if as_json:
        print_json({"ok": not problems, "level": level.value, "problems": [asdict(problem) for problem in problems]})
    else:
        for problem in problems:
            print(f"{problem.shard}: {problem.kind}: {problem.detail}")
        print(f"{directory}: {'ok' if not problems else f'{len(problems)} problems'} ({level.value})")
    if problems:
        raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script `logit-cache`."""
    run(app)


if __name__ == "__main__":
    main()
