"""README.md of a finished student: who taught it, from which cache, with which loss, how good it is, under which licences.

Everything comes from run.json, so that a push can write it again under another name. Text from outside is made
harmless for Markdown.
Not for the run's numbers in full (run.json, metrics.jsonl) and not for the hub (push.py).
"""

from __future__ import annotations

from typing import Any

import yaml

from cache.card import corpus_licences, corpus_line, plain

CARD = "README.md"
LOSS = ("form", "divergence", "temperature", "kd_weight", "ce_weight", "t_squared", "mask_prompt")
OWN_LOSS = ("form", "temperature", "kd_weight", "ce_weight", "mask_prompt")  # kd is ULD
COURSE = ("epochs", "max_steps", "batch_size", "gradient_accumulation", "learning_rate", "scheduler", "dtype", "seed")


def card_text(run: dict[str, Any], name: str) -> str:
    """The model card in Markdown with the hub's YAML header.

    Args:
        run: run.json of the finished student.
        name: what the student is called, mostly its folder's name.
    """
    return "\n".join([*_header(), *_text(run, name), *_scores(run), *_use(name)])


def _header() -> list[str]:
    facts: dict[str, Any] = {
        "license": "other",
        "license_name": "of-corpus-and-teacher",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["distillation", "codestill"],
    }
    return ["---", yaml.safe_dump(facts, sort_keys=False).rstrip(), "---", ""]


def _text(run: dict[str, Any], name: str) -> list[str]:
    teacher, config, corpus = run["teacher"], run["config"], run["corpus"]
    own = config.get("other_tokenizer")
    who = plain(teacher["id"])
    model = f"[{who}](https://huggingface.co/{who})" if teacher["revision"] else who
    rows = {
        "teacher": f"{model}, revision {plain(teacher['revision'] or 'none')}, quantised: "
        f"{plain(teacher['quantisation'] or 'no')}; its licence holds for what it taught",
        "cache": f"id `{run['cache']['id']}`, {run['cache']['windows']} training windows",
        "corpus": corpus_line(corpus),
        "corpus licences": corpus_licences(corpus),
        "parameters": f"{run['parameters']:,}",
        "started from": _origin(config["student"]),
        "loss": _settings(config, LOSS if own is None else OWN_LOSS),
        "training": f"{_settings(config, COURSE)}; {run['steps']} steps",
        "tokenizer": f"{'the teacher' if own is None else 'the student'}'s, {run['tokenizer']['size']} tokens",
        "made with": ", ".join(f"{plain(key)} {plain(str(value))}" for key, value in run["versions"].items()),
    }
    return [
        f"# {plain(name)}",
        "",
        f"A code model distilled offline from {who}: it learnt from a cache of the teacher's beliefs, made by codestill.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
        "",
    ]


def _origin(student: dict[str, Any]) -> str:
    named = {key: value for key, value in sorted(student.items()) if value is not None}
    return ", ".join(f"{plain(key)}: {plain(_value(value))}" for key, value in named.items())


def _settings(config: dict[str, Any], keys: tuple[str, ...]) -> str:
    return ", ".join(
        f"{key.replace('_', ' ')} {plain(_value(config[key]))}" for key in keys if config.get(key) is not None
    )


def _value(value: Any) -> str:
    """Numbers as they are, sections as `key value`, ramps that stand still as one number."""
    if not isinstance(value, dict):
        return str(value)
    if "from" in value and value.get("from") == value.get("to"):
        return str(value["from"])
    return " ".join(f"{key} {_value(part)}" for key, part in sorted(value.items()) if part is not None)


def _scores(run: dict[str, Any]) -> list[str]:
    final = run["final"] or {}
    numbers = {key: value for key, value in sorted(final.items()) if isinstance(value, float) and key != "epoch"}
    if not numbers:
        return []
    rows = [f"| {plain(key.replace('_', ' '))} | {value:.4f} |" for key, value in numbers.items()]
    held_out = f"{run['validation']['windows']} windows it never trained on"
    return [f"## Validation, {held_out}", "", "| | |", "|---|---|", *rows, ""]


def _use(name: str) -> list[str]:
    return [
        "## Use",
        "",
        "    from transformers import AutoModelForCausalLM, AutoTokenizer",
        f'    student = AutoModelForCausalLM.from_pretrained("{plain(name)}")',
        f'    tokenizer = AutoTokenizer.from_pretrained("{plain(name)}")',
        "",
        "A small model of code writes wrong and unsafe programs: run them only where they can do no harm.",
        "",
    ]
