"""What training from the cache costs beside online distillation with the teacher in memory, and how long it waits for data.

    python -m benchmarks.stage2_training [--data FOLDER] [--preset gpt2-44m] [--windows 96] [--rounds 5] [--steps 4]

FOLDER holds reference-teacher/ and mbpp.jsonl; without it the embedded teacher reads embedded programs. A cache of `windows`
windows is captured first. Then, in one process and one after another in every round, on the same windows:

    cross-entropy   transformers' own step of the student, labels in, loss out
    fused           cross-entropy through our chunked head
    full, bucket    windows read from the cache, collated, distillation in that form and cross-entropy
    online          the teacher's forward pass to logits over the whole vocabulary, the same loss over them, chunked as ours
    teacher         that forward pass alone

Each step ends with its optimizer step. What the teacher costs a step is what it takes beyond fused cross-entropy. The gain from
the cache grows with the teacher: a unit is a teacher whose forward pass takes as long as one student step from the cache.
Medians over rounds, wall and CPU seconds (which a busy machine disturbs less). Memory is each step's peak above what was
resident before; the teacher's weights stand apart. Last, a real training run of the shipped recipe's batch says which share of
its time waits for batches. Not for quality (cache_students.py) nor for the loss alone (stage2_step.py).
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.cache_students_train import online
from benchmarks.stage2_step import peak_of, seconds_of
from cache.reader import Cache, open_cache
from cache.tail import NODES
from shared.config import check_config
from shared.files import read_jsonl
from stage1_teacher.capture import capture
from stage1_teacher.config import CaptureConfig
from stage1_teacher.teacher import TeacherModel, load_teacher
from stage2_student.batch import CachedWindows, Collate, record_of
from stage2_student.config import TrainConfig
from stage2_student.data import tail_shape
from stage2_student.loss import DistillationLoss, Positions
from stage2_student.student_config import StudentConfig
from stage2_student.students import build_student, head_weight, hidden_states
from stage2_student.train import train

ROOT = Path(__file__).resolve().parent.parent
BATCH, ACCUMULATION, TEMPERATURE = 8, 4, 2.0  # of the shipped recipe (stage2_student/configs/mbpp-44m-t2.0-a0.5.yaml)
BYTES = 40  # a token of the cache


def capture_config(folder: Path, data: Path | None, windows: int) -> CaptureConfig:
    """Where teacher and text come from."""
    if data is None:
        settings: dict[str, Any] = {
            "teacher": {"model": str(ROOT / "shared" / "embedded_teacher")},
            "corpus": {"embedded": {"count": windows, "seed": 0}},
            "windows": {"max_length": 256},
        }
    else:
        rows = {"recipe": "mbpp", "path": str(data / "mbpp.jsonl"), "where": {"task_id": [601, 600 + windows]}}
        settings = {
            "teacher": {"model": str(data / "reference-teacher")},
            "corpus": rows,
            "windows": {"max_length": 512},
        }
    settings |= {"cache": str(folder), "shape": {"bytes": BYTES}}
    return check_config(CaptureConfig, settings, base=Path.cwd(), name="benchmark")


class Steps:
    """The steps compared, of one student; each takes the next batch of the same windows."""

    def __init__(self, preset: str, cache: Cache, teacher: TeacherModel, device: str) -> None:
        manifest = cache.manifest
        config = StudentConfig.model_validate({"preset": preset})
        self.student = build_student(config, manifest.vocab_size, manifest.tokenizer).to(device)
        self.optimizer = torch.optim.AdamW(self.student.parameters(), lr=5e-5, fused=True)
        self.windows, self.collate = CachedWindows(cache), Collate(mask_prompt=False, pad_id=0)
        self.teacher, self.device = teacher, device
        settings: dict[str, Any] = {"temperature": TEMPERATURE, "kd_weight": 0.5, "ce_weight": 0.5}
        settings |= {"vocab_size": manifest.vocab_size, "dtype": torch.bfloat16}
        self.losses = {
            "full": DistillationLoss(form="full", tail_shape=tail_shape(cache), **settings),
            "bucket": DistillationLoss(form="bucket", **settings),
            "online": DistillationLoss(form=online, **settings),
            "fused": DistillationLoss(**settings | {"kd_weight": 0.0, "ce_weight": 1.0}),
        }
        self._numbers = {name: self._batches() for name in ("plain", "alone", *self.losses)}

    def _batches(self) -> Iterator[list[int]]:
        starts = range(0, len(self.windows) - BATCH + 1, BATCH)
        return cycle([list(range(start, start + BATCH)) for start in starts])

    def _next(self, who: str) -> dict[str, Any]:
        batch = self.collate([self.windows[number] for number in next(self._numbers[who])])
        return {name: value.to(self.device) if torch.is_tensor(value) else value for name, value in batch.items()}

    def plain(self) -> None:
        batch = self._next("plain")
        ids_BT, seen_BT = batch["input_ids"], batch["attention_mask"]
        with self._autocast():
            labels_BT = ids_BT.masked_fill(seen_BT == 0, -100)
            loss = self.student(input_ids=ids_BT, attention_mask=seen_BT, labels=labels_BT).loss
        self._learn(loss)

    def cached(self, form: str) -> None:
        batch = self._next(form)
        self._distil(batch, record_of(batch), self.losses[form])

    def online(self) -> None:
        batch = self._next("online")
        logits_NV = self._teach(batch)
        count = len(logits_NV)
        targets_N = batch["targets"]
        ones_N = torch.ones_like(targets_N)
        nodes_NM = logits_NV.new_zeros(count, len(NODES))  # of no use: `online` takes the logits as they are
        record = Positions(targets_N, targets_N[:, None], logits_NV.new_zeros(count, 1), ones_N, nodes_NM, logits_NV)
        self._distil(batch, record, self.losses["online"])

    def alone(self) -> None:
        self._teach(self._next("alone"))

    @torch.no_grad()
    def _teach(self, batch: dict[str, Any]) -> torch.Tensor:
        """The teacher's logits [N, V] at the positions that count, float32."""
        with self._autocast():
            hidden_BTD = self.teacher.hidden(batch["input_ids"])
            hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch["counted"])
            return (hidden_ND @ self.teacher.head_weight_VD.T).float()

    def _distil(self, batch: dict[str, Any], record: Positions, loss: DistillationLoss) -> None:
        with self._autocast():
            hidden_BTD = hidden_states(self.student, batch["input_ids"], batch["attention_mask"])
        hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch["counted"])
        terms = loss(hidden_ND, head_weight(self.student), record)
        self._learn(terms.loss / terms.positions)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device, dtype=torch.bfloat16)

    def _learn(self, loss: torch.Tensor) -> None:
        loss.backward()
        self.optimizer.step()
        self.student.zero_grad(set_to_none=True)


