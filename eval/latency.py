"""How long one answer takes: single generations, batch 1, greedy, a fixed number of new tokens.

NOT throughput: batches are faster per token. Numbers of two machines, or of one machine under other load, do not compare.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig

from eval.config import LatencySettings
from eval.models import LoadedModel
from shared.errors import UsageError


@dataclass(frozen=True)
class Latency:
    """Seconds of wall clock for one generation of `new_tokens` tokens, prompt included."""

    mean: float
    median: float
    per_token: float  # mean / new_tokens
    runs: int
    new_tokens: int
    device: str
    threads: int  # CPU threads torch may use


def measure_latency(loaded: LoadedModel, prompts: Sequence[Sequence[int]], settings: LatencySettings) -> Latency:
    """Time `settings.runs` generations, after `settings.warmup` that do not count, over the prompts in turn.

    Args:
        prompts: token ids of real prompts.
    Raises:
        UsageError: no prompt leaves room for the new tokens.
    """
    fitting = [ids for ids in prompts if len(ids) + settings.new_tokens <= loaded.positions]
    if not fitting:
        raise UsageError(
            f"model '{loaded.name}'",
            expected=f"a prompt with room for {settings.new_tokens} new tokens in {loaded.positions} positions",
            got=f"prompts of {min(map(len, prompts))} tokens and more",
            do="lower latency.new_tokens",
        )
    seconds = []
    turns = range(settings.warmup + settings.runs)
    for turn in tqdm(turns, desc=f"{loaded.name}: latency", unit="run"):
        seconds.append(_time_one(loaded, fitting[turn % len(fitting)], settings.new_tokens))
    timed = seconds[settings.warmup :]
    mean = statistics.fmean(timed)
    return Latency(
        mean=mean,
        median=statistics.median(timed),
        per_token=mean / settings.new_tokens,
        runs=settings.runs,
        new_tokens=settings.new_tokens,
        device=_device_name(loaded.device),
        threads=torch.get_num_threads(),
    )


@torch.inference_mode()
def _time_one(loaded: LoadedModel, prompt_ids: Sequence[int], new_tokens: int) -> float:
    settings = GenerationConfig(
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,  # without it a model that stops early would look fast
        do_sample=False,
        pad_token_id=loaded.tokenizer.eos_token_id,
        eos_token_id=sorted(loaded.end_ids),
    )
    ids_1L = torch.tensor([list(prompt_ids)], device=loaded.device)
    _wait(loaded.device)
    start = time.perf_counter()
    found: Any = loaded.model.generate(ids_1L, attention_mask=torch.ones_like(ids_1L), generation_config=settings)
    _wait(loaded.device)
    assert found.shape[1] == len(prompt_ids) + new_tokens
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
