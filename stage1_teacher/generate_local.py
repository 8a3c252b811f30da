"""Answers of a teacher that runs here: batches of similar length through transformers' `generate`.

Every sample has its own randomness from (seed, prompt, index), see shared/sampling.py: the batch size, the order and a resumed
run change nothing but rounding. Not for endpoints (stage1_teacher/endpoint.py), not for files (stage1_teacher/generate.py).
Legend: B sequences of a batch, L prompt tokens with padding, T new tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from shared.errors import RunError, UsageError
from shared.files import sha256_file
from shared.memory import is_out_of_memory
from shared.sampling import (
    Choose,
    RequireNumbers,
    StopWords,
    draws_of,
    left_padded,
    text_of_new,
)
from shared.tokenizer import check_model_vocabulary, encode_document, load_tokenizer
from stage1_teacher.config import TeacherConfig
from stage1_teacher.generate_config import GenerateConfig
from stage1_teacher.prompt_sets import Prompt
from stage1_teacher.quantisation import what_it_is
from stage1_teacher.teacher import open_model


@dataclass(frozen=True)
class Request:
    """One answer to generate; `room`: new tokens it may have, 0 where the prompt fills the model's positions."""

    prompt: Prompt
    index: int
    ids: tuple[int, ...]
    room: int


@dataclass(frozen=True)
class LocalTeacher:
    """A model ready to answer, its end-of-text tokens, and the most tokens of a sequence."""

    model: Any
    tokenizer: Any
    name: str
    end_ids: frozenset[int]
    positions: int


def open_local(config: TeacherConfig) -> LocalTeacher:
    """The teacher with its head: safetensors only, no remote code.

    Raises:
        UsageError: no such model or tokenizer, weights in another format, or a tokenizer larger than the model.
    """
    transformers_logging.disable_progress_bar()  # it would tear our own progress line
    tokenizer = load_tokenizer(config.model, config.revision)
    model = open_model(config)
    check_model_vocabulary(len(tokenizer), model.get_input_embeddings().weight.shape[0])
    own = model.generation_config.eos_token_id
    ends = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id]
    model.generation_config = GenerationConfig()  # a file's repetition penalty must not slip into a sample
    positions = int(getattr(model.config, "max_position_embeddings", None) or 2**31 - 1)
    end_ids = frozenset(int(one) for one in ends if one is not None)
    return LocalTeacher(model, tokenizer, Path(config.model).name, end_ids, positions)


def teacher_facts(teacher: LocalTeacher, config: TeacherConfig) -> dict[str, Any]:
    """Who answers: tells one teacher from any other, so that a folder of answers is never gone on with by another."""
    commit, path = getattr(teacher.model.config, "_commit_hash", None), Path(config.model)
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")) if path.is_absolute() else ():
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return {
        "model": teacher.name,
        "revision": commit,
        "weights": digest.hexdigest() if path.is_absolute() else str(commit),
        "dtype": config.dtype,
        "quantisation": what_it_is(teacher.model),
    }


def plan(teacher: LocalTeacher, prompts: Sequence[Prompt], config: GenerateConfig) -> list[list[Request]]:
    """Batches of requests, shortest prompts first; all of a batch may have the same number of new tokens.

    Raises:
        UsageError: a prompt without a token, or a chat with a model that has no chat template.
    """
    groups: dict[int, list[Request]] = {}
    for prompt in prompts:
        ids = _prompt_ids(teacher, prompt, config)
        room = max(0, min(config.max_new_tokens, teacher.positions - len(ids)))
        groups.setdefault(room, []).extend(Request(prompt, index, ids, room) for index in range(config.samples))
    batches = []
    for _, group in sorted(groups.items(), reverse=True):
        group.sort(key=lambda request: len(request.ids))  # stable: ties keep the order of prompts and indexes
        batches += [group[start : start + config.batch_size] for start in range(0, len(group), config.batch_size)]
    return batches


def _prompt_ids(teacher: LocalTeacher, prompt: Prompt, config: GenerateConfig) -> tuple[int, ...]:
    if config.style == "chat":
        if not teacher.tokenizer.chat_template:
            do = "set style: completion, or use an instructed model"
            raise UsageError(f"teacher {teacher.name}", expected="a chat template", got="none", do=do)
        turns = [{"role": "user", "content": prompt.asked}]
        text = teacher.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return tuple(teacher.tokenizer(text, add_special_tokens=False)["input_ids"])  # the template has its own BOS
    ids_n, _ = encode_document(teacher.tokenizer, prompt.asked, 0)
    if len(ids_n) == 1:
        raise UsageError(f"prompt {prompt.id}", expected="a prompt", got="no token", do="remove it")
    return tuple(ids_n.tolist()[:-1])


