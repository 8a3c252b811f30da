"""The bodies of the verbs `generate` and `select`: config in, lines or JSON out.

Not for the work itself (stage1_teacher/generate.py, stage1_teacher/select.py).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from shared.cli import print_json
from shared.config import load_config
from stage1_teacher.generate_config import GenerateConfig
from stage1_teacher.select_config import SelectConfig
from stage1_teacher.signals import Terminated, terminable


def run_generate(config: Path, overrides: Sequence[str], as_json: bool) -> None:
    """Answers of the teacher; a SIGTERM ends it in order, with exit code 0.

    Raises:
        RunError: answers are missing in the end.
    """
    settings = load_config(GenerateConfig, config, overrides)
    from stage1_teacher.generate import failure, generate, text_of

    with terminable():
        try:
            facts = generate(settings)
        except Terminated:
            print(
                f"stopped by SIGTERM: every answer so far is in {settings.out}; the same command goes on",
                file=sys.stderr,
            )
            if as_json:
                print_json({"out": str(settings.out), "finished": False})
            return
    error = failure(facts)
    if as_json:
        print_json({**facts, "finished": error is None})
    else:
        print(text_of(facts))
    if error is not None:
        raise error
    if not as_json:
        print(f"next: python -m stage1_teacher select CONFIG, with answers: {settings.out}")


def run_select(config: Path, overrides: Sequence[str], as_json: bool) -> None:
    """A corpus out of answers."""
    settings = load_config(SelectConfig, config, overrides)
    from stage1_teacher.select import select, text_of

    summary = select(settings)
    if as_json:
        print_json(summary)
    else:
        print(text_of(summary, settings.out))
