"""Sampling that gives every sample its own randomness, as steps of transformers' `generate`; eval and stage 1 share it.

A sample is drawn by one uniform number a token (inverse of the cumulative distribution), and those numbers depend on the
sample's name alone. So a sample does not depend on its neighbours in the batch, nor on what was generated before a crash.
NOT for batches, prompts or files: eval/generate.py and stage1_teacher/generate_local.py have those.
Letters in names: B sequences of a batch, L prompt tokens with padding, T new tokens, V vocabulary, K tokens looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor, StoppingCriteria

from shared.errors import RunError


def draws_of(name: str, count: int) -> NDArray[np.float32]:
    """`count` uniform numbers in [0, 1) of the sample called `name`: the same on every machine, in every order."""
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key)).random(count, dtype=np.float32)


def left_padded(
    prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Padding on the left, so that every row's next token stands in the last column: int64 [B, L] ids and mask."""
    length = max(len(prompt) for prompt in prompts)
    ids = [[pad_id] * (length - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def text_of_new(tokenizer: Any, prompt_ids: Sequence[int], new_ids: Sequence[int]) -> str:
    """What new tokens add to the prompt's text; decoded with it, since some tokenizers eat a leading space."""
    whole, prompt = (
        tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for ids in ([*prompt_ids, *new_ids], list(prompt_ids))
    )
    return str(whole[len(prompt) :])


class RequireNumbers(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed here
    """Stops a model whose training diverged, which would otherwise answer something and score 0."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [B, V], unchanged.

        Raises:
            RunError: one of them is not a number.
        """
        if bool(scores.isnan().any()):
            do = "train it again, or take an earlier checkpoint"
            raise RunError(f"model '{self.name}'", expected="logits that are numbers", got="NaN", do=do)
        return scores


class Choose(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed here
    """Draws each row's token with that row's own uniform number, and leaves no other token possible.

    Args:
        draws_BT: float32, uniform in [0, 1).
        length: tokens of the padded prompt.
    """

    def __init__(
        self, draws_BT: NDArray[np.float32], length: int, temperature: float, top_p: float, device: torch.device
    ) -> None:
        self.draws_BT, self.length = torch.from_numpy(draws_BT).to(device), length
        self.temperature, self.top_p = temperature, top_p

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] in; 0 at the drawn token and -inf elsewhere out."""
        probabilities_BV = torch.softmax(scores.float() / self.temperature, dim=-1)
        tokens_B = draw_tokens(probabilities_BV, self.draws_BT[:, input_ids.shape[1] - self.length], self.top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens_B[:, None], 0.0)


def draw_tokens(probabilities_BV: torch.Tensor, draws_B: torch.Tensor, top_p: float, most: int = 64) -> torch.Tensor:
    """int64 [B]: a token a row from the nucleus, the fewest most likely tokens with mass top_p (Holtzman et al. 2020).

    Looks at the `most` likeliest tokens first and again at 16 times as many for the rows whose nucleus is wider: sorting
    32 x 49,152 numbers takes 154 ms on a CPU core, finding the first 64 a few. A row's result depends on that row alone.

    Args:
        draws_B: float32, uniform in [0, 1).
    """
    if top_p == 1:
        cumulative_BV = probabilities_BV.cumsum(dim=-1)  # the whole vocabulary, in any order
        return _place(cumulative_BV, cumulative_BV[:, -1:], draws_B)[:, 0]
    most = min(most, probabilities_BV.shape[1])
    top_BK, ids_BK = probabilities_BV.topk(most, dim=-1)
    cumulative_BK = top_BK.cumsum(dim=-1)
    last_B1 = torch.searchsorted(cumulative_BK, torch.full_like(cumulative_BK[:, :1], top_p)).clamp(max=most - 1)
    places_B1 = _place(cumulative_BK, cumulative_BK.gather(1, last_B1), draws_B)
    tokens_B = ids_BK.gather(1, places_B1)[:, 0]
    wide_B = cumulative_BK[:, -1] < top_p
    if most < probabilities_BV.shape[1] and bool(wide_B.any()):
        tokens_B[wide_B] = draw_tokens(probabilities_BV[wide_B], draws_B[wide_B], top_p, most * 16)
    return tokens_B


def _place(cumulative_BK: torch.Tensor, mass_B1: torch.Tensor, draws_B: torch.Tensor) -> torch.Tensor:
    """int64 [B, 1]: first place whose cumulative probability exceeds draw * mass; never one of no probability."""
    below_B1 = torch.nextafter(mass_B1, torch.zeros_like(mass_B1))  # draw * mass may round up to the mass itself
    return torch.searchsorted(cumulative_BK, torch.minimum(draws_B[:, None] * mass_B1, below_B1), right=True)


class StopWords(StoppingCriteria):  # type: ignore[misc]  # transformers is not typed here
    """Ends a row once one of its stop words shows up in its last tokens; the text itself is cut after decoding.

    Args:
        words: those of each row of the batch, perhaps none.
        length: tokens of the padded prompt.
    """

    def __init__(self, tokenizer: Any, words: Sequence[Sequence[str]], length: int) -> None:
        self.tokenizer, self.words, self.length = tokenizer, words, length
        # In tokens: a word of n letters touches at most n of them.
        self.window = max((len(word) for row in words for word in row), default=0) + 1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """bool [B]: rows that are done."""
        recent = input_ids[:, max(self.length, input_ids.shape[1] - self.window) :].tolist()
        texts = self.tokenizer.batch_decode(recent, clean_up_tokenization_spaces=False)
        done = [any(word in text for word in words) for text, words in zip(texts, self.words, strict=True)]
        return torch.tensor(done, device=input_ids.device)
