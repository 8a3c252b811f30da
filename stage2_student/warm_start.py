"""First weights of a student from some blocks of a larger model: embeddings, blocks and final norm are copied.

The student is the larger model with fewer blocks (as DistilBERT was made of BERT: Sanh et al. 2019, arXiv 1910.01108), so
whatever its class computes, rotary base, norm constants and activation included, stays the same.
Not for pretrained students that keep all their blocks (students.py).
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UsageError
from stage2_student.student_config import Architecture, WarmStart
from stage2_student.student_families import dropout

# What must agree for a block to fit, by the names that transformers configs share, with what an absent one means.
FACTS = (
    "model_type", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "inner_size",
    "tie_word_embeddings",
)  # fmt: skip


def from_blocks(
    source: Any, settings: WarmStart, architecture: Architecture | None, wanted: Any, vocab_size: int, what: str
) -> Any:
    """A student of the source's class with its chosen blocks, on the CPU, in float32.

    Rows of the vocabulary that only one of the two has are padding: dropped, or drawn fresh.
    Args:
        source: the larger model.
        settings: which blocks.
        architecture: of the student; None for the source's own.
        wanted: the architecture's transformers config, None without one.
        vocab_size: rows of the student's head.
        what: names the source in errors.
    Raises:
        UsageError: a block that the source does not have, or an architecture that differs in more than its blocks.
    """
    if architecture is not None:
        _require_shapes(source.config, wanted, what)
    blocks = _blocks(settings, architecture, source.config.num_hidden_layers, what)
    student = type(source)(_config(source.config, blocks, architecture, vocab_size, what))
    with torch.no_grad():
        theirs, prefix = source.state_dict(), _block_prefix(source)
        for name, weight in student.state_dict().items():
            _copy(weight, theirs[_source_name(name, prefix, blocks)])
    student.generation_config = deepcopy(source.generation_config)
    return student


def _copy(weight: Tensor, source: Tensor) -> None:
    """Leading rows; only embeddings have more rows on one side than on the other."""
    assert weight.shape[1:] == source.shape[1:], (weight.shape, source.shape)
    rows = min(len(weight), len(source))
    weight[:rows].copy_(source[:rows])


def _block_prefix(model: Any) -> str:
    """What the names of all blocks' weights start with: the outermost list of as many modules as there are blocks."""
    count = model.config.num_hidden_layers
    lists = (name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == count)
    return f"{next(lists)}."


def _source_name(name: str, prefix: str, blocks: list[int]) -> str:
    if not name.startswith(prefix):
        return name
    number, rest = name.removeprefix(prefix).split(".", 1)
    return f"{prefix}{blocks[int(number)]}.{rest}"


def _facts(config: Any) -> dict[str, Any]:
    """What `FACTS` names, of any transformers config."""
    width, heads = config.hidden_size, config.num_attention_heads
    inner = [getattr(config, name, None) for name in ("intermediate_size", "ffn_dim", "n_inner")]
    found = {
        "head_dim": getattr(config, "head_dim", None) or width // heads,
        "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "inner_size": next((size for size in inner if size), 4 * width),
    }
    return {name: found[name] if name in found else getattr(config, name) for name in FACTS}


def _require_shapes(source: Any, wanted: Any, what: str) -> None:
    ours, theirs = _facts(wanted), _facts(source)
    differing = [name for name in FACTS if ours[name] != theirs[name]]
    if differing:
        raise UsageError(
            f"{what}: warm_start",
            expected="a source of the student's shapes: " + ", ".join(f"{name} {ours[name]}" for name in differing),
            got=", ".join(f"{name} {theirs[name]}" for name in differing),
            do="change the architecture, or leave it out: the student then has the source's own shapes",
        )


def _blocks(settings: WarmStart, architecture: Architecture | None, available: int, what: str) -> list[int]:
    count = architecture.layers if architecture is not None else len(settings.layers)
    if settings.layers == "even":
        chosen = [round(place * (available - 1) / max(1, count - 1)) for place in range(count)]
    else:
        chosen = list(settings.layers)
    fits = len(chosen) == count and max(chosen) < available and (settings.layers != "even" or count <= available)
    if not fits:
        raise UsageError(
            f"{what}: warm_start.layers",
            expected=f"{count} of its {available} blocks, 0 to {available - 1}",
            got=", ".join(map(str, chosen)),
            do="correct the list, or the architecture's layers",
        )
    return chosen


def _config(source: Any, blocks: list[int], architecture: Architecture | None, vocab_size: int, what: str) -> Any:
    """The source's config with the chosen blocks, this vocabulary, and the architecture's positions and dropout."""
    config = deepcopy(source)
    config.vocab_size, config.use_cache = vocab_size, False
    if getattr(config, "layer_types", None) is not None:  # a list with one kind of attention for each block
        config.layer_types = [source.layer_types[number] for number in blocks]
    config.num_hidden_layers = len(blocks)
    if architecture is None:
        return config
    if source.model_type == "gpt2" and architecture.positions > source.max_position_embeddings:
        raise UsageError(
            f"{what}: warm_start",
            expected=f"at least {architecture.positions} learned positions",
            got=str(source.max_position_embeddings),
            do="lower the architecture's positions",
        )
    config.max_position_embeddings = architecture.positions
    for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, dropout(architecture))
    return config
