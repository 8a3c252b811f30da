"""What the command lines have in common: CONFIG and --set, exit codes, one line for an error.

Not for the commands: each package has its own __main__.py.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from shared.errors import CodestillError

ConfigArg = Annotated[Path, typer.Argument(metavar="CONFIG", help="the command's YAML file")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="override any field of the config; repeatable")
]
JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout and nothing else there")]


def new_app(help_text: str) -> typer.Typer:
    """A typer app with the settings all commands share: help when called with nothing, plain tracebacks."""
    return typer.Typer(help=help_text, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def run(app: typer.Typer) -> None:
    """Run `app`; exit 0 done, 1 the check or run failed, 2 the call or config is wrong, 130 interrupted."""
    try:
        app()
    except CodestillError as error:
        sys.exit(complain(str(error), error.exit_code))
    except KeyboardInterrupt:
        sys.exit(complain("interrupted; run the same command again to go on", 130))
    except OSError as error:
        sys.exit(_disk_trouble(error))


def _disk_trouble(error: OSError) -> int:
    """Full disks and forbidden places are the user's to mend; any other OSError is ours and keeps its traceback."""
    place = error.filename or "the output disk"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return complain(f"{place}: disk full; free some space and run the same command again to go on", 1)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return complain(f"{place}: expected write access, got {os.strerror(error.errno)}; choose another path", 1)
    raise error


def complain(line: str, exit_code: int) -> int:
    """Print one error line on stderr and hand the exit code back."""
    print(f"error: {line}", file=sys.stderr)
    return exit_code


def print_json(value: dict[str, Any]) -> None:
    """One JSON object on stdout."""
    print(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