Side = dict[str, tuple[float, float]]


def median(rounds: list[Side], of: Callable[[Side, int], float]) -> str:
    """Wall and CPU median of a figure of each round."""
    return " / ".join(f"{statistics.median(of(side, kind) for side in rounds):.3f}" for kind in (0, 1))


def compare(steps: Steps, rounds: int) -> None:
    """Time and memory of all sides, and what follows."""
    sides: dict[str, Callable[[], None]] = {"cross-entropy": steps.plain}
    sides |= {form: partial(steps.cached, form) for form in ("fused", "full", "bucket")}
    sides |= {"online": steps.online, "teacher": steps.alone}
    for step in sides.values():
        step()
    timed = [{name: seconds_of(step, steps.device) for name, step in sides.items()} for _ in range(rounds)]
    peaks = {}
    for name, step in sides.items():
        for loss in steps.losses.values():
            loss.free()
        peaks[name] = peak_of(step, steps.device)
    print(f"{'step':<16}{'seconds, wall / CPU':>22}{'x cross-entropy':>18}{'peak MiB':>10}")
    for name in sides:
        seconds = median(timed, lambda side, kind, name=name: side[name][kind])  # type: ignore[misc]
        ratio = median(timed, lambda side, kind, name=name: side[name][kind] / side["cross-entropy"][kind])  # type: ignore[misc]
        print(f"{name:<16}{seconds:>22}{ratio:>18}{peaks[name]:>10.0f}")
    weights = (
        sum(
            weight.numel() * weight.element_size()
            for weight in (*steps.teacher.body.parameters(), steps.teacher.head_weight_VD)
        )
        / 2**20
    )
    print(f"the teacher's weights, in memory online only: {weights:.0f} MiB")

    report(timed)


