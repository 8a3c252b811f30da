"""What a distillation step costs beside transformers' own cross-entropy step of the same student.

Both steps run in one process, alternated, on the same batch: forward and backward; the optimizer is the same on both sides
and left out. Time is the median of the paired ratios; memory is the peak of each step above what was resident before it, our
work buffers counted.

    python benchmarks/stage2_step.py [--preset gpt2-44m] [--batch 4] [--length 256] [--rounds 7] [--dtype bfloat16]

Not for a whole training run (data, optimizer) and not for quality.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cache.tail import NODES
from shared.tokenizer import TokenizerFingerprint
from stage2_student.config import StudentConfig
from stage2_student.loss import DistillationLoss, Positions
from stage2_student.students import build_student, head_weight, hidden_states

VOCAB = 49_152
HEAD = 16  # ids a position


def random_record(count: int, device: str) -> Positions:
    """A record of `count` positions with heads of 1 to HEAD ids and a tail of plausible mass."""
    ids_NK = torch.rand(count, VOCAB, dtype=torch.float16).topk(HEAD).indices
    logp_NK = torch.randn(count, HEAD).sort(1, descending=True).values.log_softmax(1) - 0.2
    sizes_N = torch.randint(1, HEAD + 1, (count,))
    logp_NK[torch.arange(HEAD) >= sizes_N[:, None]] = -torch.inf
    rest_N1 = (1 - logp_NK.exp().sum(1, keepdim=True)).log()
    nodes_M, spread = torch.tensor(NODES), torch.log(VOCAB - sizes_N.double())[:, None]
    tail_NM = (nodes_M * (rest_N1 - spread) + spread + 2 * nodes_M * (nodes_M - 1)).float()
    parts = (torch.randint(0, VOCAB, (count,)), ids_NK, logp_NK, sizes_N, tail_NM, torch.zeros(count, 0))
    return Positions(*(part.to(device) for part in parts))


def cross_entropy_step(student: torch.nn.Module, ids_BT: Tensor, autocast: Callable[[], torch.autocast]) -> None:
    """transformers' own: labels in, loss out."""
    with autocast():
        loss = student(input_ids=ids_BT, labels=ids_BT).loss
    loss.backward()


def distillation_step(
    student: torch.nn.Module,
    ids_BT: Tensor,
    autocast: Callable[[], torch.autocast],
    loss: DistillationLoss,
    record: Positions,
) -> None:
    """Ours: every position but the last of each window counts."""
    with autocast():
        hidden_BTD = hidden_states(student, ids_BT, torch.ones_like(ids_BT))
    terms = loss(hidden_BTD[:, :-1].flatten(0, 1), head_weight(student), record)
    (terms.loss / terms.positions).backward()


def peak_of(step: Callable[[], None], device: str) -> float:
    """MiB above what was held before the step."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the resident peak starts again from now
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])


def seconds_of(step: Callable[[], None], device: str) -> float:
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def product_floor(count: int, width: int, dtype: torch.dtype, device: str) -> float:
    """Seconds of the head's three matrix products alone, best of five: nothing that trains a head is faster."""
    hidden = torch.randn(count, width, device=device).to(dtype)
    weight = torch.randn(VOCAB, width, device=device).to(dtype)
    logits, back, head = hidden @ weight.T, torch.empty_like(hidden), torch.empty_like(weight)

    def products() -> None:
        torch.mm(hidden, weight.T, out=logits)
        torch.mm(logits, weight, out=back)
        torch.mm(logits.T, hidden, out=head)

    return min(seconds_of(products, device) for _ in range(5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="gpt2-44m", choices=["gpt2-44m", "gpt2-202m"])
    parser.add_argument("--batch", type=int, default=4, help="windows")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--rounds", type=int, default=7, help="pairs timed")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    dtype = getattr(torch, args.dtype)

    facts = TokenizerFingerprint(
        size=VOCAB, vocab_sha256="0" * 64, bos=0, eos=0, pad=0, unk=0, special={}, probe_sha256="0" * 64
    )
    student = build_student(StudentConfig(preset=args.preset), VOCAB, facts).to(args.device)
    ids_BT = torch.randint(0, VOCAB, (args.batch, args.length), device=args.device)
    count = args.batch * (args.length - 1)
    record = random_record(count, args.device)
    loss = DistillationLoss(temperature=args.temperature, kd_weight=0.5, ce_weight=0.5, vocab_size=VOCAB, dtype=dtype)

    def autocast() -> torch.autocast:
        return torch.autocast(args.device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

    def plain() -> None:
        cross_entropy_step(student, ids_BT, autocast)
        student.zero_grad(set_to_none=True)

    def ours() -> None:
        distillation_step(student, ids_BT, autocast, loss, record)
        student.zero_grad(set_to_none=True)

    for step in (plain, ours):
        step()
    pairs = [(seconds_of(plain, args.device), seconds_of(ours, args.device)) for _ in range(args.rounds)]
    loss.free()  # our buffers are part of our peak, and of nobody else's
    peak_plain, peak_ours = peak_of(plain, args.device), peak_of(ours, args.device)
    times = [statistics.median(side) for side in zip(*pairs, strict=True)]
    ratios = sorted(b / a for a, b in pairs)
    floor = product_floor(count, head_weight(student).shape[1], dtype, args.device)

    size = f"{args.batch} x {args.length} tokens"
    print(f"{args.preset}, {size}, {args.dtype}, {args.device}, {torch.get_num_threads()} threads")
    print(f"cross-entropy step (transformers)  {times[0]:.3f} s   peak {peak_plain:.0f} MiB")
    print(f"bucket step (ours)                 {times[1]:.3f} s   peak {peak_ours:.0f} MiB")
    spread = f"{args.rounds} pairs, {ratios[0]:.3f} to {ratios[-1]:.3f}"
    print(f"time ratio                         {statistics.median(ratios):.3f} ({spread})")
    print(f"memory ratio                       {peak_ours / peak_plain:.3f}")
    print(f"floor: the head's three products   {floor:.3f} s")


if __name__ == "__main__":
    main()
