"""A training run's parts around the student, as its config says: transformers' arguments, loss, order, callbacks.

Not for the course of a run (train.py) nor for what the parts do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from cache.manifest import TOKENIZER_FOLDER
from shared.tokenizer import load_tokenizer
from stage2_student.config import TrainConfig
from stage2_student.data import Data, EpochOrder, shards_of
from stage2_student.divergences import TailShape
from stage2_student.loss import DistillationLoss
from stage2_student.measures import measure_named
from stage2_student.other_tokenizer import collate_of
from stage2_student.ranks import Ranks
from stage2_student.samples import SAMPLES, SampleWriter, prompts_of
from stage2_student.scores import Scores
from stage2_student.steps import StepOrder
from stage2_student.stopping import Stop
from stage2_student.students import decoder, longest_window
from stage2_student.trainer import DistillationTrainer
from stage2_student.uld import UldLoss
from stage2_student.watch import METRICS, MetricsFile, Progress

CHECKPOINTS = "checkpoints"
SCHEDULERS = {
    "constant": "constant_with_warmup",
    "wsd": "warmup_stable_decay",
}  # transformers' names, where they differ


def on_gpu(config: TrainConfig) -> bool:
    """Whether the run trains on a GPU of this machine."""
    return config.device != "cpu" and torch.cuda.is_available()


def steps_an_epoch(config: TrainConfig, windows: int, ranks: int) -> int:
    """Optimizer steps of one pass; the last one may hold fewer windows."""
    return math.ceil(windows / (config.batch_size * config.gradient_accumulation * ranks))


def training_arguments(config: TrainConfig, epoch: int) -> TrainingArguments:
    """Our config in transformers' words.

    Args:
        config: of the run.
        epoch: optimizer steps of one; what is done once an epoch is done every so many steps, before the checkpoint.
    """
    arguments = TrainingArguments(
        output_dir=str(config.out / CHECKPOINTS),
        num_train_epochs=config.epochs or 1,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=1,  # trainer.py takes an optimizer step whole
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup,
        lr_scheduler_type=SCHEDULERS.get(config.scheduler, config.scheduler),
        # the fall that Hägele et al. 2024 (arXiv 2405.18392) found best
        lr_scheduler_kwargs={} if config.decay is None else {"num_decay_steps": config.decay, "decay_type": "1-sqrt"},
        max_grad_norm=config.clip,
        optim="adamw_torch_fused",  # on a CPU ten times as fast as the loop over tensors
        seed=config.seed,
        use_cpu=not on_gpu(config),
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # trainer.py stops at the first one
        eval_strategy="steps",
        eval_steps=config.eval_every or epoch,
        save_strategy="steps",
        save_steps=config.save_every or epoch,
        report_to=list(config.report_to) or "none",
        run_name=config.out.name,
        dataloader_num_workers=config.workers,
        dataloader_persistent_workers=config.workers > 0,
        dataloader_pin_memory=on_gpu(config),
        remove_unused_columns=False,
        label_names=["targets"],
        disable_tqdm=True,  # watch.Progress instead
    )
    # With several visible GPUs and no launcher the Trainer would take DataParallel, which cannot split flat records.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def make_trainer(config: TrainConfig, data: Data, student: Any, ranks: Ranks, stop: Stop) -> DistillationTrainer:
    """Loss, data and callbacks around the student."""
    if config.gradient_checkpointing:
        # the newer and the older name of the same; without reentrance by default
        getattr(student, "activation_checkpointing_enable", student.gradient_checkpointing_enable)()
    if config.compile:
        decoder(student).compile()
    scores = Scores(config.early_stopping, keep_best=config.keep_best)
    order = EpochOrder(shards_of(data.training), seed=config.seed, live_shards=config.shuffle_shards)
    trainer = DistillationTrainer(
        order=StepOrder(order, batch_size=config.batch_size, accumulation=config.gradient_accumulation, ranks=ranks),
        loss=_loss(config, data, data.training_shape),
        scoring_loss=_loss(config, data, data.validation_shape),
        dtype=config.dtype,
        ema=config.ema,
        ranks=ranks,
        scores=scores,
        stop=stop,
        model=student,
        args=training_arguments(config, steps_an_epoch(config, len(data.training), ranks.world)),
        train_dataset=data.training,
        eval_dataset=data.validation,
        data_collator=collate_of(config, data.training.cache, data.own, longest_window(student)),
        callbacks=[*([MetricsFile(config.out / METRICS), Progress()] if ranks.first else []), scores],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(AfterStep(trainer))
    if config.samples is not None and ranks.first:
        trainer.add_callback(_sample_writer(config, data, trainer))
    if ranks.rank:
        torch.manual_seed(config.seed + ranks.rank)  # dropout of its own
    return trainer


def _loss(config: TrainConfig, data: Data, shape: TailShape | None) -> DistillationLoss:
    settings: dict[str, Any] = {
        "form": config.form,
        "temperature": config.temperature,
        "kd_weight": config.kd_weight,
        "ce_weight": config.ce_weight,
        "vocab_size": data.manifest.vocab_size,
        "dtype": torch.bfloat16 if config.dtype == "bfloat16" else None,
        "tail_shape": shape,
    }
    if data.own is not None:
        return UldLoss(**settings)
    measure = measure_named(config.divergence.name, **config.divergence.parameters)
    return DistillationLoss(**settings, measure=measure, t_squared=config.t_squared)


def _sample_writer(config: TrainConfig, data: Data, trainer: DistillationTrainer) -> SampleWriter:
    assert config.samples is not None
    tokenizer = load_tokenizer(str(data.training.cache.directory / TOKENIZER_FOLDER))
    prompts = list(config.samples.prompts) or prompts_of(data.validation, tokenizer, config.samples.count)
    wandb = "wandb" in config.report_to
    own = tokenizer if data.own is None else data.own.tokenizer
    return SampleWriter(trainer, config.samples, prompts, own, config.out / SAMPLES, wandb=wandb)


class AfterStep(TrainerCallback):  # type: ignore[misc]
    """Tells the trainer that a step is done, after the metrics and before samples, validation and checkpoint."""

    def __init__(self, trainer: DistillationTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        return self._trainer.after_step(control)
