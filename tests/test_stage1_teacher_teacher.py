"""Teachers of the real classes, tiny: what they believe, in any company, and one line for every one that cannot be opened.

Not for tokenizers (test_shared_tokenizer.py). What needs a GPU is marked so.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError
from tiny_model import byte_tokenizer
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from shared.errors import UsageError
from shared.windows import Window, window_id
from stage1_teacher import quantisation as quantisation_module
from stage1_teacher import teacher as teacher_module
from stage1_teacher.config import TeacherConfig
from stage1_teacher.reading import hidden_states
from stage1_teacher.teacher import TeacherModel, load_teacher

ROWS = 320  # a vocabulary padded beyond the tokenizer's 257
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE: dict[str, Any] = {**SIZES, "num_key_value_heads": 2, "vocab_size": ROWS, "max_position_embeddings": 128}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.1}
NF4 = "bitsandbytes, 4 bits nf4, double quantisation, computed in bfloat16"


@pytest.fixture(scope="module")
def starcoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As bigcode/starcoder2-3b: tied head, and a window of attention (its 4096; 8 here) shorter than ours."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("starcoder")
    model = Starcoder2ForCausalLM(Starcoder2Config(**SHAPE, **ENDS, sliding_window=8, tie_word_embeddings=True))
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As codellama/CodeLlama-7b-Python-hf: a head of its own, no padding token."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**SHAPE, **ENDS)).to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def config(model: Path | str, **changes: Any) -> TeacherConfig:
    return TeacherConfig.model_validate({"model": str(model), "device_map": "cpu"} | changes)


def windows(*lengths: int) -> list[Window]:
    rng = np.random.default_rng(3)
    rows = [rng.integers(0, 257, length).astype(np.int32) for length in lengths]
    return [Window(window_id(tokens, 0), tokens, 0, "d") for tokens in rows]


def logits(teacher: TeacherModel, batch: list[Window]) -> list[torch.Tensor]:
    """Of each window's positions, read together."""
    with torch.inference_mode():
        logits_NV = teacher.logits(hidden_states(teacher, batch))
    return list(torch.split(logits_NV, [len(window.tokens) - 1 for window in batch]))


@torch.inference_mode()
def own_logits(model: Any, window: Window) -> torch.Tensor:
    """What the model says to a window alone, in its ordinary use."""
    tokens_1L = torch.from_numpy(window.tokens)[None].long()
    found: torch.Tensor = model(tokens_1L, attention_mask=torch.ones_like(tokens_1L)).logits[0, :-1].float()
    return found


def test_starcoder2_sees_in_a_padded_batch_what_it_sees_alone(starcoder: Path) -> None:
    teacher = load_teacher(config(starcoder, dtype="float32"))
    model = AutoModelForCausalLM.from_pretrained(starcoder, dtype=torch.float32).eval()
    batch = windows(40, 33, 9, 2)
    for window, found_PV in zip(batch, logits(teacher, batch), strict=True):
        torch.testing.assert_close(found_PV, own_logits(model, window), atol=1e-4, rtol=1e-4)
    wide = AutoModelForCausalLM.from_pretrained(starcoder, dtype=torch.float32, sliding_window=128).eval()
    gap_P = (own_logits(wide, batch[0]) - own_logits(model, batch[0])).abs().amax(dim=1)
    assert float(gap_P[:8].max()) < 1e-4 < 0.01 < float(gap_P[15:].max()), "the window of attention is felt"
    assert teacher.vocab_size == ROWS
    assert teacher.head.weight is teacher.body.get_input_embeddings().weight, "tied"
    assert (teacher.facts.architecture, teacher.facts.quantisation) == ("Starcoder2ForCausalLM", None)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_is_the_one_that_was_asked_for(llama: Path, attention: str) -> None:
    teacher = load_teacher(config(llama, attention=attention))
    assert teacher.body.config._attn_implementation == attention


