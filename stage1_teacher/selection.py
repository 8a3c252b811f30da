"""From hidden states to records: what is kept of the teacher's full distribution at every position.

Works on the device that holds the head, a chunk of positions at a time, so no [tokens, vocabulary] tensor larger than the
chunk ever lives. Not for storage (cache/encoding.py quantises).
Legend: C positions of one chunk, V vocabulary, K = k, N tail nodes, b columns of one block.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._triton import has_triton

from cache.manifest import Selection
from cache.tail import NODE_STEP, NODES, ONE

BLOCK = 64  # columns searched together for the largest values
FINEST = 0.05
LOG2_E = math.log2(math.e)
CACHED = 2  # rows whose powers are taken at once
assert (round(NODE_STEP / FINEST), round(NODES[0] / FINEST)) == (3, 5), "what tail_mass multiplies"


@dataclass(frozen=True, slots=True)
class Record:
    """C positions: head padded to K columns, of which `sizes_C` count.

    Attributes:
        sizes_C: int32, ids in each head.
        ids_CK: int32, most likely first.
        logprobs_CK: float32, natural log at T = 1.
        tail_CN: float32, log sum over the tail of exp(beta * l) at cache.tail.NODES.
        gold_C: float32, log-probability of the next token.
    """

    sizes_C: Tensor
    ids_CK: Tensor
    logprobs_CK: Tensor
    tail_CN: Tensor
    gold_C: Tensor

    def columns(self) -> list[Tensor]:
        """Its tensors, in the order of its attributes."""
        return [getattr(self, name) for name in self.__slots__]


class HeadChunk:
    """A chunk of logits. On a CPU its memory is taken once: fresh [C, V] tensors cost more in page faults than in arithmetic.

    The vocabulary is padded with -inf to whole blocks, so that the most likely tokens are found among block maxima.
    Attributes:
        rows: positions a chunk may have.
        vocab_size: V.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.rows, self.vocab_size = (512 if device.type == "cuda" else 256), vocab_size
        self._padding = -vocab_size % BLOCK
        self._kept_CV: Tensor | None = None  # a GPU's allocator gives the same memory again by itself
        if device.type != "cuda":
            self._kept_CV = torch.empty(self.rows, vocab_size + self._padding, device=device)
        self._logits_CV = torch.empty(0, vocab_size + self._padding, device=device)
        self._beta_N = torch.tensor(NODES, dtype=torch.float32, device=device)
        self._rest = fused_tail_mass(device)

    def logits(self, fill: Callable[[Tensor | None], Tensor], count: int) -> Tensor:
        """`count` rows of logits, [count, V]. Valid until the next call.

        Args:
            fill: writes them into what it is given, or where that is None into a tensor of its own, and returns it.
        """
        if self._kept_CV is None:
            logits_CV = fill(None)
            padding = (0, self._padding)
            self._logits_CV = torch.nn.functional.pad(logits_CV, padding, value=-torch.inf) if padding[1] else logits_CV
        else:
            self._logits_CV = self._kept_CV[:count]
            fill(self._logits_CV[:, : self.vocab_size])
            self._logits_CV[:, self.vocab_size :] = -torch.inf  # the selection before left other values there
        return self._logits_CV[:, : self.vocab_size]

    def select(self, gold_C: Tensor, selection: Selection) -> Record:
        """Keep head, tail mass and gold of the rows just filled, which are overwritten.

        The k largest logits are taken out, the rest is summed at every node, and what did not enter the head is added to that
        sum: so one pass of exponentials serves the normalisation and all nodes, and nothing is ever subtracted.
        Args:
            gold_C: int64 ids of the next tokens.
            selection: k and top_p.
        """
        logits_CV = self._logits_CV
        k = min(selection.k, self.vocab_size)
        gold_logits_C = logits_CV.gather(1, gold_C[:, None])[:, 0]
        found_CK, ids_CK = top_k(logits_CV, k)
        logits_CV.scatter_(1, ids_CK, -torch.inf)
        rest_CN = self._rest(logits_CV)
        log_z_C1 = torch.logaddexp(found_CK.logsumexp(dim=1, keepdim=True), rest_CN[:, ONE, None])
        head_CK = found_CK - log_z_C1
        sizes_C = (head_CK.exp().cumsum(dim=1) < selection.top_p).sum(dim=1).add_(1).clamp_(max=k)
        left_CK = torch.arange(k, device=ids_CK.device) >= sizes_C[:, None]
        beside_CKN = (head_CK.masked_fill(~left_CK, -torch.inf)[:, :, None] * self._beta_N).logsumexp(dim=1)
        tail_CN = torch.logaddexp(rest_CN - self._beta_N * log_z_C1, beside_CKN)
        return Record(sizes_C.int(), ids_CK.int(), head_CK, tail_CN, gold_logits_C - log_z_C1[:, 0])


