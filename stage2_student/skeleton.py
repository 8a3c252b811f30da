"""A student's shape without its weights: what it would hold and save, counted without memory.

torch's fake tensors have sizes, types and devices but no numbers, so a student of any size and family is built and run
forward in under a second, and whatever its backward pass would need is counted as autograd asks for it. Not for training,
and not for what a whole step needs (estimate.py).
Shapes: B windows, T positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from shared.errors import UsageError
from shared.tokenizer import TokenizerFingerprint
from stage2_student.student_config import Lora, StudentConfig
from stage2_student.student_families import PRESETS, model_config
from stage2_student.students import hidden_states, named

ATTENTION_DROPOUT = ("attn_pdrop", "attention_dropout")  # by family


@contextmanager
def without_memory() -> Iterator[None]:
    """Tensors made in here have no storage."""
    with FakeTensorMode():
        yield


def shaped(
    config: StudentConfig, vocab_size: int | None, tokenizer: TokenizerFingerprint, *, fused: bool = False
) -> Any:
    """A student of this config's shapes with fresh weights, whatever its first weights would be; in training mode.

    Of a pretrained model or a warm start only the source's config.json is read.
    Args:
        config: the student.
        vocab_size: rows of its head; None for the source's own.
        tokenizer: the student's.
        fused: as a GPU's fused attention, which keeps no [T, T] tensors even with dropout.
    Raises:
        UsageError: no such source.
    """
    from transformers import AutoModelForCausalLM

    sizes = _sizes(config, vocab_size, tokenizer)
    for name in ATTENTION_DROPOUT if fused else ():
        if hasattr(sizes, name):
            setattr(sizes, name, 0.0)
    student = AutoModelForCausalLM.from_config(sizes, dtype=torch.float32)
    if config.lora is not None:
        _adapt(student, config.lora)
    return student.train()


class _Adapted(nn.Module):
    """A linear layer with a low-rank adapter beside it, of the sizes that peft gives one."""

    def __init__(self, base: nn.Module, lora: Lora) -> None:
        super().__init__()
        inner, outer = base.weight.shape if isinstance(base.weight, Tensor) else (0, 0)
        if isinstance(base, nn.Linear):  # GPT-2's own layers hold their weights transposed
            inner, outer = outer, inner
        self.base, self.dropout = base, nn.Dropout(lora.dropout)
        self.lora_A, self.lora_B = nn.Linear(inner, lora.rank, bias=False), nn.Linear(lora.rank, outer, bias=False)

    def forward(self, entering: Tensor) -> Tensor:
        found: Tensor = self.base(entering) + self.lora_B(self.lora_A(self.dropout(entering)))
        return found


def _adapt(student: Any, lora: Lora) -> None:
    """Freeze the student and stand an adapter beside each linear layer of `targets`; peft itself needs real weights."""
    student.requires_grad_(False)
    layers = [
        (name, layer)
        for name, layer in student.named_modules()
        if isinstance(layer, nn.Linear) or type(layer).__name__ == "Conv1D"
    ]
    for name, layer in layers:
        parent, _, last = name.rpartition(".")
        wanted = lora.targets is None or last in lora.targets
        if layer is not student.get_output_embeddings() and wanted:
            setattr(student.get_submodule(parent), last, _Adapted(layer, lora))


def _sizes(config: StudentConfig, vocab_size: int | None, tokenizer: TokenizerFingerprint) -> Any:
    """The transformers config."""
    architecture = PRESETS[config.preset] if config.preset is not None else config.architecture
    if architecture is not None:
        assert vocab_size is not None, "a student from scratch has no rows of its own"
        return model_config(architecture, vocab_size, tokenizer)
    sizes = _of_source(config)
    sizes.vocab_size, sizes.use_cache = vocab_size or sizes.vocab_size, False
    if config.warm_start is not None:
        blocks = len(config.warm_start.layers)
        sizes.num_hidden_layers = blocks
        if getattr(sizes, "layer_types", None) is not None:
            sizes.layer_types = sizes.layer_types[:blocks]
    return sizes


def _of_source(config: StudentConfig) -> Any:
    from transformers import AutoConfig

    warm = config.warm_start
    ref, revision = (config.pretrained, config.revision) if warm is None else (warm.source, warm.revision)
    try:
        return AutoConfig.from_pretrained(ref, revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        do = "check the name, or give a directory with config.json"
        raise UsageError(named(str(ref)), expected="a causal LM's config", got=str(error), do=do) from None


def saved_for_backward(student: Any, batch: int, positions: int, *, low: torch.dtype | None) -> int:
    """Bytes that the body's forward pass keeps for the way back, weights apart: `batch` windows of `positions` tokens.

    Args:
        student: made by `shaped`, both inside `without_memory`.
        batch: B.
        positions: T.
        low: dtype of the matrix products under autocast; None without.
    """
    weights = {weight.untyped_storage()._cdata for weight in student.parameters()}
    kept: dict[int, Any] = {}  # storages, held so that no number is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    ids_BT = torch.zeros(batch, positions, dtype=torch.int64)
    with saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast("cpu", low, enabled=low is not None):
        hidden_states(student, ids_BT, torch.ones_like(ids_BT))
    return sum(storage.nbytes() for storage in kept.values())
