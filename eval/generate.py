"""Completions of tasks: batched sampling that gives every sample its own randomness (shared/sampling.py).

A sample's uniform numbers depend on (seed, task set, task, index) alone, so it does not depend on its neighbours in the
batch, on what was generated before a crash, or on the model, which pairs the models' samples and makes their differences
less noisy. NOT for judging. Letters in names: B sequences of a batch, L prompt tokens with padding, T new tokens,
V vocabulary, n tokens of one prompt.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList

from eval.config import EvalConfig
from eval.models import LoadedModel
from eval.prompts import Preset
from shared.errors import RunError, UsageError
from shared.memory import is_out_of_memory
from shared.sampling import (
    Choose,
    RequireNumbers,
    StopWords,
    draws_of,
    left_padded,
    text_of_new,
)
from shared.tasks import Task
from shared.tokenizer import encode_document


@dataclass(frozen=True)
class Request:
    """One sample to generate. `room`: new tokens it may have, 0 where the prompt fills the model's positions."""

    task_id: str
    index: int
    prompt_ids: tuple[int, ...]
    room: int


def prompt_tokens(loaded: LoadedModel, task: Task, preset: Preset) -> tuple[int, ...]:
    """Token ids of a task's prompt: as in training, with BOS or without, but with no end of text.

    Raises:
        UsageError: a prompt without a token, or a tokenizer without an end of text.
    """
    ids_n, _ = encode_document(loaded.tokenizer, preset.render(task), 0)
    if len(ids_n) == 1:
        raise UsageError(f"task {task.task_id}", expected="a prompt", got="no token", do="remove the task")
    return tuple(ids_n.tolist()[:-1])


def split_prompts(loaded: LoadedModel, tasks: Sequence[Task], preset: Preset) -> int:
    """Prompts that end inside a token of the text that prompt and canonical solution make: the trap of eval/prompts.py.

    Such a prompt asks the model to go on from a place where training never put it.
    """
    count = 0
    for task in tasks:
        ids_n, _ = encode_document(loaded.tokenizer, preset.render(task) + preset.canonical(task), 0)
        prompt_ids = prompt_tokens(loaded, task, preset)
        count += tuple(ids_n[: len(prompt_ids)].tolist()) != prompt_ids
    return count


def plan(loaded: LoadedModel, tasks: Sequence[Task], preset: Preset, config: EvalConfig) -> list[list[Request]]:
    """Batches of requests, shortest prompts first; all requests of a batch may have the same number of new tokens.

    Raises:
        UsageError: as `prompt_tokens`.
    """
    groups: dict[int, list[Request]] = {}
    for task in tasks:
        prompt_ids = prompt_tokens(loaded, task, preset)
        room = max(0, min(config.max_new_tokens, loaded.positions - len(prompt_ids)))
        requests = [Request(task.task_id, index, prompt_ids, room) for index in range(config.samples_per_task)]
        groups.setdefault(room, []).extend(requests)
    batches = []
    for _, group in sorted(groups.items(), reverse=True):
        group.sort(key=lambda request: len(request.prompt_ids))  # stable: ties keep the order of tasks and indexes
        batches += [group[start : start + config.batch_size] for start in range(0, len(group), config.batch_size)]
    return batches