def top_k(values_CV: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns, largest first; V must be whole blocks.

    The k largest values lie in the k blocks with the largest maxima, so only those are searched.
    """
    blocks_CNb = values_CV.view(len(values_CV), -1, BLOCK)
    if blocks_CNb.shape[1] <= k:
        found = values_CV.topk(k, dim=1)
        return found.values, found.indices
    chosen_Ck = blocks_CNb.amax(dim=2).topk(k, dim=1).indices
    candidates_Ckb = blocks_CNb.gather(1, chosen_Ck[:, :, None].expand(-1, -1, BLOCK))
    found = candidates_Ckb.flatten(1).topk(k, dim=1)
    block_CK = chosen_Ck.gather(1, found.indices // BLOCK)
    return found.values, block_CK * BLOCK + found.indices % BLOCK


def top_k_mask(logits_CV: Tensor, selection: Selection) -> Tensor:
    """True at the entries a head keeps, bool [C, V]; for the few positions of a sample."""
    found = logits_CV.topk(min(selection.k, logits_CV.shape[1]), dim=1)
    before_CK = (found.values - logits_CV.logsumexp(dim=1, keepdim=True)).exp().cumsum(dim=1).roll(1, dims=1)
    before_CK[:, 0] = 0
    return torch.zeros_like(logits_CV, dtype=torch.bool).scatter_(1, found.indices, before_CK < selection.top_p)


def fused_tail_mass(device: torch.device) -> Callable[[Tensor], Tensor]:
    """The way to `tail_mass` that is fast on this device: on a GPU as one compiled kernel, on a CPU in rows that fit its cache.

    Twenty passes over [C, V] in the GPU's memory would cost a quarter of a 3B teacher's forward pass. Without Triton (it comes
    with torch on Linux) a GPU does the same as a CPU does.
    """
    if device.type == "cuda" and has_triton():
        compiled: Callable[[Tensor], Tensor] = torch.compile(summed_powers, dynamic=True)
        return compiled
    return tail_mass


def summed_powers(logits_CV: Tensor) -> Tensor:
    """What `tail_mass` computes, written as plain expressions for a compiler to fuse. Overwrites nothing."""
    top_C1 = logits_CV.amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).min)
    root_CV = torch.exp2((logits_CV - top_C1) * (FINEST * LOG2_E))
    square_CV = root_CV * root_CV
    step_CV = root_CV * square_CV
    power_CV = square_CV * step_CV
    sums, beta = [power_CV.sum(dim=1)], NODES[0]
    for node in NODES[1:]:
        for _ in range(round((node - beta) / NODE_STEP)):
            power_CV = power_CV * step_CV
        sums.append(power_CV.sum(dim=1))
        beta = node
    return torch.stack([total_C.log() + node * top_C1[:, 0] for total_C, node in zip(sums, NODES, strict=True)], dim=1)


def tail_mass(logits_CV: Tensor) -> Tensor:
    """log sum exp(beta * z) at every node, float32 [C, N]; z is -inf at entries that do not count. Overwrites its argument.

    What is summed is summed itself, never got as 1 - head: at a head mass of 0.99999 that difference has no digits left. All
    nodes are whole numbers of FINEST, so one exponential and a product a node do; the row's largest value is taken out first.
    """
    scratch_cV = torch.empty_like(logits_CV[:CACHED])
    return torch.cat([_tail_mass(rows_cV, scratch_cV[: len(rows_cV)]) for rows_cV in torch.split(logits_CV, CACHED)])


def _tail_mass(logits_cV: Tensor, scratch_cV: Tensor) -> Tensor:
    """The same for a few rows, in place: they stay in the processor's cache from the first pass to the last."""
    top_c1 = logits_cV.amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).min)
    root_cV = torch.sub(logits_cV, top_c1, out=scratch_cV).mul_(FINEST * LOG2_E).exp2_()  # exp2: a third of exp's time
    square_cV = torch.mul(root_cV, root_cV, out=logits_cV)
    step_cV = root_cV.mul_(square_cV)  # exp(0.15 z)
    power_cV = square_cV.mul_(step_cV)  # exp(0.25 z)
    sums, beta = [power_cV.sum(dim=1)], NODES[0]
    for node in NODES[1:]:
        for _ in range(round((node - beta) / NODE_STEP)):
            power_cV.mul_(step_cV)
        sums.append(power_cV.sum(dim=1))
        beta = node
    beta_N = torch.tensor(NODES, dtype=torch.float32, device=logits_cV.device)
    return torch.stack(sums, dim=1).log_() + beta_N * top_c1
