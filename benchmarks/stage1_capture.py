"""What a capture costs beside the teacher's bare forward pass over the same batches, and what each of its parts costs.

    python -m benchmarks.stage1_capture [--teacher DIR] [--recipe mbpp --corpus FILE.jsonl] [--documents 64] [--rounds 5]
    python -m benchmarks.stage1_capture --random starcoder2-3b --layers 2 --documents 8     # of the real width, random weights

Without a teacher and a corpus: the embedded ones. Bare means the body and the model's own head as transformers runs them,
nothing kept. Capture means everything stage 1 does to a shard but writing it: hidden states, float32 logits, selection, tail
mass, coordinates, fidelity sample. The ceiling is bare over (body + float32 logits): what is left if all the rest were free.
Works alternate, so that a busy machine troubles all of them alike; figures are medians, on a CPU of processor time. Peak
memory is that of a process of its own for each. Not a test: timings on a shared machine are for reading.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Starcoder2Config, Starcoder2ForCausalLM

from cache.encoding import Encoding
from shared.config import check_config
from shared.tokenizer import load_tokenizer
from shared.windows import read_windows
from stage1_teacher.batches import FIXED, pack, token_ids
from stage1_teacher.budget import Budget
from stage1_teacher.config import CaptureConfig, FidelityConfig
from stage1_teacher.rates import flops_per_token, peak_memory, peak_rate
from stage1_teacher.reading import Reader, hidden_states, sample_hidden_states
from stage1_teacher.selection import HeadChunk
from stage1_teacher.shape import Projection, fit
from stage1_teacher.teacher import TeacherModel, split

ROOT = Path(__file__).resolve().parent.parent
RANDOM = {  # the shapes that the models' own config.json states
    "starcoder2-3b": {
        "hidden_size": 3072, "intermediate_size": 12288, "num_hidden_layers": 30, "num_attention_heads": 24,
        "num_key_value_heads": 2, "vocab_size": 49152, "sliding_window": 4096, "max_position_embeddings": 16384,
    }
}  # fmt: skip
WHOLE_SHARD = 512  # windows
DIRECTIONS, STEP = 64, 0.05  # of the tail's shape: as a capture finds for 0.01 to 0.03 nats, without the search


class Bench:
    """A teacher, windows, and the works that are timed."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.config = settings(options)
        tokenizer = load_tokenizer(self.config.teacher.model)
        self.windows = list(read_windows(self.config.corpus, tokenizer, self.config.windows)[0])
        self.tokens = sum(len(window.tokens) for window in self.windows)
        self.model = model_of(options, self.config).eval()
        most = 16_384 if torch.cuda.is_available() else FIXED
        self.batches = [[self.windows[i] for i in batch] for batch in pack(self.windows, most)]

    @cached_property
    def teacher(self) -> TeacherModel:
        """The same as stage 1 takes it: a CPU's copy of the head in float32 is not what a bare forward pass pays for."""
        return split(self.model, self.config.teacher)

    def projection(self) -> Projection:
        """The tail's shape, of a usual size; minutes for a wide teacher."""
        states_SD, last_S = sample_hidden_states(self.teacher, self.windows[:4], FIXED)
        selection = self.config.selection
        return fit(self.teacher, states_SD, last_S, DIRECTIONS, selection=selection, step=STEP, positions=self.tokens)

    @torch.inference_mode()
    def bare(self) -> None:
        """The forward pass and its logits, dropped at once."""
        for batch in self.batches:
            tokens_BL = token_ids(batch).to(self.model.device)
            self.model.get_output_embeddings()(self.model.base_model(input_ids=tokens_BL, use_cache=False)[0])

    @torch.inference_mode()
    def body(self) -> None:
        """Hidden states alone."""
        for batch in self.batches:
            self.teacher.hidden(token_ids(batch))

    def reader(self, projection: Projection | None) -> Reader:
        """Stage 1's own."""
        data: dict[str, Any] = {"vocab_size": self.teacher.vocab_size, "k": self.config.selection.k}
        if projection is not None:
            data |= {"directions": DIRECTIONS, "coord_step": projection.step, "wide": projection.wide}
        tokens = max(sum(len(window.tokens) for window in batch) for batch in self.batches)
        return Reader(self.teacher, projection, Encoding.model_validate(data), self.config, Budget(max(tokens, FIXED)))

    def works(self, projection: Projection | None) -> dict[str, tuple[Callable[[], object], int]]:
        """Name -> (work, tokens it is for); heads and selection over the middle batch."""
        batch = self.batches[len(self.batches) // 2]
        with torch.inference_mode():
            hidden_ND = hidden_states(self.teacher, batch)
        chunk, reader, few = (
            HeadChunk(self.teacher.vocab_size, self.teacher.device),
            self.reader(projection),
            len(hidden_ND),
        )
        rows_CD = hidden_ND[: chunk.rows]
        gold_C = torch.zeros(len(rows_CD), dtype=torch.int64, device=rows_CD.device)
        with torch.inference_mode():
            given_CV = chunk.logits(partial(self.teacher.logits, rows_CD), len(rows_CD)).clone()
        every, into_DR = range(0, few, chunk.rows), torch.rand(hidden_ND.shape[1], DIRECTIONS, device=hidden_ND.device)

        def exact() -> None:
            for start in every:
                part_CD = hidden_ND[start : start + chunk.rows]
                chunk.logits(partial(self.teacher.logits, part_CD), len(part_CD))

        def give(out_CV: Tensor | None) -> Tensor:
            return given_CV.clone() if out_CV is None else out_CV.copy_(given_CV)

        def select() -> None:
            chunk.logits(give, len(rows_CD))
            chunk.select(gold_C, self.config.selection)

        return {
            "bare forward pass": (self.bare, self.tokens),
            "body": (self.body, self.tokens),
            "bfloat16 head": (lambda: self.teacher.head(hidden_ND), few),
            "float32 logits": (exact, few),
            "selection": (select, len(rows_CD)),
            "coordinates": (lambda: hidden_ND.float() @ into_DR, few),
            "capture": (lambda: reader.read_shard(self.windows, 0, lambda _: None), self.tokens),
        }


def settings(options: argparse.Namespace) -> CaptureConfig:
    """A capture of the teacher and text that were asked for."""
    corpus: dict[str, Any] = {"embedded": {"count": options.documents}}
    if options.corpus is not None:
        corpus = {"recipe": options.recipe, "path": str(options.corpus), "max_documents": options.documents}
    dense = FidelityConfig().positions_per_shard * options.documents // WHOLE_SHARD  # as dense as in a whole shard
    data = {
        "cache": "unused",
        "teacher": {"model": str(options.teacher.resolve())},
        "corpus": corpus,
        "fidelity": {"positions_per_shard": max(1, dense)},
    }
    return check_config(CaptureConfig, data, base=Path.cwd(), name="benchmark")


def model_of(options: argparse.Namespace, config: CaptureConfig) -> Any:
    """The teacher as transformers opens it; with --random the real width and vocabulary, and random weights."""
    if options.random is None:
        name = config.teacher.model
        return AutoModelForCausalLM.from_pretrained(name, dtype=torch.bfloat16, device_map="auto", use_safetensors=True)
    torch.manual_seed(0)
    shape = RANDOM[options.random] | ({"num_hidden_layers": options.layers} if options.layers else {})
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    model = Starcoder2ForCausalLM(Starcoder2Config(**shape, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0))
    torch.set_default_dtype(before)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.inference_mode()
def seconds(work: Callable[[], object]) -> float:
    """Of one call: wall time on a GPU, processor time of all threads on a CPU, where others may be at work too."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def main() -> None:
    """Print what each part costs, the ratio, the ceiling, and the memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=ROOT / "shared" / "embedded_teacher")
    parser.add_argument("--corpus", type=Path, help="a local file of the recipe's rows")
    parser.add_argument("--recipe", default="mbpp")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--random", choices=sorted(RANDOM), help="random weights of this shape; --teacher's tokenizer")
    parser.add_argument("--layers", type=int, help="of --random; all if absent")
    parser.add_argument("--only", choices=["bare", "capture"], help="one work once, and this process's peak memory")
    options = parser.parse_args()
    bench = Bench(options)
    if options.only == "bare":
        bench.bare()
    if options.only == "capture":
        start = Encoding(vocab_size=bench.teacher.vocab_size, k=bench.config.selection.k)
        Reader(bench.teacher, None, start, bench.config).read_shard(bench.windows, 0, lambda _: None)
    if options.only is not None:
        print(peak_memory())
        return
    works = bench.works(None if options.random else bench.projection())
    for work, _ in works.values():
        seconds(work)
    rounds = [{name: seconds(work) / tokens for name, (work, tokens) in works.items()} for _ in range(options.rounds)]
    report(bench, rounds)
    peaks = {name: peak_of(name) for name in ("bare", "capture")}
    print(f"peak memory        bare {peaks['bare'] / 1e9:.2f} GB, capture {peaks['capture'] / 1e9:.2f} GB")


