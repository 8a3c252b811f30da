"""Stage 1's command line: `python -m stage1_teacher capture CONFIG`. Not for the work itself (capture.py)."""

from __future__ import annotations

import time
from typing import Any

from shared.cli import ConfigArg, JsonFlag, Overrides, new_app, print_json, run
from shared.config import load_config

app = new_app("Let a teacher read a corpus once and leave a cache of what it believed.")


@app.callback()
def _stage1() -> None:
    """Let a teacher read a corpus once and leave a cache of what it believed."""


@app.command()
def capture(config: ConfigArg, overrides: Overrides = None, as_json: JsonFlag = False) -> None:
    """Text -> cache directory. Run again after a crash, it goes on."""
    from stage1_teacher.config import CaptureConfig

    settings = load_config(CaptureConfig, config, overrides or [])
    from stage1_teacher.capture import capture as run_capture  # torch loads only after the config is right

    start = time.perf_counter()
    manifest = run_capture(settings)
    seconds = time.perf_counter() - start
    facts: dict[str, Any] = {
        "cache": str(settings.cache),
        "cache_id": manifest.cache_id,
        "windows": manifest.total("windows"),
        "tokens": manifest.total("tokens"),
        "bytes": manifest.size,
        "basis_bytes": manifest.size - manifest.total("bytes"),
        "teacher_loss": manifest.teacher_loss,
        "seconds": seconds,
    }
    if as_json:
        print_json(facts)
        return
    size = (facts["bytes"] - facts["basis_bytes"]) / facts["tokens"]
    basis = f", and {facts['basis_bytes'] / 1e6:.1f} MB of basis once" if facts["basis_bytes"] else ""
    print(f"{settings.cache}: {facts['windows']} windows, {facts['tokens']} tokens, {size:.1f} bytes a token{basis}")
    print(f"teacher's own loss on this text {manifest.teacher_loss:.3f} nats a token; took {seconds:.1f} s")
    print(f"next: python -m cache inspect {settings.cache}")


def main() -> None:
    """Entry point of the console script `stage1-teacher`."""
    run(app)


if __name__ == "__main__":
    main()
