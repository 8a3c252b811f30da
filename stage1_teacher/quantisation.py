"""Teachers in 4 or 8 bits, and those that a card cannot hold.

How bitsandbytes is asked, what the manifest says of any quantised teacher, and what would fit where memory runs out.

Not for opening a teacher (teacher.py). The head stays in full precision: what a cache keeps are its logits.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from shared.errors import UsageError
from shared.memory import is_out_of_memory
from stage1_teacher.config import TeacherConfig

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

FREE = 0.85  # share of a card that weights may take; the rest is for hidden states and a chunk of logits
BYTES = {16: 2.0, 8: 1.1, 4: 0.6}  # of a parameter by its bits, with scales and embeddings that stay as they are
GB = 1e9


def asked_for(config: TeacherConfig) -> BitsAndBytesConfig | None:
    """bitsandbytes' settings for `teacher.quantisation`: 4 bits are NF4, quantised twice, computed in the config's dtype.

    Raises:
        UsageError: bitsandbytes is not installed.
    """
    if config.quantisation is None:
        return None
    if find_spec("bitsandbytes") is None:
        do = "install the extra: pip install 'codestill[quant]'"
        raise UsageError("teacher.quantisation", expected="the package bitsandbytes", got="none", do=do)
    import torch
    from transformers import BitsAndBytesConfig

    if config.quantisation.bits == 8:
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line for each layer and batch
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, config.dtype),
    )


def what_it_is(model: Any) -> str | None:
    """How the opened model's weights are quantised, in words; None where they are not.

    Whether we asked for it or the checkpoint came so: the model's own config says it.
    """
    settings = getattr(model.config, "quantization_config", None)
    if settings is None:
        return None
    facts = settings if isinstance(settings, dict) else settings.to_dict()
    method = str(getattr(facts["quant_method"], "value", facts["quant_method"]))
    if method != "bitsandbytes":
        bits = facts.get("bits")
        return f"{method}, {bits} bits" if bits else method
    if facts.get("load_in_8bit"):
        return "bitsandbytes, 8 bits"
    twice = ", double quantisation" if facts.get("bnb_4bit_use_double_quant") else ""
    return f"bitsandbytes, 4 bits {facts['bnb_4bit_quant_type']}{twice}, computed in {facts['bnb_4bit_compute_dtype']}"


def require_plain_head(head: Any, teacher: str) -> None:
    """A head in 4 or 8 bits has no weights to compute exact logits from.

    Raises:
        UsageError: it is one.
    """
    weight = getattr(head, "weight", None)
    if weight is None or not weight.dtype.is_floating_point or type(weight).__name__ in ("Params4bit", "Int8Params"):
        got = "none" if weight is None else f"{weight.dtype} ({type(head).__name__})"
        do = "quantise all but the output embeddings, or open the original with `quantisation: {bits: 4}`"
        raise UsageError(f"teacher {teacher}: head", expected="weights in floating point", got=got, do=do)


def too_small(what: str, parameters: int | None, config: TeacherConfig) -> UsageError:
    """The sentence for a teacher that its device cannot hold: what would fit.

    Args:
        what: the teacher, or the batch of it.
        parameters: of the teacher; None where that is unknown.
    """
    memory = device_memory()
    bits = 16 if config.quantisation is None else config.quantisation.bits
    ways = [f"quantisation: {{bits: {fewer}}}" for fewer in (8, 4) if fewer < bits and _fits(fewer, parameters, memory)]
    if config.device_map != "auto":
        ways.append("device_map: auto (what does not fit waits in CPU memory: slow)")
    need = f"a device of {parameters * BYTES[bits] / FREE / GB:.0f} GB" if parameters else "a device with more memory"
    do = f"in teacher, set {', or '.join(ways)}; or take {need}" if ways else f"take {need}"
    return UsageError(what, expected=f"one that fits into {memory / GB:.1f} GB", got="out of memory", do=do)


@contextmanager
def room_for(what: str, parameters: int, config: TeacherConfig) -> Iterator[None]:
    """Work on a few batches of which none can be made smaller.

    Raises:
        UsageError: memory ran out within.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise too_small(what, parameters, config) from None


def what_waits(places: Mapping[str, Any]) -> str:
    """A sentence about the layers that accelerate could not give to a GPU; empty where none waits.

    Args:
        places: a model's hf_device_map.
    """
    homes = [str(place) for place in places.values()]
    on_gpu = [home for home in homes if home not in ("cpu", "disk")]
    waiting = [home for home in homes if home == "disk" or (home == "cpu" and on_gpu)]
    if not waiting:
        return ""
    many, where = f"{len(waiting)} of its {len(homes)} pieces wait", " and ".join(sorted(set(waiting)))
    return f"{many} on {where} for each batch: slow; with quantisation: {{bits: 4}} it may fit as a whole"


def device_memory() -> int:
    """Bytes of the first GPU; of the machine where there is none."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _fits(bits: int, parameters: int | None, memory: int) -> bool:
    return parameters is None or parameters * BYTES[bits] <= memory * FREE
