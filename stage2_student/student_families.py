"""The families a student from scratch can belong to, as transformers configs: GPT-2, sinusoidal positions, small Llama.

One block of each family has as many weights as a GPT-2 block of the same width, so sizes match across families.
Not for pretrained students or for building the model (students.py).
"""

from __future__ import annotations

import math
from typing import Any

from shared.tokenizer import TokenizerFingerprint
from stage2_student.student_config import Architecture, PresetName

PRESETS: dict[PresetName, Architecture] = {  # parameters at 49,152 tokens
    "gpt2-44m": Architecture(layers=6, width=512, heads=8),  # 44.343 M
    "gpt2-202m": Architecture(layers=12, width=1024, heads=16),  # 202.013 M
    "sinusoidal-44m": Architecture(family="sinusoidal", layers=6, width=512, heads=8),  # 44.081 M
    "sinusoidal-202m": Architecture(family="sinusoidal", layers=12, width=1024, heads=16),  # 201.488 M
    "llama-44m": Architecture(family="llama", layers=6, width=512, heads=8, kv_heads=2),  # 44.440 M
    "llama-202m": Architecture(family="llama", layers=12, width=1024, heads=16, kv_heads=4),  # 202.139 M
}

SWIGLU_STEP = 64  # inner sizes are multiples of it, for the sake of matrix kernels


def model_config(architecture: Architecture, vocab_size: int, tokenizer: TokenizerFingerprint) -> Any:
    """The transformers config of a student: tied embeddings, this vocabulary, this tokenizer's special ids.

    GPT-2 draws weights with deviation 0.02 at width 768; scaled by 1 / sqrt(width), narrow students start with
    activations of the same size (0.02 at width 128 learns visibly slower).
    """
    make = {"gpt2": _gpt2, "sinusoidal": _sinusoidal, "llama": _llama}[architecture.family]
    return make(
        architecture,
        0.02 * math.sqrt(768 / architecture.width),
        vocab_size=vocab_size,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eos,
        pad_token_id=tokenizer.pad,
        tie_word_embeddings=True,
        use_cache=False,
    )


def feed_forward(architecture: Architecture) -> int:
    """Inner size of a block's feed-forward part; by default 4 x width, and for SwiGLU what gives a block as many weights."""
    width, heads = architecture.width, architecture.heads
    if architecture.feed_forward is not None:
        return architecture.feed_forward
    if architecture.family != "llama":
        return 4 * width
    attention = 2 * width * width * (1 + (architecture.kv_heads or heads) / heads)
    inner = (12 * width * width - attention) / (3 * width)
    return SWIGLU_STEP * math.ceil(inner / SWIGLU_STEP)


def dropout(architecture: Architecture) -> float:
    """The architecture's, or its family's own."""
    if architecture.dropout is not None:
        return architecture.dropout
    return 0.0 if architecture.family == "llama" else 0.1


def _gpt2(architecture: Architecture, deviation: float, **common: Any) -> Any:
    from transformers import GPT2Config

    share = dropout(architecture)
    return GPT2Config(
        n_positions=architecture.positions,
        n_embd=architecture.width,
        n_layer=architecture.layers,
        n_head=architecture.heads,
        n_inner=architecture.feed_forward,
        resid_pdrop=share,
        embd_pdrop=share,
        attn_pdrop=share,
        initializer_range=deviation,
        **common,
    )


def _sinusoidal(architecture: Architecture, deviation: float, **common: Any) -> Any:
    """XGLM's class (Lin et al. 2022, arXiv 2112.10668). Embeddings are multiplied by sqrt(width), as in Vaswani et al.

    It takes the padding id for granted: that token's embedding would never be trained, and the position of that number
    would have no code (position p is row p + 2). Nothing of ours looks at padding, so the model is told of none.
    """
    from transformers import XGLMConfig

    share = dropout(architecture)
    return XGLMConfig(
        max_position_embeddings=architecture.positions,
        d_model=architecture.width,
        num_layers=architecture.layers,
        attention_heads=architecture.heads,
        ffn_dim=feed_forward(architecture),
        dropout=share,
        attention_dropout=share,
        activation_dropout=0.0,
        layerdrop=0.0,
        init_std=deviation,
        scale_embedding=True,
        **{**common, "pad_token_id": None},
    )


def _llama(architecture: Architecture, deviation: float, **common: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        max_position_embeddings=architecture.positions,
        hidden_size=architecture.width,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        num_key_value_heads=architecture.kv_heads or architecture.heads,
        intermediate_size=feed_forward(architecture),
        attention_dropout=dropout(architecture),
        initializer_range=deviation,
        **common,
    )