def report(timed: list[Side]) -> None:
    """What the teacher costs on both sides."""
    for kind, clock in enumerate(("wall", "CPU")):

        def middle(name: str, base: str | None = None, kind: int = kind) -> float:
            return statistics.median(side[name][kind] - (side[base][kind] if base else 0.0) for side in timed)

        extras = {name: middle(name, "fused") for name in ("full", "bucket", "online")}
        unit = statistics.median(side["teacher"][kind] / side["full"][kind] for side in timed)
        ratio = statistics.median(side["online"][kind] / side["full"][kind] for side in timed)
        gain = (ratio - 1) / unit
        print(
            f"{clock}: seconds over fused cross-entropy: "
            + ", ".join(f"{name} {seconds:.3f}" for name, seconds in extras.items())
            + f"; the teacher's forward pass costs {unit:.3f} steps of `full`, throughput `full` / online is {ratio:.3f}: "
            f"{gain:.2f} more for each unit of teacher"
            + (f"; 3x from a teacher of {2 / gain:.1f} steps on" if gain > 0 else "")
        )


def data_wait(cache: Path, out: Path, preset: str, steps: int) -> None:
    """A real run's own rows."""
    settings = {
        "out": str(out), "cache": str(cache), "validation": {"fraction": 0.1}, "student": {"preset": preset},
        "temperature": TEMPERATURE, "kd_weight": 0.5, "ce_weight": 0.5, "dtype": "bfloat16", "max_steps": steps,
        "batch_size": BATCH, "gradient_accumulation": ACCUMULATION, "log_every": 1, "eval_every": steps, "save_every": steps,
    }  # fmt: skip
    train(check_config(TrainConfig, settings, base=Path.cwd(), name="benchmark"))
    rows = [row for row in read_jsonl(out / "metrics.jsonl") if row["split"] == "train"][1:]
    shares = [row["data_wait"] for row in rows]
    speeds = statistics.median(row["tokens_per_second"] for row in rows)
    print(
        f"training run, {BATCH} x {ACCUMULATION} windows a step, {len(rows)} steps after the first, no reading processes: "
        f"waits for data {100 * statistics.median(shares):.2f} % of the time, at most {100 * max(shares):.2f} % (bar 2 %); "
        f"{speeds:,.0f} tokens/s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the reference teacher and MBPP")
    parser.add_argument("--preset", default="gpt2-44m", choices=["gpt2-44m", "gpt2-202m"])
    parser.add_argument("--windows", type=int, default=96, help="in the cache")
    parser.add_argument("--rounds", type=int, default=5, help="rounds timed")
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps of the training run")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(0)
    with TemporaryDirectory() as folder:
        config = capture_config(Path(folder, "cache"), args.data, args.windows)
        manifest = capture(config, progress=False)
        teacher = load_teacher(config.teacher)
        print(
            f"{args.preset}, {args.device}, {torch.get_num_threads()} threads, bfloat16 products, vocabulary "
            f"{manifest.vocab_size}; teacher {manifest.teacher.parameters / 1e6:.1f} M parameters; "
            f"{manifest.total('tokens')} tokens in {manifest.total('windows')} windows, {BATCH} a batch",
            flush=True,
        )
        compare(Steps(args.preset, open_cache(Path(folder, "cache")), teacher, args.device), args.rounds)
        data_wait(Path(folder, "cache"), Path(folder, "run"), args.preset, args.steps)


if __name__ == "__main__":
    main()
