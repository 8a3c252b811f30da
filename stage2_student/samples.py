"""Completions that a student writes while it learns, for people to look at.

    samples.jsonl   {"step", "prompt", "completion"}, one line a prompt, every `samples.every` optimizer steps

Greedy, so that two looks differ by learning alone, and with the weights that would be published (the moving average where there
is one). Also in TensorBoard and W&B, as text. Not for scoring (eval's work).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from shared.files import append_jsonl
from stage2_student.batch import CachedWindows
from stage2_student.options import Samples
from stage2_student.students import longest_window
from stage2_student.trainer import DistillationTrainer

SAMPLES = "samples.jsonl"


def prompts_of(windows: CachedWindows, tokenizer: Any, count: int) -> list[str]:
    """The prompts of the first validation windows that have one, as text.

    Raises:
        CodestillError: a window is damaged.
    """
    found: list[str] = []
    for number in range(len(windows)):
        if len(found) == count:
            break
        window = windows[number]
        if isinstance(window, Exception):
            raise window
        text = tokenizer.decode(window.tokens[: window.prompt_tokens].tolist(), skip_special_tokens=True)
        found += [text] if text else []
    return found


@torch.no_grad()
def complete(student: Any, tokenizer: Any, prompt: str, most: int) -> str:
    """The student's greedy completion, at most `most` tokens and no more than it has positions for."""
    ids_BT = tokenizer(prompt, return_tensors="pt").input_ids.to(student.device)
    positions = longest_window(student)
    room = most if positions is None else min(most, positions - ids_BT.shape[1])
    if room < 1:
        return ""
    with torch.compiler.set_stance("force_eager"):  # one token at a time is not worth a compilation
        written_BT = student.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=False,
            max_new_tokens=room,
            use_cache=True,
            pad_token_id=tokenizer.pad_token_id or 0,
        )
    return str(tokenizer.decode(written_BT[0, ids_BT.shape[1] :].tolist(), skip_special_tokens=True))


class SampleWriter(TrainerCallback):  # type: ignore[misc]
    """Writes samples; only the first rank has one, the others wait for it at the next step.

    Args:
        trainer: whose student writes.
        settings: the config's.
        prompts: texts to continue.
        tokenizer: the student's.
        path: samples.jsonl.
        wandb: whether Weights & Biases is told.
    """

    def __init__(
        self,
        trainer: DistillationTrainer,
        settings: Samples,
        prompts: list[str],
        tokenizer: Any,
        path: Path,
        *,
        wandb: bool,
    ) -> None:
        self._trainer, self._settings, self._prompts = trainer, settings, prompts
        self._tokenizer, self._path, self._wandb = tokenizer, path, wandb

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self._settings.every:
            return
        student, most = self._trainer.model, self._settings.max_new_tokens
        with self._trainer.published_weights():
            written = [complete(student, self._tokenizer, prompt, most) for prompt in self._prompts]
        pairs = list(zip(self._prompts, written, strict=True))
        rows = [{"step": state.global_step, "prompt": prompt, "completion": text} for prompt, text in pairs]
        append_jsonl(self._path, rows)
        self._show(pairs, state.global_step)

    def _show(self, pairs: list[tuple[str, str]], step: int) -> None:
        for board in self._trainer.callback_handler.callbacks:
            if isinstance(board, TensorBoardCallback) and board.tb_writer is not None:
                for number, (prompt, text) in enumerate(pairs):
                    board.tb_writer.add_text(f"samples/{number}", indented(prompt + text), step)
        if self._wandb:
            import wandb

            table = wandb.Table(columns=["step", "prompt", "completion"], data=[[step, *pair] for pair in pairs])
            wandb.log({"samples": table, "train/global_step": step})


def indented(text: str) -> str:
    """Code as TensorBoard's Markdown shows it: every line four spaces in."""
    return "\n".join(f"    {line}" for line in text.splitlines())
