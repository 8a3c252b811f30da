"""The families of students from scratch: sizes, plain heads, and standard checkpoints. Not for warm starts or LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from shared.tokenizer import TokenizerFingerprint
from stage2_student.student_config import Architecture, Family, PresetName, StudentConfig
from stage2_student.student_families import PRESETS
from stage2_student.students import count_parameters, from_scratch, longest_window, require_plain_head

FACTS = TokenizerFingerprint(
    size=97, vocab_sha256="0" * 64, bos=0, eos=2, pad=5, unk=None, special={}, probe_sha256="0" * 64
)
SMALL = {"layers": 2, "width": 16, "heads": 4, "positions": 24}


@pytest.mark.parametrize("size", ["44m", "202m"])
def test_families_match_gpt2_in_size(size: str) -> None:
    def parameters(name: str) -> int:
        with torch.device("meta"):
            return count_parameters(from_scratch(PRESETS[f"{name}-{size}"], 49_152, FACTS))  # type: ignore[index]

    wanted = parameters("gpt2")
    assert parameters("sinusoidal") == pytest.approx(wanted, rel=0.03)
    assert parameters("llama") == pytest.approx(wanted, rel=0.03)
    assert set(PRESETS) == set(get_args(PresetName))


@pytest.mark.parametrize("family", get_args(Family))
def test_a_student_is_a_standard_checkpoint_with_a_plain_head(family: Family, tmp_path: Path) -> None:
    torch.manual_seed(1)
    student = from_scratch(Architecture(family=family, **SMALL), 97, FACTS)
    assert student.training
    assert longest_window(student) == 24
    require_plain_head(student, "student")
    student.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids_BT = torch.randint(0, 97, (2, 9))
    assert torch.equal(again(ids_BT).logits, student.eval()(ids_BT).logits)
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    special = again.generation_config
    assert (special.bos_token_id, special.eos_token_id, special.pad_token_id) == (0, 2, 5)
    completion = again.generate(
        ids_BT[:1], attention_mask=torch.ones_like(ids_BT[:1]), max_new_tokens=4, min_new_tokens=4, do_sample=False
    )
    step = again(completion[:, :-1]).logits[0, -1].argmax()
    assert completion[0, -1] == step


def test_the_padding_token_is_trained_and_seen_like_any_other() -> None:
    """XGLM's class would freeze its embedding and blank the position of its number."""
    student = from_scratch(Architecture(family="sinusoidal", dropout=0.0, **SMALL), 97, FACTS)
    table = student.base_model.embed_positions.weights
    assert bool((table.norm(dim=1) > 1).all())
    ids_BT = torch.full((1, 6), 5)
    student(input_ids=ids_BT, labels=torch.arange(6)[None]).loss.backward()
    body = student.base_model(input_ids=ids_BT).last_hidden_state
    student.zero_grad()
    body.square().mul(torch.arange(16)).sum().backward()  # the input side alone
    assert bool(student.get_input_embeddings().weight.grad[5].abs().max() > 0)


def test_llama_is_the_modern_block() -> None:
    student = from_scratch(Architecture(family="llama", kv_heads=2, feed_forward=40, **SMALL), 97, FACTS)
    block = student.base_model.layers[0]
    assert block.self_attn.k_proj.weight.shape == (8, 16)
    assert block.mlp.gate_proj.weight.shape == block.mlp.up_proj.weight.shape == (40, 16)
    assert type(block.input_layernorm).__name__ == "LlamaRMSNorm"
    assert block.self_attn.q_proj.bias is None


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"kv_heads": 2}, "kv_heads only beside family: llama"),
        ({"family": "llama", "kv_heads": 3}, r"kv_heads to be a divisor of heads \(4 / 3 is not whole\)"),
        ({"family": "llama", "width": 12}, "an even width of each head, which RoPE turns in pairs"),
        ({"width": 18}, "width to be a multiple of heads"),
    ],
)
def test_impossible_shapes_are_refused(fields: dict[str, int], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Architecture.model_validate(SMALL | fields)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, r"exactly one of preset, architecture, pretrained \(or warm_start alone\)"),
        ({"preset": "gpt2-44m", "architecture": SMALL}, "exactly one of preset"),
        ({"preset": "gpt2-44m", "lora": {"rank": 2, "alpha": 4}}, "lora only beside pretrained"),
        ({"preset": "gpt2-44m", "revision": "x"}, "revision only beside pretrained"),
        ({"pretrained": "x", "warm_start": {"from": "y", "layers": [0]}}, "not beside pretrained"),
        ({"warm_start": {"from": "y", "layers": "even"}}, "warm_start.layers as a list"),
        ({"warm_start": {"from": "y", "layers": []}}, "layers as numbers from 0, at least one"),
    ],
)
def test_contradicting_students_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        StudentConfig.model_validate(fields)
