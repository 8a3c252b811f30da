"""Trains the embedded teacher that ships in shared/embedded_teacher: tokenizer and model, from the generator, with a seed.

    python -m benchmarks.embedded_teacher --out shared/embedded_teacher

NOT part of the product and never run by it: it shows in the open how the shipped directory was made. Shapes: B documents, T tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast, Starcoder2Config, Starcoder2ForCausalLM

from shared.embedded import training_documents

EOS = "<|endoftext|>"
VOCABULARY = 1024
# A newline and an indentation are tokens of their own, so that prompt + solution has the tokens of prompt, then those of solution;
# digits stand alone, so that a constant is copied digit by digit.
PIECES = r"\n| {2,}| ?[A-Za-z]+| ?[0-9]|_| ?[^\sA-Za-z0-9_]+|\s"
TOKENIZER_DOCUMENTS = 20_000
TRAINING_SEED = 1  # the demo's student corpus is seed 0, a stream of its own
VALIDATION_SEED = 2


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE on the domain, no beginning-of-sequence token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(PIECES), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = (document.prompt + document.solution for document in training_documents(TOKENIZER_DOCUMENTS, TRAINING_SEED))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, model_max_length=512, clean_up_tokenization_spaces=False)


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


def batches(tokenizer: PreTrainedTokenizerBase, seed: int, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Endless (input_ids_BT, labels_BT) of documents of similar length; labels are -100 on padding."""
    generator = torch.Generator().manual_seed(seed)
    stream = iter(training_documents(10**9, seed))
    while True:
        texts = [document.prompt + document.solution + EOS for document in islice(stream, size * 32)]
        rows = sorted(tokenizer(texts)["input_ids"], key=len)
        for start in torch.randperm(32, generator=generator).tolist():
            yield _pad(rows[start * size : (start + 1) * size])


def _pad(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    input_ids_BT = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels_BT = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    return input_ids_BT, labels_BT


def train(model: Starcoder2ForCausalLM, tokenizer: PreTrainedTokenizerBase, steps: int, size: int, lr: float) -> None:
    """AdamW with warm-up and a cosine to zero; bfloat16 autocast on float32 weights."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    started, tokens = time.monotonic(), 0
    for step, (input_ids_BT, labels_BT) in enumerate(islice(batches(tokenizer, TRAINING_SEED, size), steps)):
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
            print(f"step {step + 1}/{steps} loss {loss.item():.4f} {tokens / seconds:.0f} tokens/s {seconds:.0f} s", flush=True)


def validation_loss(model: Starcoder2ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> float:
    """Nats a token on 512 documents of another stream of the same distribution."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for input_ids_BT, labels_BT in islice(batches(tokenizer, VALIDATION_SEED, 64), 8):
            targets = int((labels_BT[:, 1:] >= 0).sum())
            total += float(model(input_ids=input_ids_BT, labels=labels_BT).loss) * targets
            count += targets
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2600)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    train_tokenizer().save_pretrained(args.out)
    tokenizer = AutoTokenizer.from_pretrained(args.out)
    model = build_model(tokenizer)
    train(model, tokenizer, args.steps, args.batch, args.lr)
    model.to(torch.bfloat16).save_pretrained(args.out)
    loss = validation_loss(Starcoder2ForCausalLM.from_pretrained(args.out, dtype=torch.float32), tokenizer)
    size = (args.out / "model.safetensors").stat().st_size
    print(json.dumps({"parameters": model.num_parameters(), "bytes": size, "validation_loss": loss}))


if __name__ == "__main__":
    main()