def local_answers(
    teacher: LocalTeacher, batches: Sequence[Sequence[Request]], done: set[tuple[str, int]], config: GenerateConfig
) -> Iterator[dict[str, Any]]:
    """Rows of answers.jsonl; a batch with one answer missing is made again whole, which repeats its arithmetic to the bit,
    and only what is missing comes out.

    Raises:
        RunError: one sequence alone does not fit the device's memory, or the model's logits are no numbers.
    """
    sampler = _Sampler(teacher, config)
    for batch in batches:
        if any((request.prompt.id, request.index) not in done for request in batch):
            yield from (row for row in sampler.rows(batch) if (row["prompt_id"], row["index"]) not in done)


class _Sampler:
    def __init__(self, teacher: LocalTeacher, config: GenerateConfig) -> None:
        self.teacher, self.config = teacher, config
        self.most = config.batch_size  # halves when memory runs out, and stays there
        self.pad_id = int(teacher.tokenizer.eos_token_id)  # masked before a prompt, cut off after an answer
        self.never_text = set(teacher.tokenizer.all_special_ids) | teacher.end_ids

    def rows(self, batch: Sequence[Request]) -> list[dict[str, Any]]:
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
            self._halve(batch)
            return self.rows(batch)
        return [self._row(request, *self._trim(ids, request)) for request, ids in zip(batch, answers, strict=True)]

    def _halve(self, batch: Sequence[Request]) -> None:
        if len(batch) == 1:
            device = self.teacher.model.device
            do = "lower max_new_tokens or use a larger device"
            raise RunError(f"prompt {batch[0].prompt.id}: out of memory on {device} with a batch of one", do=do)
        self.most = len(batch) // 2
        torch.cuda.empty_cache()

    @torch.inference_mode()
    def _generate(self, batch: Sequence[Request]) -> list[list[int]]:
        """New tokens of each request, with padding behind the end."""
        ids_BL, mask_BL = left_padded([request.ids for request in batch], self.pad_id, self.teacher.model.device)
        length = ids_BL.shape[1]
        ends = sorted(self.teacher.end_ids)
        settings = GenerationConfig(
            max_new_tokens=batch[0].room,
            do_sample=False,  # the sampler has already chosen when the largest logit is taken
            pad_token_id=self.pad_id,
            eos_token_id=ends,
        )
        words = [request.prompt.stop for request in batch]
        ids_BT = self.teacher.model.generate(
            ids_BL,
            attention_mask=mask_BL,
            generation_config=settings,
            logits_processor=self._steps(batch, length),
            stopping_criteria=StoppingCriteriaList([StopWords(self.teacher.tokenizer, words, length)]),
        )
        return [list(row) for row in ids_BT[:, length:].tolist()]

    def _steps(self, batch: Sequence[Request], length: int) -> LogitsProcessorList:
        steps: list[Any] = [RequireNumbers(self.teacher.name)]
        if self.config.temperature > 0:
            names = [f"{self.config.seed}/{request.prompt.id}/{request.index}" for request in batch]
            draws_BT = np.stack([draws_of(name, batch[0].room) for name in names])
            device = self.teacher.model.device
            steps.append(Choose(draws_BT, length, self.config.temperature, self.config.top_p, device))
        return LogitsProcessorList(steps)

    def _trim(self, ids: list[int], request: Request) -> tuple[list[int], str]:
        """The tokens before the end of text, and how they ended: "stop" also where a stop word ended them."""
        place = next((place for place, token in enumerate(ids) if token in self.never_text), len(ids))
        return ids[:place], "length" if place == request.room else "stop"

    def _row(self, request: Request, new_ids: list[int], finish: str) -> dict[str, Any]:
        return {
            "prompt_id": request.prompt.id,
            "index": request.index,
            "answer": text_of_new(self.teacher.tokenizer, request.ids, new_ids),
            "finish": finish,
            "prompt_tokens": len(request.ids),
            "completion_tokens": len(new_ids),
            "estimated": False,
            "model": self.teacher.name,
        }
