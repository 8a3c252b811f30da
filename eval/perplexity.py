"""Held-out loss: cross-entropy of a model on the tokens of a cache's windows, in nats a token, and its perplexity.

Only the windows' tokens are read here, never the teacher's beliefs: agreement with the teacher is another measure.
Letters in names: B windows of a batch, L tokens of the longest, P = L - 1 positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from cache.reader import Cache, open_cache
from cache.record import CachedWindow
from eval.models import LoadedModel
from shared.errors import RunError, UsageError
from shared.tokenizer import fingerprint, require_same

TOKENS_PER_BATCH = 2048  # padded; bounds the logits: 2048 x 49,152 in bfloat16 are 0.2 GB
IGNORED = -100  # label of a position that does not count


@dataclass(frozen=True)
class HeldOutLoss:
    """loss: nats a token; perplexity: exp(loss); tokens: those that were predicted and counted."""

    loss: float
    perplexity: float
    tokens: int
    windows: int


@torch.inference_mode()
def held_out_loss(loaded: LoadedModel, directory: Path, *, mask_prompt: bool) -> HeldOutLoss:
    """Mean cross-entropy over all counted tokens of all windows; logits are turned to float32 first.

    Args:
        directory: a cache directory, captured with this model's tokenizer.
        mask_prompt: leave prompt tokens out, as training does.
    Raises:
        UsageError: another tokenizer, windows longer than the model's positions, or no token left to count.
        RunError: a damaged cache, or a loss that is not finite.
    """
    cache = open_cache(directory)
    _check(loaded, cache, directory)
    total, tokens = 0.0, 0
    with tqdm(total=len(cache), desc=f"{loaded.name}: held-out loss", unit="window") as progress:
        for batch in _batches(cache):
            losses_BP, counts_BP = _losses(loaded, batch, mask_prompt)
            total += float(losses_BP.double().sum())
            tokens += int(counts_BP.sum())
            progress.update(len(batch))
    if tokens == 0:
        raise UsageError(
            f"cache {directory}", expected="tokens that are not prompt", got="none", do="set mask_prompt=false"
        )
    loss = total / tokens
    if not math.isfinite(loss):
        do = "train it again, or take an earlier checkpoint"
        raise RunError(f"model '{loaded.name}'", expected="a finite held-out loss", got=str(loss), do=do)
    return HeldOutLoss(loss, math.exp(min(loss, 700.0)), tokens, len(cache))  # exp(709) is the largest float


def _check(loaded: LoadedModel, cache: Cache, directory: Path) -> None:
    require_same(
        cache.manifest.tokenizer,
        fingerprint(loaded.tokenizer),
        what=f"model '{loaded.name}' on cache {directory}",
        do="score it on a cache of its own tokenizer, or leave held_out empty",
    )
    longest = int(max(cache.lengths)) - 1
    if longest > loaded.positions:
        raise UsageError(
            f"cache {directory}",
            expected=f"windows of at most {loaded.positions + 1} tokens for model '{loaded.name}'",
            got=f"{longest + 1} tokens",
            do="capture held-out windows with a smaller max_length",
        )


def _batches(cache: Cache) -> Iterator[list[CachedWindow]]:
    """Windows of like length together, longest first, so that a lack of memory shows at once."""
    batch: list[int] = []
    for number in np.argsort(-np.asarray(cache.lengths), kind="stable").tolist():
        longest = int(cache.lengths[batch[0]]) if batch else 0
        if batch and longest * (len(batch) + 1) > TOKENS_PER_BATCH:
            yield [cache[one] for one in batch]
            batch = []
        batch.append(number)
    yield [cache[one] for one in batch]


def _losses(loaded: LoadedModel, batch: list[CachedWindow], mask_prompt: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [B, P] losses, 0 where not counted, and bool [B, P] counted. Padding stands right, behind all that counts."""
    length = max(len(window.tokens) for window in batch)
    ids_BL = torch.zeros(len(batch), length, dtype=torch.int64)
    labels_BP = torch.full((len(batch), length - 1), IGNORED, dtype=torch.int64)
    for row, window in enumerate(batch):
        tokens = torch.from_numpy(np.asarray(window.tokens, dtype=np.int64))
        first = max(window.prompt_tokens - 1, 0) if mask_prompt else 0  # position t predicts token t + 1
        ids_BL[row, : len(tokens)] = tokens
        labels_BP[row, first : len(tokens) - 1] = tokens[first + 1 :]
    logits_BPV = loaded.model(ids_BL[:, :-1].to(loaded.device), use_cache=False).logits
    labels_BP = labels_BP.to(loaded.device)
    rows = [
        cross_entropy(logits_PV.float(), labels_P, ignore_index=IGNORED, reduction="none")
        for logits_PV, labels_P in zip(logits_BPV, labels_BP, strict=True)
    ]
    return torch.stack(rows), labels_BP != IGNORED
