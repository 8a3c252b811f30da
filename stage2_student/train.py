"""`python -m stage2_student train`: cache in, student out; run again after a crash, it goes on.

Not for the training loop (trainer.py) nor the loss (loss.py): this file checks the config against the cache, puts the parts
together, and finishes the run's folder.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from importlib.util import find_spec
from typing import Any

import torch
import transformers
from transformers import TrainerState, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from shared.errors import UsageError
from shared.files import atomic_write
from stage2_student.batch import Collate, named_when_a_worker_dies
from stage2_student.card import CARD, card_text
from stage2_student.checkpoint import checkpoints, step_of
from stage2_student.config import TrainConfig
from stage2_student.curves import draw_curves
from stage2_student.data import Data, EpochOrder, open_data, shards_of
from stage2_student.loss import DistillationLoss
from stage2_student.measures import measure_named
from stage2_student.run_folder import claim, publish_student, write_run
from stage2_student.students import build_student, count_parameters, longest_window
from stage2_student.trainer import DistillationTrainer
from stage2_student.watch import METRICS, MetricsFile, Progress, cut_back, last_validation

CHECKPOINTS = "checkpoints"


def train(config: TrainConfig) -> dict[str, Any]:
    """Train one student, or finish the training that `config.out` holds.

    Returns:
        run.json of the finished run.
    Raises:
        UsageError: cache, student, device or output folder do not fit; nothing was started.
        RunError: damaged windows, a loss that is no number, a full disk.
    """
    require_possible(config)
    disable_progress_bar()  # transformers' bars for each saved file
    data = open_data(config)
    set_seed(config.seed)
    student = build_student(config.student, data.manifest.vocab_size, data.manifest.tokenizer)
    require_fit(student, data)
    begun = bool(checkpoints(config.out / CHECKPOINTS))
    run = claim(config.out, provenance(config, data, student), begun=begun)
    if run["status"] == "finished":
        print(f"{config.out}: already finished, {run['steps']} steps; nothing to do", file=sys.stderr)
        return run
    trainer = make_trainer(config, data, student)
    with named_when_a_worker_dies():  # torch says so by a signal, anywhere in the training process
        run_to_end(trainer, config, total_steps(config, len(data.training)))
    return finish(trainer, config, data, run)


def require_possible(config: TrainConfig) -> None:
    """Refuse what this machine or this release cannot do.

    Raises:
        UsageError: no GPU although one is asked for, several processes, or a reporter that is not installed.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device", expected="a CUDA device", got="none that torch sees", do="set device to auto or cpu")
    world = os.environ.get("WORLD_SIZE", "1")
    if world != "1":
        raise UsageError("train", expected="one process", got=f"WORLD_SIZE={world}", do="start it without a launcher")
    for package in config.report_to:
        if find_spec(package) is None:
            do = f"pip install 'codestill[{package}]', or leave it out of report_to"
            raise UsageError("report_to", expected=f"the package {package}", got="not installed", do=do)


def require_fit(student: Any, data: Data) -> None:
    """The student must have a position for every token it is fed.

    Raises:
        UsageError: a cached window is longer.
    """
    room, longest = longest_window(student), max(data.training.longest, data.validation.longest)
    if room is not None and longest - 1 > room:  # the last token is only predicted
        raise UsageError(
            "student",
            expected=f"at least {longest - 1} positions, for the cache's longest window of {longest} tokens",
            got=str(room),
            do=f"capture with windows of at most {room + 1} tokens, or take a student with more positions",
        )


def provenance(config: TrainConfig, data: Data, student: Any) -> dict[str, Any]:
    """What must be equal for a run to be continued, and what a reader of the student wants to know."""
    manifest = data.manifest
    return {
        "config": config.settings(),
        "cache": {"id": manifest.cache_id, "windows": len(data.training)},
        "validation": {"from": data.validation_id, "windows": len(data.validation)},
        "teacher": manifest.teacher.model_dump(mode="json"),
        "corpus": manifest.identity.corpus,
        "tokenizer": manifest.tokenizer.model_dump(mode="json"),
        "parameters": count_parameters(student),
    }


