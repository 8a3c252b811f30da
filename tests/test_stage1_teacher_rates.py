"""The figures at the end of a capture: what they are made of, not how large they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import table_teacher as table
import torch
from tiny_model import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, Starcoder2Config, Starcoder2ForCausalLM
from typer.testing import CliRunner

from cache.reader import open_cache
from cache.verify import verify
from shared.config import check_config
from stage1_teacher.__main__ import app
from stage1_teacher.budget import Budget
from stage1_teacher.capture import capture
from stage1_teacher.config import CaptureConfig, TeacherConfig
from stage1_teacher.rates import Rates, bare_rate, flops_per_token, measure, peak_rate
from stage1_teacher.teacher import TeacherModel, split

FIELDS = {"tokens", "seconds", "bare_tokens_per_second", "utilisation", "peak_bytes", "batch_tokens", "lowered"}
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
SHAPE: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512}


def opened(model: Any) -> TeacherModel:
    return split(model.eval(), TeacherConfig(model="t", dtype="float32", device_map="cpu"))


def test_flops_are_two_a_weight_that_is_multiplied() -> None:
    torch.manual_seed(0)
    tied = Starcoder2ForCausalLM(Starcoder2Config(**SHAPE, tie_word_embeddings=True))
    untied = LlamaForCausalLM(LlamaConfig(**SHAPE))
    assert flops_per_token(opened(tied)) == 2 * sum(weight.numel() for weight in tied.parameters())
    assert flops_per_token(opened(untied)) == 2 * (sum(weight.numel() for weight in untied.parameters()) - 300 * 16)


@pytest.mark.parametrize(
    ("card", "rate"),
    [("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA H100 PCIe", 756e12), ("NVIDIA L40S", 362e12), ("X", None)],
)
def test_known_cards_have_a_stated_rate(monkeypatch: pytest.MonkeyPatch, card: str, rate: float | None) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: card)
    assert peak_rate(torch.device("cuda")) == rate
    assert peak_rate(torch.device("cpu")) is None


def test_a_bare_pass_that_does_not_fit_is_left_out() -> None:
    def full(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = table.teacher()
    assert bare_rate(model, table.windows(3), 64) is None, "nobody gave it the model's own head"
    assert bare_rate(replace(model, head=full), table.windows(3), 64) is None
    rate = bare_rate(replace(model, head=lambda hidden: hidden @ model.head_weight_VD.T), table.windows(3), 64)
    assert rate is not None
    assert rate > 0


def test_the_line_leaves_out_what_is_not_known() -> None:
    rates = measure(table.teacher(), table.windows(3), 120, 2.0, Budget(64))
    assert (rates.tokens_per_second, rates.of_bare, rates.utilisation) == (60.0, None, None)
    assert rates.peak_bytes > 10_000_000
    assert replace(rates, peak_bytes=1_500_000_000).line() == ("60 tokens/s; peak memory 1.50 GB; batches of 64 tokens")
    known = Rates(120, 2.0, 75.0, 0.5, 10**9, 64, 2)
    assert known.line() == (
        "60 tokens/s, 0.80 of the bare forward pass, 0.50 of the card's bfloat16 rate; peak memory 1.00 GB; "
        "batches of 64 tokens, lowered 2 times for want of memory"
    )


def test_capture_tells_its_speed_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE)).save_pretrained(tmp_path / "teacher")
    byte_tokenizer().save_pretrained(tmp_path / "teacher")
    rng = np.random.default_rng(0)
    rows = [{"text": "x = " + " + ".join(map(str, rng.integers(0, 99, 5)))} for _ in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "cache": "./cache",
        "teacher": {"model": "./teacher", "device_map": "cpu"},
        "corpus": {"path": "./rows.jsonl", "text": "text"},
        "shape": None,
    }
    (tmp_path / "capture.json").write_text(json.dumps(config))
    runs = [CliRunner().invoke(app, ["capture", str(tmp_path / "capture.json"), "--json"]) for _ in range(2)]
    facts = [json.loads(run.stdout) for run in runs]
    assert set(facts[0]["rates"]) == FIELDS | {"tokens_per_second", "of_bare"}
    assert facts[0]["rates"]["tokens"] == facts[0]["tokens"]
    assert facts[0]["rates"]["batch_tokens"] == 4096
    assert facts[1]["rates"] is None, "a finished capture reads nothing"
    assert facts[0]["cache_id"] == facts[1]["cache_id"]
    manifest = (tmp_path / "cache" / "manifest.json").read_text()
    assert "tokens_per_second" not in manifest


@pytest.mark.requires_gpu
def test_a_capture_on_a_gpu_finds_its_batch_and_agrees_with_a_cpu(tmp_path: Path) -> None:
    """Streams, pinned memory, the compiled tail mass and bfloat16 products that add up in float32, all at once."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SHAPE, initializer_range=0.1)).save_pretrained(tmp_path / "teacher")
    byte_tokenizer().save_pretrained(tmp_path / "teacher")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": "ab " * n}) + "\n" for n in range(1, 60)))
    caches, rates = [], list[Rates]()
    for device in ("cuda:0", "cpu"):
        data = {
            "cache": f"./{device[:3]}",
            "teacher": {"model": "./teacher", "device_map": device},
            "corpus": {"path": "./rows.jsonl", "text": "text"},
            "shape": None,
        }
        config = check_config(CaptureConfig, data, base=tmp_path, name="test")
        capture(config, progress=False, told=rates.append)
        assert verify(config.cache, "deep") == []
        caches.append(open_cache(config.cache))
    assert rates[0].batch_tokens > 4096
    assert rates[0].of_bare is not None
    for number in range(len(caches[1])):
        np.testing.assert_allclose(caches[0][number].gold_P, caches[1][number].gold_P, atol=0.15)
