"""Students: what is trained, sized for the cache's vocabulary, and where its hidden states and head are.

Not for training (trainer.py), nor for what a family is made of (student_families.py). Vocabulary and special ids come from the
cache's manifest, or from the student's own tokenizer.
Shapes: B windows of a batch, T their longest, D width, V vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UsageError
from shared.tokenizer import TokenizerFingerprint, check_model_vocabulary, fingerprint, load_tokenizer, require_same
from stage2_student.lora import plain, with_adapters
from stage2_student.student_config import Architecture, StudentConfig, WarmStart
from stage2_student.student_families import PRESETS, model_config
from stage2_student.warm_start import from_blocks


def build_student(config: StudentConfig, vocab_size: int | None, tokenizer: TokenizerFingerprint) -> Any:
    """The student as a transformers causal LM, on the CPU, in float32 and training mode.

    Args:
        config: preset, architecture, pretrained model or warm start.
        vocab_size: rows of the head: the teacher's model vocabulary, padding included; None leaves a pretrained one's.
        tokenizer: the cache's, or the student's own where it has another.
    Raises:
        UsageError: the pretrained model has another tokenizer, no safetensors, or a head that is more than one product; a
            warm start whose shapes differ; LoRA without peft or with unknown layers.
    """
    if config.pretrained is not None:
        student = _pretrained(config.pretrained, config.revision, vocab_size, tokenizer)
        return student if config.lora is None else with_adapters(student, config.lora, named(config.pretrained))
    assert vocab_size is not None, "only a pretrained student has rows of its own"
    check_model_vocabulary(tokenizer.size, vocab_size)
    architecture = config.architecture
    if config.preset is not None:
        architecture = PRESETS[config.preset]
    if config.warm_start is not None:
        return _warm_started(config.warm_start, architecture, vocab_size, tokenizer)
    assert architecture is not None
    return from_scratch(architecture, vocab_size, tokenizer)


def from_scratch(architecture: Architecture, vocab_size: int, tokenizer: TokenizerFingerprint) -> Any:
    """A model of the architecture's family with tied embeddings and fresh weights, from torch's random state."""
    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_config(model_config(architecture, vocab_size, tokenizer), dtype=torch.float32)
    student.generation_config.pad_token_id = tokenizer.pad
    return student.train()


def named(ref: str) -> str:
    """What errors call the model of a reference: no local paths."""
    return f"student {Path(ref).name if Path(ref).is_absolute() else ref}"


def _warm_started(
    settings: WarmStart, architecture: Architecture | None, vocab_size: int, tokenizer: TokenizerFingerprint
) -> Any:
    what = named(settings.source)
    _require_tokenizer(settings.source, settings.revision, tokenizer, what)
    source = _open(settings.source, settings.revision, what)
    wanted = None if architecture is None else model_config(architecture, vocab_size, tokenizer)
    student = from_blocks(source, settings, architecture, wanted, vocab_size, what)
    require_plain_head(student, what)
    return student.train()


def _require_tokenizer(ref: str, revision: str | None, tokenizer: TokenizerFingerprint, what: str) -> None:
    do = "take a model with the cache's tokenizer, capture with this one's, or set other_tokenizer"
    require_same(tokenizer, fingerprint(load_tokenizer(ref, revision)), what=what, do=do)


def _pretrained(ref: str, revision: str | None, vocab_size: int | None, tokenizer: TokenizerFingerprint) -> Any:
    what = named(ref)
    _require_tokenizer(ref, revision, tokenizer, what)
    student = _open(ref, revision, what)
    if vocab_size is not None and student.get_input_embeddings().weight.shape[0] != vocab_size:
        student.resize_token_embeddings(vocab_size, mean_resizing=False)  # only padding rows differ: same tokenizer
    require_plain_head(student, what)
    return student.train()


def _open(ref: str, revision: str | None, what: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(
            ref, revision=revision, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        do = "check the name, or give a directory with config.json and model.safetensors"
        raise UsageError(what, expected="a causal LM in safetensors", got=str(error), do=do) from None


def require_plain_head(student: Any, what: str) -> None:
    """The loss computes logits as hidden @ head.T itself; refuse a student that does more.

    Raises:
        UsageError: a bias, a soft cap, a scale or anything else between hidden states and logits.
    """
    ids_BT = torch.arange(4).remainder(student.config.vocab_size)[None]
    with torch.inference_mode():
        student.eval()
        logits = student(input_ids=ids_BT).logits
        ours = hidden_states(student, ids_BT, torch.ones_like(ids_BT)) @ head_weight(student).T
        student.train()
    if logits.shape != ours.shape or not torch.allclose(logits.float(), ours.float(), rtol=1e-3, atol=1e-3):
        raise UsageError(
            what,
            expected="logits that are one product of hidden states and head",
            got="a bias, soft cap or scale after it",
            do="take another model",
        )


def decoder(student: Any) -> nn.Module:
    """The student without its head; adapted layers included."""
    body: nn.Module = plain(student).base_model
    return body


def head_weight(student: Any) -> Tensor:
    """The output embedding [V, D]."""
    weight: Tensor = plain(student).get_output_embeddings().weight
    return weight


def hidden_states(student: Any, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """Last hidden states [B, T, D], after the final norm."""
    hidden: Tensor = decoder(student)(
        input_ids=input_ids_BT, attention_mask=attention_mask_BT, use_cache=False
    ).last_hidden_state
    return hidden


def longest_window(student: Any) -> int | None:
    """Positions the student has; None where it names no bound."""
    positions = getattr(student.config, "max_position_embeddings", None)
    return int(positions) if positions else None


def count_parameters(student: nn.Module) -> int:
    """Weights, tied ones once; adapters, which are merged in the end, not at all."""
    return sum(parameter.numel() for name, parameter in student.named_parameters() if ".lora_" not in name)


def count_trained(student: nn.Module) -> int:
    """Weights that training changes."""
    return sum(parameter.numel() for parameter in student.parameters() if parameter.requires_grad)