def test_a_llama_in_4_bits(llama: Path, tmp_path: Path) -> None:
    plain, teacher = load_teacher(config(llama)), load_teacher(config(llama, quantisation={"bits": 4}))
    assert teacher.facts.quantisation == NF4
    assert (plain.facts.quantisation, plain.facts.weights) == (None, teacher.facts.weights)
    assert teacher.facts.parameters == plain.facts.parameters, "four bits hold no fewer parameters"
    assert torch.equal(teacher.head_weight_VD, plain.head_weight_VD), "the head keeps its precision"
    batch = windows(30, 12)
    ours, theirs = torch.cat(logits(teacher, batch)), torch.cat(logits(plain, batch))
    gap = float((ours - theirs).std() / theirs.std())
    assert 0.02 < gap < 0.5, "another teacher, but a kin of the first"
    loaded = AutoModelForCausalLM.from_pretrained(
        llama,
        dtype=torch.bfloat16,
        device_map="cpu",
        quantization_config=quantisation_module.asked_for(config(llama, quantisation={"bits": 4})),
    )
    loaded.save_pretrained(tmp_path)  # a checkpoint that comes quantised; a first forward pass would repack its weights
    torch.testing.assert_close(ours[:29], own_logits(loaded, batch[0]), atol=0.05, rtol=0.05)
    again = load_teacher(config(tmp_path))
    assert again.facts.quantisation == NF4
    assert again.facts.weights != plain.facts.weights
    torch.testing.assert_close(torch.cat(logits(again, batch)), ours)


def test_a_llama_in_8_bits(llama: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = load_teacher(config(llama, quantisation={"bits": 8}))
    assert teacher.facts.quantisation == "bitsandbytes, 8 bits"
    ours, theirs = (torch.cat(logits(one, windows(30))) for one in (teacher, load_teacher(config(llama))))
    assert 0.001 < float((ours - theirs).std() / theirs.std()) < 0.1
    assert "inputs will be cast" not in caplog.text


@pytest.mark.parametrize(("asked", "kind"), [({"load_in_4bit": True}, "uint8"), ({"load_in_8bit": True}, "int8")])
def test_a_quantised_head_is_refused(llama: Path, asked: dict[str, bool], kind: str) -> None:
    everything = BitsAndBytesConfig(**asked, llm_int8_skip_modules=["nothing"])
    model = AutoModelForCausalLM.from_pretrained(llama, quantization_config=everything, device_map="cpu")
    with pytest.raises(UsageError, match=rf": head: expected weights in floating point, got torch\.{kind} \(Linear"):
        teacher_module.split(model, config(llama))


def test_weights_that_wait_on_the_disk_are_fetched(llama: Path, tmp_path: Path) -> None:
    """As accelerate's `auto` does where a card is too small."""
    places = {"lm_head": "disk", "model.layers.1": "disk"}
    places |= dict.fromkeys(["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"], "cpu")
    model = AutoModelForCausalLM.from_pretrained(
        llama, dtype=torch.bfloat16, device_map=places, offload_folder=tmp_path
    ).eval()
    assert model.lm_head.weight.device.type == "meta"
    found = logits(teacher_module.split(model, config(llama)), windows(20))[0]
    torch.testing.assert_close(found, logits(load_teacher(config(llama)), windows(20))[0])


def said(settings: TeacherConfig) -> str:
    with pytest.raises(UsageError) as caught:
        load_teacher(settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_not_installed_is_named(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(config(llama, attention="flash_attention_2")).endswith(
        "doesn't seem to be installed.; install flash-attn for this GPU, or set teacher.attention: sdpa"
    )
    monkeypatch.setattr(quantisation_module, "find_spec", lambda _: None)
    assert said(config(llama, quantisation={"bits": 4})) == (
        "teacher.quantisation: expected the package bitsandbytes, got none; "
        "install the extra: pip install 'codestill[quant]'"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU is meant")
def test_a_gpu_that_is_not_there(llama: Path) -> None:
    assert said(config(llama, device_map="cuda:0")) == (
        "teacher.device_map: expected a GPU that torch sees, got none; "
        "set teacher.device_map: cpu, or install torch for this GPU"
    )


def refuse_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refuse)


def test_a_gated_teacher_says_how_to_log_in(monkeypatch: pytest.MonkeyPatch) -> None:
    response: Any = SimpleNamespace(request=None, headers={}, status_code=403)
    wrapped = OSError("You are trying to access a gated repo.\nMake sure to have access to it.")
    wrapped.__cause__ = GatedRepoError("403 Client Error.", response=response)
    refuse_with(monkeypatch, wrapped)
    assert said(config("somebody/gated")) == (
        "teacher somebody/gated: expected a causal LM, got a gated one, and no token of somebody who was let in; "
        "accept its terms on its hub page, then log in: `hf auth login`, or set HF_TOKEN"
    )


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 100.00 MiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory: you tried to allocate"
        ),
        ValueError("Some modules are dispatched on the CPU or the disk. Make sure you have enough GPU RAM to fit"),
    ],
)
def test_a_card_that_is_too_small_says_what_would_fit(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    refuse_with(monkeypatch, error)
    monkeypatch.setattr(quantisation_module, "device_memory", lambda: 8_000_000_000)
    assert said(config("some/teacher-7b", device_map="balanced")) == (
        "teacher some/teacher-7b: expected one that fits into 8.0 GB, got out of memory; in teacher, set quantisation: "
        "{bits: 8}, or quantisation: {bits: 4}, or device_map: auto (what does not fit waits in CPU memory: slow); or take "
        "a device with more memory"
    )


def test_only_what_would_fit_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation_module, "device_memory", lambda: 8_000_000_000)
    whole = str(quantisation_module.too_small("teacher t", 7_000_000_000, config("t", device_map="auto")))
    assert whole.endswith("in teacher, set quantisation: {bits: 4}; or take a device of 16 GB")
    small = str(quantisation_module.too_small("teacher t", 7_000_000_000, config("t", quantisation={"bits": 4})))
    assert small.endswith(
        "set device_map: auto (what does not fit waits in CPU memory: slow); or take a device of 5 GB"
    )


