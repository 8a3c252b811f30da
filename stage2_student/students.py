"""Students: what is trained, sized for the cache's vocabulary, and where its hidden states and head are.

Not for training (trainer.py). Vocabulary and special ids always come from the cache's manifest.
Shapes: B windows of a batch, T their longest, D width, V vocabulary.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shared.errors import UsageError
from shared.tokenizer import TokenizerFingerprint, check_model_vocabulary, fingerprint, load_tokenizer, require_same
from stage2_student.config import Architecture, StudentConfig

PRESETS = {
    "gpt2-44m": Architecture(layers=6, width=512, heads=8),  # 44.343 M parameters at 49,152 tokens
    "gpt2-202m": Architecture(layers=12, width=1024, heads=16),  # 202.013 M
}


def build_student(config: StudentConfig, vocab_size: int, tokenizer: TokenizerFingerprint) -> Any:
    """The student as a transformers causal LM, on the CPU, in float32 and training mode.

    Args:
        config: preset, architecture or pretrained model.
        vocab_size: rows of the head: the teacher's model vocabulary, padding included.
        tokenizer: the cache's.
    Raises:
        UsageError: the pretrained model has another tokenizer, no safetensors, or a head that is more than one product.
    """
    if config.pretrained is not None:
        return _pretrained(config.pretrained, config.revision, vocab_size, tokenizer)
    architecture = config.architecture or PRESETS[str(config.preset)]
    check_model_vocabulary(tokenizer.size, vocab_size)
    return from_scratch(architecture, vocab_size, tokenizer)


def from_scratch(architecture: Architecture, vocab_size: int, tokenizer: TokenizerFingerprint) -> Any:
    """A GPT-2 with tied embeddings and fresh weights, from torch's random state.

    GPT-2 draws weights with deviation 0.02 at width 768; scaled by 1 / sqrt(width), narrow students start with
    activations of the same size (0.02 at width 128 learns visibly slower).
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=architecture.positions,
        n_embd=architecture.width,
        n_layer=architecture.layers,
        n_head=architecture.heads,
        resid_pdrop=architecture.dropout,
        embd_pdrop=architecture.dropout,
        attn_pdrop=architecture.dropout,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
        initializer_range=0.02 * math.sqrt(768 / architecture.width),
        tie_word_embeddings=True,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def _pretrained(ref: str, revision: str | None, vocab_size: int, tokenizer: TokenizerFingerprint) -> Any:
    what = f"student {Path(ref).name if Path(ref).is_absolute() else ref}"
    theirs = fingerprint(load_tokenizer(ref, revision))
    require_same(tokenizer, theirs, what=what, do="take a model with the cache's tokenizer, or capture with this one's")
    student = _open(ref, revision, what)
    if student.get_input_embeddings().weight.shape[0] != vocab_size:
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
    """The student without its head."""
    body: nn.Module = student.base_model
    return body


def head_weight(student: Any) -> Tensor:
    """The output embedding [V, D]."""
    weight: Tensor = student.get_output_embeddings().weight
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
    """Weights, tied ones once."""
    return sum(parameter.numel() for parameter in student.parameters())
