"""LoRA students: what is trained, what a checkpoint holds, what is published. Not for other pretrained students."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from student_cache import VOCAB, Crash, crash_after, curve, make_caches, make_config
from tiny_model import byte_tokenizer, save_tiny_model
from transformers import AutoModelForCausalLM

from shared.errors import UsageError
from shared.tokenizer import fingerprint
from stage2_student import lora
from stage2_student import train as train_module
from stage2_student.student_config import Architecture, StudentConfig
from stage2_student.students import (
    build_student,
    count_parameters,
    count_trained,
    from_scratch,
    head_weight,
    hidden_states,
)
from stage2_student.train import train

TOKENIZER = fingerprint(byte_tokenizer())


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Caches and a pretrained model of 257 rows, three fewer than the caches' vocabulary."""
    folder = make_caches(tmp_path_factory.mktemp("lora"))
    save_tiny_model(folder / "model", positions=32)
    return folder


@pytest.fixture(autouse=True)
def _no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture costs more than these trainings."""
    monkeypatch.setattr(train_module, "draw_curves", lambda *_: None)


def student_section(places: Path, **changes: Any) -> dict[str, Any]:
    return {"pretrained": str(places / "model"), "lora": {"rank": 2, "alpha": 8, "dropout": 0.1} | changes}


def adapted(places: Path, **changes: Any) -> Any:
    return build_student(StudentConfig.model_validate(student_section(places, **changes)), VOCAB, TOKENIZER)


def test_only_adapters_are_trained_and_they_start_at_nothing(places: Path) -> None:
    student = adapted(places)
    trained = [name for name, weight in student.named_parameters() if weight.requires_grad]
    assert trained and all(".lora_" in name for name in trained)
    assert count_trained(student) == sum(student.get_parameter(name).numel() for name in trained)
    plain = AutoModelForCausalLM.from_pretrained(places / "model").eval()
    assert count_parameters(student) == count_parameters(plain) + 3 * 32  # padding rows
    ids_BT = torch.randint(0, 257, (2, 9))
    ours = hidden_states(student.eval(), ids_BT, torch.ones_like(ids_BT)) @ head_weight(student).T
    torch.testing.assert_close(ours[..., :257], plain(ids_BT).logits)


def test_named_targets_alone_get_adapters(places: Path) -> None:
    student = adapted(places, targets=["c_attn"])
    names = {name.split(".lora_")[0].rsplit(".", 1)[-1] for name, _ in student.named_parameters() if ".lora_" in name}
    assert names == {"c_attn"}
    with pytest.raises(UsageError) as caught:
        adapted(places, targets=["c_attn", "q_proj"])
    assert str(caught.value) == (
        "student model: student.lora.targets: expected among its linear layers c_attn, c_fc, c_proj, got q_proj; "
        "correct the names, or leave targets out for all of them"
    )


def test_without_peft_one_sentence(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"student.lora: expected the package peft, .* pip install 'codestill\[lora\]'"
    ):
        adapted(places)


def test_merging_keeps_what_the_adapters_learnt(places: Path, tmp_path: Path) -> None:
    torch.manual_seed(2)
    shape = Architecture(family="llama", layers=1, width=16, heads=2, positions=16)
    from_scratch(shape, VOCAB, TOKENIZER).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = StudentConfig.model_validate({"pretrained": str(tmp_path), "lora": {"rank": 3, "alpha": 5}})
    student = build_student(config, VOCAB, TOKENIZER).eval()
    with torch.no_grad():
        for name, weight in student.named_parameters():
            if ".lora_" in name:
                weight.normal_()
    ids_BT = torch.randint(0, 257, (2, 9))
    before = student(input_ids=ids_BT).logits.detach()
    whole = lora.merged(student)
    assert type(whole).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(whole(ids_BT).logits, before, rtol=1e-4, atol=1e-4)
    assert lora.merged(whole) is whole


def test_averaged_checkpointed_adapters_are_merged_too(places: Path, tmp_path: Path) -> None:
    changes = {"ema": 0.5, "gradient_checkpointing": True, "keep_best": True, "max_steps": 2, "epochs": None}
    train(make_config(tmp_path, places, {**changes, "student": student_section(places), "eval_every": 1}))
    student, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    base = AutoModelForCausalLM.from_pretrained(places / "model")
    assert not torch.equal(student.transformer.h[0].attn.c_attn.weight, base.transformer.h[0].attn.c_attn.weight)


def test_a_killed_lora_run_goes_on_and_publishes_a_standard_checkpoint(
    places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"student": student_section(places), "save_every": 3, "epochs": 1}
    whole = make_config(tmp_path, places, {**changes, "out": str(tmp_path / "whole")})
    broken = make_config(tmp_path, places, {**changes, "out": str(tmp_path / "broken")})
    train(whole)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        crash_after(patch, 3)
        train(broken)
    checkpoint = broken.out / "checkpoints" / "checkpoint-3"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model.safetensors").exists()
    run = train(broken)
    assert curve(broken.out) == curve(whole.out)
    one, other = (load_file(config.out / "model.safetensors") for config in (whole, broken))
    assert all(torch.equal(one[name], other[name]) for name in one)
    student, info = AutoModelForCausalLM.from_pretrained(whole.out, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(student).__name__ == "GPT2LMHeadModel"
    base = AutoModelForCausalLM.from_pretrained(places / "model")
    assert not torch.equal(student.transformer.h[0].attn.c_attn.weight, base.transformer.h[0].attn.c_attn.weight)
    assert torch.equal(student.transformer.wpe.weight, base.transformer.wpe.weight)
    assert run["config"]["student"]["lora"]["rank"] == 2
    assert run["parameters"] == count_parameters(student)
    assert run["trained_parameters"] < run["parameters"] / 2
    assert "adapter_config.json" not in {path.name for path in whole.out.iterdir()}
    assert json.loads((whole.out / "config.json").read_text())["model_type"] == "gpt2"