def test_memory_that_runs_out_in_a_fit_is_one_line_too() -> None:
    with (
        pytest.raises(
            UsageError, match=r"^teacher t: expected one that fits into .*, got out of memory; in teacher, set "
        ),
        quantisation_module.room_for("teacher t", 1, config("t")),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    with pytest.raises(RuntimeError, match="another"), quantisation_module.room_for("teacher t", 1, config("t")):
        raise RuntimeError("another")


def test_layers_that_wait_elsewhere_are_told() -> None:
    for places in ({}, {"": "cpu"}, {"": 0}, {"a": 0, "b": 1}, {"a": "cuda:0"}):
        assert quantisation_module.what_waits(places) == ""
    assert quantisation_module.what_waits({"a": 0, "b": 0, "c": "cpu", "d": "disk"}) == (
        "2 of its 4 pieces wait on cpu and disk for each batch: slow; with quantisation: {bits: 4} it may fit as a whole"
    )


def test_other_mistakes_are_not_called_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_with(monkeypatch, RuntimeError("size mismatch for lm_head.weight"))
    assert "size mismatch" in said(config("some/teacher"))


@pytest.mark.requires_gpu
def test_a_gpu_believes_what_a_cpu_believes(llama: Path, starcoder: Path) -> None:
    for path in (llama, starcoder):
        batch = windows(40, 33, 9, 2)
        pairs = zip(
            logits(load_teacher(config(path, device_map="cuda:0")), batch),
            logits(load_teacher(config(path)), batch),
            strict=True,
        )
        for gpu_PV, cpu_PV in pairs:
            torch.testing.assert_close(gpu_PV.cpu(), cpu_PV, atol=0.1, rtol=0.05)
