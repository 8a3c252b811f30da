"""What a survey found: one screen for people, and the config that `capture` takes. Not for measuring (survey.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from stage1_teacher.config import CaptureConfig

SHOWN = (1, 4, 16, 64)  # k whose rows stand on the screen; all are in survey.json


def screen(found: dict[str, Any], config_path: Path | None) -> str:
    """Everything somebody decides by, on one screen."""
    advice = found["advice"]
    lines = [
        *_knowledge(found["knowledge"], found["sample"]),
        "",
        *_heads(found["heads"]),
        "",
        *_shape(found["shape"]),
        "",
        *_against(found.get("against")),
        *_cost(found["cost"]),
        "",
        _advice(advice),
    ]
    if config_path is not None:
        lines.append(f"next: python -m stage1_teacher capture {config_path}")
    return "\n".join(lines)


def _knowledge(facts: dict[str, Any], sample: dict[str, Any]) -> list[str]:
    return [
        f"teacher on this text ({sample['positions']} positions): {facts['words']}",
        f"  its loss {facts['loss']:.3f} nats a token, expected by itself {facts['entropy']:.3f}; right first "
        f"{facts['top1']:.1%}; counting this sample's words {facts['counting']:.2f}, knowing nothing {facts['even']:.2f}",
    ]


def _heads(rows: list[dict[str, Any]]) -> list[str]:
    lines = ["heads alone, the rest spread evenly: kept mass | KL nats | gradient angle degrees"]
    temperatures = sorted({row["temperature"] for row in rows})
    lines.append("     k top_p   ids" + "".join(f"{f'T={t:g}':>22}" for t in temperatures))
    for k in SHOWN:
        for top_p in sorted({row["top_p"] for row in rows}):
            mine = [row for row in rows if (row["k"], row["top_p"]) == (k, top_p)]
            if mine and (top_p in (0.9, 1.0)):
                cells = "".join(f"   {r['kept']:.3f} {r['kl']:6.3f} {r['gradient_angle']:6.1f}" for r in mine)
                lines.append(f"  {k:4d} {top_p:5g} {mine[0]['ids']:5.1f}{cells}")
    return lines


def _shape(shape: dict[str, Any]) -> list[str]:
    if shape["without"]:
        return [f"no tail shape: {shape['without']}"]
    lines = ["with the tail's shape: bytes a token (basis included) | KL nats and gradient angle at each T"]
    for row in sorted(shape["trials"], key=lambda row: float(row["bytes_per_token"])):
        cells = "".join(
            f"   T={at['temperature']:g} {at['kl']:.4f} {at['gradient_angle']:4.1f}" for at in row["temperatures"]
        )
        setting = f"k {row['k']} top_p {row['top_p']:g} directions {row['directions']} step {row['step']:g}"
        lines.append(f"  {row['bytes_per_token']:6.1f} B {setting:42s}{cells}")
    needed = [
        f"{next((int(at['directions']) for at in shape['directions'] if at['kl'] <= left), '?')} leave {left:g}"
        for left in (0.1, 0.03, 0.01)
    ]
    lines.append(f"directions this teacher needs: {', '.join(needed)} nats")
    return lines


def _against(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    lines = [f"against {found['original']}: {found['words']}"]
    for row in found["temperatures"]:
        lines.append(
            f"  T={row['temperature']:g}: KL {row['kl']:.4f} nats, total variation {row['total_variation']:.4f}, "
            f"gradient angle {row['gradient_angle']:.1f} degrees"
        )
    lines.append(
        f"  same first choice {found['same_first']:.1%}; loss {found['loss']:.3f}, original {found['original_loss']:.3f}"
    )
    return [*lines, ""]


def _cost(cost: dict[str, Any]) -> list[str]:
    whole = (
        "the whole corpus" if cost["extrapolated"] else "a stream does not say how long it is; for each million tokens"
    )
    money = "" if cost["usd"] is None else f", {cost['usd']:.2f} USD at {cost['usd_per_hour']:g} an hour"
    return [
        f"{whole}: {cost['tokens']:,} tokens, {cost['gigabytes']:.3g} GB, {cost['hours']:.3g} hours on this device "
        f"({cost['device']}, {cost['tokens_per_second']:,.0f} tokens/s){money}"
    ]


def _advice(advice: dict[str, Any]) -> str:
    kept = f"k {advice['k']}, top_p {advice['top_p']:g}"
    shape = f", {advice['directions']} directions in steps of {advice['step']:g}" if advice["directions"] else ""
    what = f"{kept}{shape}: {advice['bytes_per_token']:.1f} bytes a token, {advice['kl']:.3g} nats"
    if advice["reached"]:
        return f"recommended for {advice['wanted_kl']:g} nats: {what}"
    return f"{advice['wanted_kl']:g} nats are out of reach here; the most faithful setting measured: {what}"


def advised_config(config: CaptureConfig, found: dict[str, Any]) -> str:
    """The survey's config with the recommended settings, as YAML that `capture` takes; paths absolute."""
    advice = found["advice"]
    data = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    data["cache"] = str(config.cache)
    data["selection"] = {"k": advice["k"], "top_p": advice["top_p"]}
    data["shape"] = None
    if advice["directions"]:
        data["shape"] = {"directions": advice["directions"], "step": advice["step"]}
        if config.shape is not None:
            data["shape"]["sample_windows"] = config.shape.sample_windows
    comment = f"# {_advice(advice)}, measured by `survey` on {found['sample']['measured']} positions\n"
    return comment + yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
