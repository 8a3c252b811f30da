"""Students: sizes, special ids, refusals. Not for training them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import byte_tokenizer, save_tiny_model
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, GPT2Config

from shared.errors import UsageError
from shared.tokenizer import TokenizerFingerprint, fingerprint
from stage2_student.student_config import Architecture, StudentConfig
from stage2_student.students import (
    PRESETS,
    build_student,
    count_parameters,
    from_scratch,
    head_weight,
    hidden_states,
    longest_window,
    require_plain_head,
)

FACTS = TokenizerFingerprint(
    size=49_152, vocab_sha256="0" * 64, bos=0, eos=0, pad=None, unk=0, special={}, probe_sha256="0" * 64
)


@pytest.mark.parametrize(("preset", "millions"), [("gpt2-44m", 44.343), ("gpt2-202m", 202.013)])
def test_presets_have_their_published_size(preset: str, millions: float) -> None:
    with torch.device("meta"):
        student = from_scratch(PRESETS[preset], 49_152, FACTS)
    assert round(count_parameters(student) / 1e6, 3) == millions
    assert student.get_output_embeddings().weight is student.get_input_embeddings().weight
    assert longest_window(student) == 512


def test_special_ids_come_from_the_tokenizer() -> None:
    facts = FACTS.model_copy(update={"bos": 5, "eos": 6, "pad": 7})
    student = from_scratch(Architecture(layers=1, width=8, heads=2, positions=16), 50, facts)
    config = student.generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (5, 6, 7)
    assert student.config.eos_token_id == 6


def test_hidden_states_times_head_are_the_logits(tmp_path: Path) -> None:
    student = AutoModelForCausalLM.from_pretrained(save_tiny_model(tmp_path)).eval()
    ids = torch.randint(0, 257, (2, 9))
    ours = hidden_states(student, ids, torch.ones_like(ids)) @ head_weight(student).T
    torch.testing.assert_close(ours, student(ids).logits)


def test_pretrained_student_gets_the_caches_padded_vocabulary(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    student = build_student(StudentConfig(pretrained=str(tmp_path)), 264, fingerprint(byte_tokenizer()))
    before = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert head_weight(student).shape[0] == 264
    torch.testing.assert_close(head_weight(student)[:257], head_weight(before))
    assert student.training


def test_pretrained_student_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    with pytest.raises(UsageError) as caught:
        build_student(StudentConfig(pretrained=str(tmp_path)), 49_152, FACTS)
    assert str(caught.value) == (
        f"student {tmp_path.name}: tokenizer: expected size 49152, got 257; "
        "take a model with the cache's tokenizer, capture with this one's, or set other_tokenizer"
    )


def test_pretrained_student_without_safetensors_is_refused(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match="expected a causal LM in safetensors"):
        build_student(StudentConfig(pretrained=str(tmp_path)), 257, fingerprint(byte_tokenizer()))


def test_a_soft_cap_behind_the_head_is_refused() -> None:
    config = Gemma2Config(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=0.5,
    )
    torch.manual_seed(0)
    student = Gemma2ForCausalLM(config)
    with torch.no_grad():
        head_weight(student).mul_(30)
    with pytest.raises(UsageError, match="got a bias, soft cap or scale after it"):
        require_plain_head(student, "student x")


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused() -> None:
    with pytest.raises(UsageError, match="at most 100 tokens"):
        build_student(StudentConfig(preset="gpt2-44m"), 100, FACTS)


def test_dropout_and_sizes_reach_the_model() -> None:
    student = from_scratch(Architecture(layers=3, width=12, heads=4, positions=40, dropout=0.25), 50, FACTS)
    config: GPT2Config = student.config
    assert (config.n_layer, config.n_embd, config.n_head, config.n_positions) == (3, 12, 4, 40)
    assert config.resid_pdrop == config.attn_pdrop == config.embd_pdrop == 0.25