class Generator:
    """Generates batches with one model, one task set and one preset."""

    def __init__(self, loaded: LoadedModel, task_set: str, preset: Preset, config: EvalConfig) -> None:
        self.loaded, self.task_set, self.preset, self.config = loaded, task_set, preset, config
        self.most = config.batch_size  # halves when memory runs out, and stays there
        self._said = False  # that memory ran out
        self.pad_id = int(loaded.tokenizer.eos_token_id)  # masked before a prompt, cut off after an answer
        names = ("temperature", "top_p", "max_new_tokens", "dtype")
        self._settings = {name: getattr(config, name) for name in names}
        # No special token is program text: what follows one is another document.
        self.never_text = set(loaded.tokenizer.all_special_ids) | loaded.end_ids

    def rows(self, batch: Sequence[Request]) -> list[dict[str, Any]]:
        """The completions.jsonl rows of a batch, in its order.

        Raises:
            RunError: one sequence alone does not fit the device's memory, or the model's logits are no numbers.
        """
        if len(batch) > (most := self.most):  # kept, since the first part may halve self.most
            return [*self.rows(batch[:most]), *self.rows(batch[most:])]
        if batch[0].room == 0:
            return [self._row(request, [], "no room") for request in batch]
        try:
            answers = self._generate(batch)
        except RuntimeError as error:  # on a GPU OutOfMemoryError, which is one
            if not is_out_of_memory(error):
                raise
            answers = None  # leave the handler first: its traceback keeps the tensors of the failed try alive
        if answers is None:
            self._halve(batch[0], len(batch))
            return self.rows(batch)
        return [
            self._row(request, *self._trim(new_ids, request.room), logprobs)
            for request, (new_ids, logprobs) in zip(batch, answers, strict=True)
        ]

    def _halve(self, request: Request, size: int) -> None:
        if size == 1:
            raise RunError(
                f"task {request.task_id}: out of memory on {self.loaded.device} with a batch of one",
                do="lower max_new_tokens or use a larger device",
            )
        if not self._said:
            tqdm.write(
                f"{self.loaded.name}: out of memory with {size} sequences at once; halving until they fit", sys.stderr
            )
            self._said = True
        self.most = size // 2
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Request]) -> list[tuple[list[int], list[float]]]:
        """New tokens of each request, and the log-probability that the model gave each of them at temperature 1."""
        prompt_ids_BL, mask_BL = left_padded([each.prompt_ids for each in batch], self.pad_id, self.loaded.device)
        length = prompt_ids_BL.shape[1]
        remember, words = Remember(), [self.preset.stop_words] * len(batch)
        settings = GenerationConfig(
            max_new_tokens=batch[0].room,
            do_sample=False,  # the sampler below has already chosen when the largest logit is taken
            pad_token_id=self.pad_id,
            eos_token_id=sorted(self.loaded.end_ids),
        )
        ids_BT = self.loaded.model.generate(
            prompt_ids_BL,
            attention_mask=mask_BL,
            generation_config=settings,
            logits_processor=self._sampler(batch, length, remember),
            stopping_criteria=StoppingCriteriaList([StopWords(self.loaded.tokenizer, words, length)]),
        )
        logprobs_BT = remember.of(ids_BT[:, -1])
        return list(zip(ids_BT[:, length:].tolist(), logprobs_BT.tolist(), strict=True))

    def _sampler(self, batch: Sequence[Request], length: int, remember: Remember) -> LogitsProcessorList:
        steps: list[LogitsProcessor] = [RequireNumbers(self.loaded.name), remember]
        if self.config.temperature > 0:
            draws_BT = np.stack([self._draws(request) for request in batch])
            steps.append(Choose(draws_BT, length, self.config.temperature, self.config.top_p, self.loaded.device))
        return LogitsProcessorList(steps)

    def _draws(self, request: Request) -> NDArray[np.float32]:
        return draws_of(f"{self.config.seed}/{self.task_set}/{request.task_id}/{request.index}", request.room)

    def _trim(self, new_ids: list[int], room: int) -> tuple[list[int], str]:
        """The tokens before the end of text, and how they ended as far as tokens tell."""
        place = next((place for place, token in enumerate(new_ids) if token in self.never_text), len(new_ids))
        return new_ids[:place], "length" if place == room else "end"

    def _row(self, request: Request, new_ids: list[int], finish: str, logprobs: Sequence[float] = ()) -> dict[str, Any]:
        text = text_of_new(self.loaded.tokenizer, request.prompt_ids, new_ids)
        completion = self.preset.cut(text)
        return {
            "model": self.loaded.name,
            "task_set": self.task_set,
            "task_id": request.task_id,
            "index": request.index,
            "completion": completion,
            "tokens": len(new_ids),
            "finish": "stop word" if completion != text else finish,
            "mean_logprob": round(float(np.mean(logprobs[: len(new_ids)])), 4) if new_ids and logprobs else None,
            "preset": self.preset.id,
            "seed": self.config.seed,
            "settings": self._settings,
            "weights": self.loaded.files.identity[:16],
        }


class Remember(LogitsProcessor):  # type: ignore[misc]  # transformers is not typed here
    """Log-probabilities of the tokens that were chosen; holds one step's distribution, never those of all steps."""

    def __init__(self) -> None:
        self._last_BV: torch.Tensor | None = None
        self._chosen: list[torch.Tensor] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [B, V], unchanged."""
        self._settle(input_ids[:, -1])
        self._last_BV = scores.float().log_softmax(dim=-1)
        return scores

    def of(self, last_B: torch.Tensor) -> torch.Tensor:
        """float32 [B, T] of all T steps, once the last one's tokens are known; T may be 0."""
        self._settle(last_B)
        return torch.stack(self._chosen, dim=1) if self._chosen else torch.zeros(len(last_B), 0)

    def _settle(self, tokens_B: torch.Tensor) -> None:
        if self._last_BV is not None:
            self._chosen.append(self._last_BV.gather(1, tokens_B[:, None])[:, 0])


def pending(batches: Sequence[Sequence[Request]], done: set[tuple[str, int]]) -> Iterator[Sequence[Request]]:
    """Batches with a sample that is not done yet; whole, so that a resumed run repeats the very same arithmetic."""
    return (batch for batch in batches if any((request.task_id, request.index) not in done for request in batch))
