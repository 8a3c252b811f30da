"""Warm starts: which weights are copied, and which sources are refused. Not for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import byte_tokenizer, save_tiny_model
from transformers import AutoModelForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

from shared.errors import UsageError
from shared.tokenizer import fingerprint
from stage2_student.student_config import Architecture, Family, StudentConfig
from stage2_student.students import build_student, from_scratch

TOKENIZER = fingerprint(byte_tokenizer())
SHAPE = {"width": 16, "heads": 4, "positions": 24}


def source(folder: Path, family: Family, rows: int = 260) -> Path:
    torch.manual_seed(3)
    from_scratch(Architecture(family=family, layers=5, **SHAPE), rows, TOKENIZER).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def warm(folder: Path, layers: Any, vocab_size: int = 260, **student: Any) -> Any:
    config = StudentConfig.model_validate({**student, "warm_start": {"from": str(folder), "layers": layers}})
    return build_student(config, vocab_size, TOKENIZER)


def logits(student: Any, ids_BT: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return student.eval()(ids_BT).logits


@pytest.mark.parametrize("family", ["gpt2", "sinusoidal", "llama"])
def test_all_blocks_are_the_source_and_chosen_ones_are_its_own(tmp_path: Path, family: Family) -> None:
    source(tmp_path, family)
    whole = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids_BT = torch.randint(0, 257, (2, 7))
    same = warm(tmp_path, "even", architecture={"family": family, "layers": 5, **SHAPE})
    assert torch.equal(logits(same, ids_BT), logits(whole, ids_BT))
    fewer = warm(tmp_path, "even", architecture={"family": family, "layers": 3, **SHAPE})
    blocks = whole.transformer.h if family == "gpt2" else whole.model.layers
    for number in (3, 1):  # what is left of the source without its other blocks
        del blocks[number]
    for number, block in enumerate(blocks):
        (block.attn if family == "gpt2" else block.self_attn).layer_idx = number
    whole.config.num_hidden_layers = 3
    assert torch.equal(logits(fewer, ids_BT), logits(whole, ids_BT))
    assert fewer.training is False and warm(tmp_path, [4, 0]).training


def test_a_student_of_any_class_is_its_teacher_with_fewer_blocks(tmp_path: Path) -> None:
    torch.manual_seed(5)
    teacher = Starcoder2ForCausalLM(
        Starcoder2Config(
            vocab_size=257, hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, sliding_window=32, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    teacher.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    student = warm(tmp_path, [3, 1], vocab_size=257)
    assert isinstance(student, Starcoder2ForCausalLM)
    theirs, ours = teacher.state_dict(), student.state_dict()
    assert torch.equal(ours["model.layers.0.mlp.c_fc.weight"], theirs["model.layers.3.mlp.c_fc.weight"])
    assert torch.equal(ours["model.layers.1.self_attn.q_proj.bias"], theirs["model.layers.1.self_attn.q_proj.bias"])
    assert torch.equal(ours["model.norm.weight"], theirs["model.norm.weight"])
    assert student.config.sliding_window == 32
    student.save_pretrained(tmp_path / "out")
    ids_BT = torch.randint(0, 257, (1, 8))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), ids_BT), logits(student, ids_BT))


@pytest.mark.parametrize("rows", [257, 300])
def test_padding_rows_may_differ(tmp_path: Path, rows: int) -> None:
    source(tmp_path, "llama", rows)
    student = warm(tmp_path, [0, 2])
    whole = AutoModelForCausalLM.from_pretrained(tmp_path)
    table = student.get_input_embeddings().weight
    assert table.shape == (260, 16)
    assert student.get_output_embeddings().weight is table
    assert torch.equal(table[:257], whole.get_input_embeddings().weight[:257])
    assert bool((table[257:].norm(dim=1) > 0).all())


def test_positions_and_dropout_are_the_architectures(tmp_path: Path) -> None:
    save_tiny_model(tmp_path, positions=64)
    shape = {"layers": 1, "width": 32, "heads": 2, "positions": 40, "dropout": 0.25}
    student = warm(tmp_path, [1], architecture=shape)
    assert student.transformer.wpe.weight.shape == (40, 32)
    assert student.config.attn_pdrop == 0.25
    with pytest.raises(UsageError, match="expected at least 80 learned positions, got 64"):
        warm(tmp_path, [1], architecture={**shape, "positions": 80})


@pytest.mark.parametrize(
    ("architecture", "layers", "sentence"),
    [
        (
            {"layers": 2, "width": 32, "heads": 8, "feed_forward": 100},
            [0, 1],
            "warm_start: expected a source of the student's shapes: hidden_size 32, num_attention_heads 8, "
            "num_key_value_heads 8, inner_size 100, got hidden_size 16, num_attention_heads 4, num_key_value_heads 4, "
            "inner_size 64; change the architecture, or leave it out",
        ),
        (
            {"layers": 2, "width": 16, "heads": 4, "family": "llama"},
            [0, 1],
            "expected .* model_type llama, got model_type gpt2",
        ),
        ({"layers": 2, "width": 16, "heads": 4}, [0, 1, 2], "expected 2 of its 5 blocks, 0 to 4, got 0, 1, 2;"),
        ({"layers": 7, "width": 16, "heads": 4}, "even", "expected 7 of its 5 blocks"),
        (None, [0, 5], "expected 2 of its 5 blocks, 0 to 4, got 0, 5;"),
    ],
)
def test_other_shapes_are_refused_by_name(tmp_path: Path, architecture: Any, layers: Any, sentence: str) -> None:
    source(tmp_path, "gpt2")
    with pytest.raises(UsageError, match=sentence):
        warm(tmp_path, layers, architecture=architecture)


def test_a_source_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    source(tmp_path, "gpt2")
    config = StudentConfig.model_validate({"warm_start": {"from": str(tmp_path), "layers": [0]}})
    with pytest.raises(UsageError, match="tokenizer: expected size 300, got 257"):
        build_student(config, 300, TOKENIZER.model_copy(update={"size": 300}))
