"""A thin layer over transformers' Trainer: our loss, our order, our validation, checkpoints that are whole or absent.

Everything else (optimizer, schedule, clipping, resume, TensorBoard, Weights & Biases) is the Trainer's own. What it takes for
one batch is a whole optimizer step here: the batches of one rank (steps.py), forward and backward one after another.
Not for what surrounds a run (train.py) and not for the loss itself (loss.py).

Averages: an optimizer step's loss is the mean over all counted positions of its batches on all ranks, so batch size,
accumulation and ranks can be traded without changing what is learnt. Rows of metrics.jsonl are means over positions since the
last row. Where temperature or weights move, a step's values follow from its number alone, and validation takes the last step's
throughout, so that its rows can be compared.
Shapes: B windows, T positions, N counted positions, D width.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer

from shared.errors import RunError
from shared.memory import is_out_of_memory
from stage2_student.batch import record_of, require_whole
from stage2_student.checkpoint import WRITING, drop_older, named_when_full, seal
from stage2_student.ema import Shadow
from stage2_student.loss import DistillationLoss, LossTerms
from stage2_student.meter import Meter, perplexity
from stage2_student.ranks import Ranks
from stage2_student.scores import Scores
from stage2_student.steps import CollateStep, StepLoader, StepOrder, pieces
from stage2_student.stopping import Stop
from stage2_student.students import head_weight, hidden_states

OURS = "codestill.json"  # what a checkpoint keeps besides the Trainer's own files
PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class DistillationTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer on cached batches.

    Args:
        order: of the training windows, already this rank's.
        loss: of a training step.
        scoring_loss: of validation; the same settings, with the validation cache's tail shape.
        dtype: of the products in the student's body: float32, bfloat16 or float16.
        ema: decay of the moving average; None for none.
        ranks: the processes of the run.
        scores: the validations so far.
        stop: who asks to stop.
        trainer_arguments: the Trainer's own.
    """

    def __init__(
        self,
        *,
        order: StepOrder,
        loss: DistillationLoss,
        scoring_loss: DistillationLoss,
        dtype: str,
        ema: float | None,
        ranks: Ranks,
        scores: Scores,
        stop: Stop,
        **trainer_arguments: Any,
    ) -> None:
        super().__init__(**trainer_arguments)
        self._order, self._ranks, self._stop, self.scores = order, ranks, stop, scores
        self._loss, self._scoring_loss, self._dtype = loss, scoring_loss, PRECISIONS[dtype]
        scoring_loss.at(1.0)
        if dtype == "float16":
            self.accelerator.scaler = torch.amp.GradScaler(self.args.device.type)
        ranks.same_weights(self.model)
        self._shadow = None if ema is None else Shadow(self.model, ema)
        self.meter = Meter(loss, ranks)
        self.windows_at_once = self.args.per_device_train_batch_size
        self.stopped_by = 0  # the signal that all ranks stop for
        self._saving = False
        self._validation: DataLoader[Any] | None = None

    # Data

    def get_train_dataloader(self) -> StepLoader:
        collate = CollateStep(self.data_collator, self.args.per_device_train_batch_size)
        return StepLoader(self.train_dataset, batch_sampler=self._order, collate_fn=collate, **self._reading())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """This rank's batches of the validation windows."""
        if self._validation is None:
            size, count = self.args.per_device_eval_batch_size, len(self.eval_dataset)
            batches = [list(range(start, min(start + size, count))) for start in range(0, count, size)]
            mine = batches[self._ranks.rank :: self._ranks.world]
            self._validation = DataLoader(
                self.eval_dataset, batch_sampler=mine, collate_fn=self.data_collator, **self._reading()
            )
        return self._validation

    def _reading(self) -> dict[str, Any]:
        args = self.args
        return {
            "num_workers": args.dataloader_num_workers,
            "persistent_workers": args.dataloader_persistent_workers,
            "pin_memory": args.dataloader_pin_memory,
        }

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[dict[str, Any]]], num_batches: int, device: torch.device
    ) -> tuple[list[list[dict[str, Any]]], int]:
        """This rank's batches of the next optimizer step, and how many positions the step counts on all ranks."""
        assert num_batches == 1
        with self._ranks.together():
            with self.meter.waiting():
                batches = next(epoch_iterator)
            for batch in batches:
                require_whole(batch)
        return [batches], int(self._ranks.add([sum(len(batch["targets"]) for batch in batches)])[0])

    # A step

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        """No DistributedDataParallel: the loss is taken outside the model's forward pass, and ranks.py adds the gradients."""
        return model

    def training_step(self, model: Any, inputs: list[dict[str, Any]], num_items_in_batch: int | None = None) -> Tensor:
        """Gradients of one optimizer step, again in smaller pieces where memory runs out.

        Raises:
            RunError: the loss is not a finite number.
            OutOfMemoryError: on every rank, where memory does not hold a single window.
        """
        assert num_items_in_batch is not None
        model.train()
        self._loss.at(self.state.global_step / max(1, self.state.max_steps - 1))
        while (terms := self._gradients(inputs, max(1, num_items_in_batch))) is None:
            self._halve()
        for term, tokens in terms:
            self.meter.add(term, tokens)
        self._ranks.sum_gradients(self.model)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer.optimizer)
        return torch.zeros((), device=self.args.device)  # the log's loss is the meter's

    def _gradients(self, batches: list[dict[str, Any]], positions: int) -> list[tuple[LossTerms, int]] | None:
        """Forward and backward of all batches; None where a rank ran out of memory."""
        terms: list[tuple[LossTerms, int]] = []
        names: list[list[str]] = []
        full = False
        try:
            for piece in (piece for batch in batches for piece in pieces(batch, self.windows_at_once)):
                terms.append(self._backward(piece, positions))
                names.append(piece["window_ids"])
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            full = True
        any_full, self.stopped_by = (int(value) for value in self._ranks.most([full, self._stop.signal]))
        if any_full:
            return None
        with self._ranks.together():
            self._require_finite(terms, names)
        return terms

    def _backward(self, piece: dict[str, Any], positions: int) -> tuple[LossTerms, int]:
        batch = self._prepare_inputs(piece)
        terms = self.terms(batch, scoring=False)
        self.accelerator.backward(terms.loss / positions)
        return terms.detached(), int(piece["attention_mask"].sum())

    def _require_finite(self, terms: list[tuple[LossTerms, int]], names: list[list[str]]) -> None:
        """One look at all losses of the step, so that a GPU is waited for once."""
        losses = torch.stack([term.loss for term, _ in terms]).tolist() if terms else []
        for value, windows in zip(losses, names, strict=True):
            if not math.isfinite(value):
                where = f"windows {', '.join(windows)}"
                raise self._diverged(where, "a finite loss", value, self.state.global_step + 1)

    def _halve(self) -> None:
        """Fewer windows at once from here on; what the step has so far is dropped."""
        self.model.zero_grad()
        self._loss.free()
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()
        before = self.windows_at_once
        if before == 1:
            raise torch.OutOfMemoryError("one window at a time")  # train.py says what would fit
        self.windows_at_once = before - before // 2
        if self._ranks.first:
            print(
                f"step {self.state.global_step + 1}: out of memory with {before} windows at once; repeated, and going on, "
                f"with {self.windows_at_once} and more batches a step, which learns the same",
                file=sys.stderr,
            )

    def terms(self, batch: dict[str, Any], *, scoring: bool) -> LossTerms:
        """Loss terms of one batch, summed over its counted positions."""
        with torch.autocast(self.args.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            hidden_BTD = hidden_states(self.model, batch["input_ids"], batch["attention_mask"])
        hidden_ND = hidden_BTD.flatten(0, 1).index_select(0, batch["counted"])
        if self._dtype is torch.float16:
            hidden_ND = hidden_ND.float()
        loss = self._scoring_loss if scoring else self._loss
        return loss(hidden_ND, head_weight(self.model), record_of(batch), scoring=scoring)

    def _diverged(self, what: str, expected: str, got: object, step: int | None = None) -> RunError:
        do = "lower learning_rate or set clip; the last checkpoint is kept"
        where = f"step {self.state.global_step if step is None else step}, {what}"
        return RunError(where, expected=expected, got=str(got), do=do)

    # Watching

    @contextmanager
    def published_weights(self) -> Iterator[None]:
        """While the body runs, the model is the one to be scored and published; the clock of training stands."""
        with self.meter.paused(), nullcontext() if self._shadow is None else self._shadow.in_place():
            self.model.eval()
            yield

    def after_step(self, control: Any) -> Any:
        """The moving average takes in the step; whoever asked to stop gets a checkpoint first.

        A planned checkpoint ends a row of metrics.jsonl, on every rank. One that a signal asks for does not: it keeps the sums.
        """
        control.should_log = control.should_log or control.should_save
        if self._shadow is not None:
            self._shadow.update(self.state.global_step)
        if self.stopped_by:
            control.should_save = control.should_training_stop = True
        return control

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Means over the validation set's counted positions; also what the log gets, with the prefix eval_."""
        scored = self._scoring_loss.scored
        sums = torch.zeros(len(scored) + 2, dtype=torch.float64)
        with self.published_weights(), self._ranks.together(), torch.no_grad():
            for batch in self.get_eval_dataloader():
                require_whole(batch)
                for piece in pieces(batch, self.windows_at_once):
                    terms = self.terms(self._prepare_inputs(piece), scoring=True)
                    text = float(piece["target_bytes"].sum()) if "target_bytes" in piece else 0.0
                    parts = [*(float(getattr(terms, name)) for name in scored), terms.positions, text]
                    sums += torch.tensor(parts, dtype=torch.float64)
        totals = self._ranks.add(sums.tolist())
        metrics = {f"eval_{name}": value for name, value in _means(self._scoring_loss, totals).items()}
        self.log(dict(metrics))
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, Any], start_time: float | None = None) -> None:
        """The Trainer's training rows get our means in place of its own running loss.

        Raises:
            RunError: a gradient norm or a validation loss is no number.
        """
        row = {**logs, **self.meter.take(self.args.device)} if "loss" in logs else logs
        if self.accelerator.scaler is not None and not math.isfinite(row.get("grad_norm", 0.0)):
            del row["grad_norm"]  # float16: the scale was too large, the scaler has left the step out and lowers it
        with self._ranks.together():
            for name, value in row.items():
                if isinstance(value, float) and not math.isfinite(value):
                    raise self._diverged(name.replace("eval_", "validation "), "a finite number", value)
        super().log(row, start_time)

    # Checkpoints

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(Path(folder, WRITING)) if self._saving else str(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write under a temporary name, flush to the disk, rename; only then drop older checkpoints.

        Raises:
            RunError: the disk is full, or the weights are no numbers any more; the checkpoint before this one stands.
        """
        folder, step = Path(self.args.output_dir), self.state.global_step
        with self.meter.paused():
            with self._ranks.together():
                self._require_finite_weights()
            self._ranks.once(lambda: shutil.rmtree(folder / WRITING, ignore_errors=True))
            self._write_checkpoint(folder, model, trial)
            self._ranks.once(lambda: seal(folder / WRITING / f"checkpoint-{step}", folder))
            self._ranks.once(lambda: drop_older(folder, step, keep=self.scores.best_step))

    def _require_finite_weights(self) -> None:
        """A gradient can be no number although its loss was one; the next loss would show it, one checkpoint too late."""
        broken = [name for name, weight in self.model.named_parameters() if not bool(weight.isfinite().all())]
        if broken:
            raise self._diverged(f"weights {broken[0]}", "finite numbers", "nan or inf")

    def _write_checkpoint(self, folder: Path, model: Any, trial: Any) -> None:
        meters = self._ranks.gather(self.meter.state())
        self._saving = True
        try:
            with self._ranks.together(), named_when_full(folder):
                super()._save_checkpoint(model, trial)
                if self._ranks.first:
                    self._write_ours(folder / WRITING / f"checkpoint-{self.state.global_step}", meters)
        except BaseException:
            shutil.rmtree(folder / WRITING, ignore_errors=True)
            raise
        finally:
            self._saving = False

    def _write_ours(self, checkpoint: Path, meters: list[dict[str, Any]]) -> None:
        if self._shadow is not None:
            self._shadow.save(checkpoint)
        ours = {"windows_at_once": self.windows_at_once, "meters": meters}
        (checkpoint / OURS).write_text(json.dumps(ours))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A tied head is saved once, under its other name; the Trainer would call it missing."""
        assert not load_result.unexpected_keys, load_result
        assert not set(load_result.missing_keys) & dict(self.model.named_parameters()).keys(), load_result

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        ours = json.loads(Path(resume_from_checkpoint, OURS).read_bytes())
        self.windows_at_once = ours["windows_at_once"]
        self.meter.load(ours["meters"][self._ranks.rank])
        if self._shadow is not None:
            self._shadow.load(Path(resume_from_checkpoint))


def _means(loss: DistillationLoss, sums: list[float]) -> dict[str, float]:
    """Of the sums over positions, their number and the bytes of their targets; the order is the row's.

    bits_per_byte is the cross-entropy by text instead of by token, so that students with different tokenizers compare; absent
    where tokens do not say which bytes they are.
    """
    *totals, count, text = sums
    means = dict(zip(loss.scored, (total / max(1, count) for total in totals), strict=True))
    kd, ce = means.pop("kd"), means.pop("ce")
    row = {"loss": loss.mix(kd, ce), "kd": kd, "ce": ce, "perplexity": perplexity(ce), **means}
    return {**row, "bits_per_byte": ce * count / math.log(2) / text} if text else row
