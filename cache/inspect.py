"""What a teammate wants to know about a cache, on one screen or as JSON. Reads the manifest alone; decodes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cache.manifest import Manifest
from shared.errors import printable


def facts(directory: str | Path, manifest: Manifest) -> dict[str, Any]:
    """The manifest as one JSON object with the totals scripts rely on (DESIGN section 3).

    Args:
        directory: where it lies, as it shall be printed.
        manifest: of the cache.
    """
    shape = manifest.identity.shape
    tokens, size = manifest.total("tokens"), manifest.size
    return {
        "directory": str(directory),
        "cache_id": manifest.cache_id,
        "windows": manifest.total("windows"),
        "tokens": tokens,
        "positions": manifest.total("positions"),
        "bytes": size,
        "bytes_per_token": size / tokens,
        "basis_bytes": shape.bytes if shape else 0,
        "tokenizer_bytes": sum(file.bytes for file in manifest.tokenizer_files),
        "ids_per_position": manifest.total("entries") / manifest.total("positions"),
        "k": manifest.k,
        "top_p": manifest.identity.selection.top_p,
        "vocab_size": manifest.vocab_size,
        "teacher": manifest.teacher.model_dump(mode="json"),
        "teacher_loss": manifest.teacher_loss,
        "tokenizer": manifest.tokenizer.model_dump(mode="json"),
        "shape": shape.model_dump(mode="json") if shape else None,
        "corpus": manifest.identity.corpus,
        "window_settings": manifest.identity.windows,
        "counts": manifest.counts,
        "shards": [shard.model_dump(mode="json") for shard in manifest.shards],
        "fidelity": [row.model_dump(mode="json") for row in manifest.fidelity],
        "made_with": manifest.made_with,
    }


def screen(found: dict[str, Any]) -> str:
    """The same for people."""
    teacher, counts = found["teacher"], found["counts"]
    quantised = f", {teacher['quantisation']}" if teacher["quantisation"] else ""
    dropped = ", ".join(
        f"{count} {name.removeprefix('dropped_')}" for name, count in counts.items() if name.startswith("dropped_")
    )
    corpus = ", ".join(f"{name} {value}" for name, value in found["corpus"].items() if isinstance(value, (str, int)))
    shape = found["shape"]
    kept = (
        f"{shape['directions']} coordinates in steps of {shape['step']:g}, basis {shape['bytes']} bytes"
        if shape
        else "none"
    )
    rows = [
        ("cache", f"{found['cache_id']}  {found['directory']}"),
        ("teacher", f"{teacher['id']} {teacher['revision'] or ''} ({teacher['architecture']}, "
                    f"{teacher['parameters'] / 1e6:.1f} M parameters, {teacher['dtype']}{quantised})"),
        ("its own loss here", f"{found['teacher_loss']:.3f} nats a token"),
        ("tokenizer", f"{found['tokenizer']['size']} tokens {found['tokenizer']['vocab_sha256'][:12]}, "
                      f"model vocabulary {found['vocab_size']}"),
        ("corpus", " ".join(corpus.split())[:160]),
        ("licences", _licences(found["corpus"], counts)),
        ("documents", f"{counts.get('documents', 'not counted')} read, dropped: {dropped or 'none'}"),
        ("windows", f"{found['windows']} of at most {found['window_settings'].get('max_length')} tokens"),
        ("tokens", f"{found['tokens']} ({found['positions']} positions)"),
        ("size", f"{found['bytes']} bytes in {len(found['shards'])} shards, {found['bytes_per_token']:.1f} a token; "
                 f"tokenizer {found['tokenizer_bytes']} bytes"),
        ("head", f"at most {found['k']} ids to mass {found['top_p']}, mean {found['ids_per_position']:.1f}"),
        ("tail's shape", kept),
        ("made with", ", ".join(f"{name} {number}" for name, number in found["made_with"].items())),
    ]  # fmt: skip
    width = max(len(name) for name, _ in rows)
    lines = [printable(f"{name:<{width}}  {value}") for name, value in rows]
    return "\n".join(
        [
            *lines,
            "",
            *_fidelity(found["fidelity"], "an even tail" if shape is None else "the tail its coordinates give"),
        ]
    )


def _licences(corpus: dict[str, Any], counts: dict[str, int]) -> str:
    """What the corpus says of its licences, and how many documents name which; the teacher's is its model card's business."""
    named = [f"{name.removesuffix('_name')} {value}" for name, value in corpus.items() if "licen" in name and value]
    return " ".join(", ".join([*named, *licence_counts(counts)]).split())[:160] or "the corpus names none"


def licence_counts(counts: dict[str, int]) -> list[str]:
    """'MIT 120' for each licence that documents name, the most frequent first."""
    found = {name.removeprefix("licence_"): count for name, count in counts.items() if name.startswith("licence_")}
    return [f"{name} {count}" for name, count in sorted(found.items(), key=lambda item: (-item[1], item[0]))]


def _fidelity(report: list[dict[str, Any]], tail: str) -> list[str]:
    head = (
        "fidelity: T   kept mass   tail-mass error (worst)   KL, nats   total variation"
        "   gradient: angle   length   error   positions"
    )
    rows = [
        f"{row['temperature']:>11g}{row['kept_mass']:>12.3f}{row['tail_mass_error']:>13.4f} ({row['tail_mass_error_max']:.4f})"
        f"{row['kl']:>15.3f}{row['total_variation']:>18.3f}{row['gradient_angle']:>17.1f}°"
        f"{row['gradient_norm_ratio']:>9.3f}{row['gradient_rms']:>8.3f}{row['positions']:>12}"
        for row in report
    ]
    return [head, *rows, f"(the stored head, the stored tail mass, and {tail}, against the full logits)"]