def total_steps(config: TrainConfig, windows: int) -> int:
    """Optimizer steps of the whole run; the last step of an epoch may hold fewer batches."""
    if config.max_steps is not None:
        return config.max_steps
    assert config.epochs is not None
    batches = math.ceil(windows / config.batch_size)
    return config.epochs * math.ceil(batches / config.gradient_accumulation)


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """Our config in transformers' words."""
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    schedule = "constant_with_warmup" if config.scheduler == "constant" else config.scheduler
    arguments = TrainingArguments(
        output_dir=str(config.out / CHECKPOINTS),
        num_train_epochs=config.epochs or 1,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup,
        lr_scheduler_type=schedule,
        max_grad_norm=config.clip,
        optim="adamw_torch_fused",  # on a CPU ten times as fast as the loop over tensors
        seed=config.seed,
        use_cpu=not on_gpu,
        logging_steps=config.log_every,
        logging_nan_inf_filter=False,  # trainer.py stops at the first one
        eval_strategy="steps" if config.eval_every else "epoch",
        eval_steps=config.eval_every,
        save_strategy="steps" if config.save_every else "epoch",
        save_steps=config.save_every or 500,
        report_to=list(config.report_to) or "none",
        run_name=config.out.name,
        dataloader_num_workers=config.workers,
        dataloader_persistent_workers=config.workers > 0,
        dataloader_pin_memory=on_gpu,
        remove_unused_columns=False,
        label_names=["targets"],
        disable_tqdm=True,  # watch.Progress instead
    )
    # With several visible GPUs the Trainer would take DataParallel, which cannot split flat records.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


def make_trainer(config: TrainConfig, data: Data, student: Any) -> DistillationTrainer:
    """Loss, data and callbacks around the student."""
    low = config.dtype == "bfloat16"
    settings: dict[str, Any] = {
        "form": config.form,
        "measure": measure_named(config.divergence.name, **config.divergence.parameters),
        "temperature": config.temperature,
        "kd_weight": config.kd_weight,
        "ce_weight": config.ce_weight,
        "t_squared": config.t_squared,
        "vocab_size": data.manifest.vocab_size,
        "dtype": torch.bfloat16 if low else None,
    }
    if "tensorboard" in config.report_to:  # transformers' only way to say where
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(config.out / "tensorboard")
    shard_N = shards_of(data.training)
    trainer = DistillationTrainer(
        order=EpochOrder(shard_N, seed=config.seed, live_shards=config.shuffle_shards),
        loss=DistillationLoss(**settings, tail_shape=data.training_shape),
        scoring_loss=DistillationLoss(**settings, tail_shape=data.validation_shape),
        mixed_precision=low,
        model=student,
        args=training_arguments(config),
        train_dataset=data.training,
        eval_dataset=data.validation,
        data_collator=Collate(config.mask_prompt, data.manifest.tokenizer.pad or 0),
        callbacks=[MetricsFile(config.out / METRICS), Progress()],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def run_to_end(trainer: DistillationTrainer, config: TrainConfig, total: int) -> None:
    """Train from the newest whole checkpoint, if there is one, to step `total`; score the last step."""
    found = checkpoints(config.out / CHECKPOINTS)
    newest = found[-1] if found else None
    done = step_of(newest) if newest else 0
    cut_back(config.out / METRICS, done)
    if newest is not None:
        print(f"going on from step {done} of {total}", file=sys.stderr)
    if done < total:
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    else:
        assert newest is not None
        trainer._load_from_checkpoint(str(newest))
        trainer.state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
    last = last_validation(config.out / METRICS)
    if last is None or last["step"] < total:
        trainer.evaluate()


def finish(trainer: DistillationTrainer, config: TrainConfig, data: Data, run: dict[str, Any]) -> dict[str, Any]:
    """The student, the picture and run.json; then the checkpoints go, since nothing needs them any more."""
    publish_student(
        trainer.accelerator.unwrap_model(trainer.model), config.out, data.training.cache.directory, data.manifest
    )
    draw_curves(config.out / METRICS, config.out / "curves.png", config.out.name)
    final = last_validation(config.out / METRICS)
    libraries = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions = {"python": platform.python_version(), **libraries}
    run = {**run, "status": "finished", "steps": trainer.state.global_step, "final": final, "versions": versions}
    atomic_write(config.out / CARD, card_text(run, config.out.name))
    write_run(config.out, run)
    shutil.rmtree(config.out / CHECKPOINTS)
    return run