def peak_of(work: str) -> int:
    """Bytes: the peak memory of a process that does this alone."""
    command = [sys.executable, "-m", "benchmarks.stage1_capture", *sys.argv[1:], "--only", work]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def report(bench: Bench, rounds: list[dict[str, float]]) -> None:
    """Microseconds a token, and the ratios round by round."""
    cost = {name: statistics.median(one[name] for one in rounds) for name in rounds[0]}
    for name, each in cost.items():
        print(f"{name:<18} {1e6 * each:10.1f} us a token")
    ratios = sorted(one["bare forward pass"] / one["capture"] for one in rounds)
    ceilings = [one["bare forward pass"] / (one["body"] + one["float32 logits"]) for one in rounds]
    flops, peak = flops_per_token(bench.teacher), peak_rate(bench.teacher.device)
    print(f"capture / bare     {statistics.median(ratios):10.3f}  (rounds {ratios[0]:.3f} to {ratios[-1]:.3f})")
    print(f"ceiling            {statistics.median(ceilings):10.3f}  (body and float32 logits, all else free)")
    print(
        f"capture            {1 / cost['capture']:10.0f} tokens/s, {flops / cost['capture'] / 1e12:.3f} TFLOP/s", end=""
    )
    print(f", {flops / cost['capture'] / peak:.2f} of the card's bfloat16 rate" if peak else "")
    print(f"{flops / 1e6:.1f} MFLOP a token, {bench.tokens} tokens a round, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
