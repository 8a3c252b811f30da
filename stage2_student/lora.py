"""LoRA students: adapters around a pretrained model's linear layers (Hu et al. 2022, arXiv 2106.09685), through peft.

A checkpoint of the run holds the adapters alone; the finished student has them merged into its weights and is a standard
checkpoint. Not for choosing the model (students.py).
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

from torch import nn

from shared.errors import UsageError
from stage2_student.student_config import Lora


def with_adapters(student: Any, settings: Lora, what: str) -> Any:
    """The student as a peft model, everything but fresh adapters frozen; they change nothing until trained.

    Raises:
        UsageError: peft is not installed, or the student has no layer of a name in `targets`.
    """
    if find_spec("peft") is None:
        do = "pip install 'codestill[lora]', or leave student.lora out"
        raise UsageError("student.lora", expected="the package peft", got="not installed", do=do)
    from peft import LoraConfig, get_peft_model

    _require_targets(student, settings, what)
    alpha: Any = settings.alpha  # peft says int, but only divides it by the rank
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=alpha,
        lora_dropout=settings.dropout,
        target_modules="all-linear" if settings.targets is None else list(settings.targets),
        fan_in_fan_out=student.config.model_type == "gpt2",  # its linear layers hold their weights transposed
        task_type="CAUSAL_LM",
    )
    student.name_or_path = ""  # or peft looks at each checkpoint whether the vocabulary has grown since the hub's copy
    with warnings.catch_warnings():  # peft asks transformers by a name that goes with transformers 6
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        return get_peft_model(student, config)


def _require_targets(student: Any, settings: Lora, what: str) -> None:
    linear = {
        name.rsplit(".", 1)[-1]
        for name, layer in student.named_modules()
        if (isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D")
        and layer is not student.get_output_embeddings()
    }
    strangers = sorted(set(settings.targets or ()) - linear)
    if strangers:
        raise UsageError(
            f"{what}: student.lora.targets",
            expected=f"among its linear layers {', '.join(sorted(linear))}",
            got=", ".join(strangers),
            do="correct the names, or leave targets out for all of them",
        )


def is_adapted(student: Any) -> bool:
    """Whether adapters stand around the student."""
    return hasattr(student, "merge_and_unload")


def plain(student: Any) -> Any:
    """The transformers model inside, whose layers may be adapted."""
    return student.get_base_model() if is_adapted(student) else student


def merged(student: Any) -> Any:
    """The student with its adapters added into its weights, for good: W + (alpha / rank) B A."""
    return student.merge_and_unload() if is_adapted(student) else student
