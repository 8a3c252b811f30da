"""`python -m stage2_student push RUN hf://org/name[@branch]`: a finished student becomes a model on the Hugging Face hub.

One commit holds everything, so nobody sees half a student; the weights must be the ones that the run published. Who is logged
in is huggingface_hub's business (HF_TOKEN, `hf auth login`). Not for caches (`python -m cache push`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from cache.hub import told
from shared.errors import UsageError
from shared.files import atomic_write
from stage2_student.card import CARD, card_text
from stage2_student.run_folder import FORMAT, RUN, WEIGHTS

URL = re.compile(r"hf://(?:models/)?(?!datasets/|spaces/)([\w.-]+/[\w.-]+)(?:@(.+))?")
FILES = ("*.json", "*.jsonl", "*.txt", "*.model", "*.safetensors", "*.png", CARD)  # of the folder itself, none below it


def parse(url: str) -> tuple[str, str | None]:
    """(org/name, branch) of a hub URL of a model.

    Raises:
        UsageError: of another form.
    """
    match = URL.fullmatch(url.rstrip("/"))
    if match is None:
        raise UsageError(url, expected="hf://org/name or hf://org/name@branch", do="correct the URL")
    return match[1], match[2] and unquote(match[2])


def push(directory: Path, url: str) -> str:
    """Upload the finished student in `directory` with a model card under its new name; returns the commit.

    Raises:
        UsageError: no finished student there, a URL of another form, or no right to write.
        RunError: the hub refuses or does not answer; the same call goes on.
    """
    from huggingface_hub import HfApi

    repo, branch = parse(url)
    run = finished_run(directory)
    atomic_write(directory / CARD, card_text(run, repo))
    api = HfApi()
    with told(url, "model"):
        api.create_repo(repo, repo_type="model", exist_ok=True)
        if branch is not None:
            api.create_branch(repo, repo_type="model", branch=branch, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo,
            repo_type="model",
            revision=branch,
            folder_path=directory,
            allow_patterns=[path.name for path in directory.iterdir() if _goes(path)],
            commit_message=f"student of cache {run['cache']['id']}, {run['steps']} steps",
        )
    return str(done.oid)


def _goes(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and any(path.match(pattern) for pattern in FILES)


def finished_run(directory: Path) -> dict[str, Any]:
    """run.json of a student that stands whole in `directory`.

    Raises:
        UsageError: no run, or one that has not finished.
    """
    what, do = f"student {directory}", "name the `out` of a finished training"
    try:
        run: dict[str, Any] = json.loads((directory / RUN).read_bytes())
        known = run["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UsageError(what, expected=f"{RUN} of a training", got="none", do=do)
    if run["status"] != "finished" or not (directory / WEIGHTS).is_file():
        got, do = f"status {run['status']}", "run the training's command again; it goes on"
        raise UsageError(what, expected="a finished student", got=got, do=do)
    return run
