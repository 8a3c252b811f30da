"""README.md of a cache on the hub: who taught, what, how faithful it is, under which licences, and how to get it.

Everything comes from the manifest. Not for the screen (inspect.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from cache.inspect import licence_counts
from cache.manifest import Fidelity, Manifest

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def card_text(manifest: Manifest, url: str, *, teacher_licence: str | None = None) -> str:
    """The dataset card in Markdown with the hub's YAML header.

    Args:
        manifest: of the cache.
        url: where it is pushed to, hf://datasets/...
        teacher_licence: what the teacher's card says; None where unknown.
    """
    return "\n".join([*_header(manifest), *_text(manifest, url, teacher_licence), *_report(manifest)])


def _header(manifest: Manifest) -> list[str]:
    windows = manifest.total("windows")
    size = next((name for most, name in SIZES if windows < most), "n>10M")
    facts = {
        "license": "other",
        "license_name": "of-corpus-and-teacher",
        "task_categories": ["text-generation"],
        "tags": ["distillation", "logits", "codestill"],
        "size_categories": [size],
        "viewer": False,
    }
    return ["---", yaml.safe_dump(facts, sort_keys=False).rstrip(), "---", ""]


def _text(manifest: Manifest, url: str, teacher_licence: str | None) -> list[str]:
    teacher, tokens = manifest.teacher, manifest.total("tokens")
    shape = manifest.identity.shape
    name = plain(teacher.id)
    model = f"[{name}](https://huggingface.co/{name})" if teacher.revision else name
    tail = f"{shape.directions} coordinates a position" if shape else "its mass only"
    return [
        f"# What {name} believes at every token",
        "",
        "A cache of a teacher's next-token distributions, for training students without the teacher, at any temperature.",
        f"Made by codestill. Cache id `{manifest.cache_id}`.",
        "",
        "    pip install codestill",
        f"    python -m cache pull {url} CACHE",
        "",
        "| | |",
        "|---|---|",
        f"| teacher | {model}, revision {plain(teacher.revision or 'none')}, {plain(teacher.architecture)}, "
        f"{teacher.parameters} parameters, {plain(teacher.dtype)}, "
        f"quantised: {plain(teacher.quantisation or 'no')} |",
        f"| teacher's licence | {plain(teacher_licence or 'not known here: see the model page')} |",
        f"| corpus | {corpus_line(manifest.identity.corpus)} |",
        f"| corpus licences | {_counted(manifest)} |",
        f"| tokenizer | {manifest.tokenizer.size} tokens, sha256 `{manifest.tokenizer.vocab_sha256[:12]}` |",
        f"| size | {tokens} tokens in {manifest.total('windows')} windows, {manifest.size} bytes, "
        f"{manifest.size / tokens:.1f} bytes a token |",
        f"| kept | at most {manifest.k} ids to mass {manifest.identity.selection.top_p}; of the tail {tail} |",
        f"| teacher's own loss | {manifest.teacher_loss:.3f} nats a token |",
        "",
    ]


def _report(manifest: Manifest) -> list[str]:
    if not manifest.fidelity:
        return []
    columns = [name for name in Fidelity.model_fields if name not in ("temperature", "positions")]
    rows = [
        f"| {row.temperature:g} | "
        + " | ".join(f"{getattr(row, name):.4f}" for name in columns)
        + f" | {row.positions} |"
        for row in manifest.fidelity
    ]
    names = " | ".join(name.replace("_", " ") for name in columns)
    return [
        "## Fidelity",
        "",
        "Rebuilt distributions against the teacher's full ones, measured while the cache was captured.",
        "",
        f"| temperature | {names} | positions |",
        "|---" * (len(columns) + 2) + "|",
        *rows,
        "",
    ]


def corpus_line(facts: Mapping[str, Any]) -> str:
    """A corpus as one cell of a table; `facts` as they stand in a manifest's identity."""
    told = {name: value for name, value in facts.items() if isinstance(value, (str, int, float))}
    return ", ".join(f"{plain(name)} {plain(str(value))[:80]}" for name, value in told.items()) or "not described"


def corpus_licences(facts: Mapping[str, Any]) -> str:
    """What a corpus says about its licences."""
    found = [
        str(value) for name, value in facts.items() if "licen" in name and value and isinstance(value, (str, list))
    ]
    return plain(", ".join(found)) or "not known here: see the corpus"


def _counted(manifest: Manifest) -> str:
    counts = licence_counts(manifest.counts)
    documents = f"; documents by licence: {plain(', '.join(counts))}" if counts else ""
    return corpus_licences(manifest.identity.corpus) + documents


def plain(text: str) -> str:
    """Text that is text in Markdown too: a manifest may be somebody else's."""
    return re.sub(r"([\\`*<>|\[\]])", r"\\\1", " ".join(text.split()))
