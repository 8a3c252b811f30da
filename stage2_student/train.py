"""`python -m stage2_student train`: cache in, student out; run again after a crash, it goes on.

Not for the training loop (trainer.py) nor the loss (loss.py): this file checks the config against the cache, puts the parts
together, and finishes the run's folder.
"""

from __future__ import annotations

import platform
import shutil
import sys
from functools import partial
from importlib.util import find_spec
from shutil import which
from typing import Any

import torch
import transformers
from transformers import TrainerState, set_seed
from transformers.utils.logging import disable_progress_bar

from shared.errors import RunError, UsageError
from shared.files import atomic_write
from shared.memory import is_out_of_memory
from stage2_student.assemble import CHECKPOINTS, make_trainer, on_gpu, steps_an_epoch
from stage2_student.batch import named_when_a_worker_dies
from stage2_student.card import CARD, card_text
from stage2_student.checkpoint import checkpoints, step_of
from stage2_student.config import TrainConfig
from stage2_student.curves import draw_curves
from stage2_student.data import Data, open_data
from stage2_student.memory import free_bytes, require_room
from stage2_student.ranks import Ranks, launched, world_size
from stage2_student.reporting import reporting
from stage2_student.run_folder import claim, publish_student, write_run
from stage2_student.samples import SAMPLES
from stage2_student.skeleton import shaped, without_memory
from stage2_student.stopping import Stop, leave
from stage2_student.students import build_student, count_parameters, count_trained, longest_window
from stage2_student.trainer import DistillationTrainer
from stage2_student.watch import METRICS, cut_back, validation_at

COMPILERS = ("g++", "clang++", "cl")


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
    with launched(on_gpu=on_gpu(config)) as ranks:
        with ranks.together():
            data = open_data(config)
            require_possible_size(config, data)
            set_seed(config.seed)
            student = build_student(config.student, *data.vocabulary)
            require_fit(student, data)
            total = total_steps(config, len(data.training), ranks.world)
            require_schedule(config, total)
        run = ranks.once(lambda: _claimed(config, data, student, ranks.world))
        if run["status"] == "finished":
            return run
        with reporting(config, ranks):
            return _train(config, data, student, total, ranks, run)


def _claimed(config: TrainConfig, data: Data, student: Any, ranks: int) -> dict[str, Any]:
    begun = bool(checkpoints(config.out / CHECKPOINTS))
    run = claim(config.out, provenance(config, data, student, ranks), begun=begun)
    if run["status"] == "finished":
        print(f"{config.out}: already finished, {run['steps']} steps; nothing to do", file=sys.stderr)
    return run


def _train(
    config: TrainConfig, data: Data, student: Any, total: int, ranks: Ranks, run: dict[str, Any]
) -> dict[str, Any]:
    stop = Stop(insistent=ranks.world == 1)
    try:
        trainer = make_trainer(config, data, student, ranks, stop)
        with (
            named_when_a_worker_dies(),
            stop.listening(),
        ):  # torch says so by a signal, anywhere in the training process
            run_to_end(trainer, config, total, ranks)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise too_big(config) from None
    if trainer.stopped_by and trainer.state.global_step < total and not trainer.scores.finished:
        leave(trainer.stopped_by, trainer.state.global_step, total, config.out)
    return ranks.once(lambda: finish(trainer, config, data, run))


def require_possible(config: TrainConfig) -> None:
    """Refuse what this machine or this release cannot do.

    Raises:
        UsageError: no GPU although one is asked for, half a launcher, no compiler, or a reporter that is not installed.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device", expected="a CUDA device", got="none that torch sees", do="set device to auto or cpu")
    world_size()
    if config.compile and not any(map(which, COMPILERS)):
        do = "install one, or set compile: false"
        raise UsageError("compile", expected=f"a C++ compiler ({', '.join(COMPILERS)})", got="none on PATH", do=do)
    for package in config.report_to:
        if find_spec(package) is None:
            do = f"pip install 'codestill[{package}]', or leave it out of report_to"
            raise UsageError("report_to", expected=f"the package {package}", got="not installed", do=do)


def require_possible_size(config: TrainConfig, data: Data) -> None:
    """Refuse a student that is too big before its weights take memory.

    Raises:
        UsageError: names the presets that fit.
    """
    longest = max(data.training.longest, data.validation.longest)
    free = free_bytes(torch.device("cuda" if on_gpu(config) else "cpu"))
    with without_memory():
        skeleton = shaped(config.student, *data.vocabulary)
    require_room(skeleton, config, longest, free)


def require_fit(student: Any, data: Data) -> None:
    """The student must have a position for every token it is fed; in its own tokens windows are cut instead (retokenize.py).

    Raises:
        UsageError: a cached window is longer.
    """
    room, longest = longest_window(student), max(data.training.longest, data.validation.longest)
    if data.own is None and room is not None and longest - 1 > room:  # the last token is only predicted
        raise UsageError(
            "student",
            expected=f"at least {longest - 1} positions, for the cache's longest window of {longest} tokens",
            got=str(room),
            do=f"capture with windows of at most {room + 1} tokens, or take a student with more positions",
        )


def require_schedule(config: TrainConfig, total: int) -> None:
    """A schedule must have room in the run.

    Raises:
        UsageError: warm-up and fall are longer than it.
    """
    taken = config.warmup + (config.decay or 0)
    if config.decay is not None and taken > total:
        got = f"warmup {config.warmup} + decay {config.decay}"
        raise UsageError("scheduler wsd", expected=f"at most the run's {total} steps", got=got, do="lower one of them")


def provenance(config: TrainConfig, data: Data, student: Any, ranks: int) -> dict[str, Any]:
    """What must be equal for a run to be continued, and what a reader of the student wants to know."""
    manifest = data.manifest
    return {
        "config": config.settings(),
        "ranks": ranks,
        "cache": {"id": manifest.cache_id, "windows": len(data.training)},
        "validation": {"from": data.validation_id, "windows": len(data.validation)},
        "teacher": manifest.teacher.model_dump(mode="json"),
        "corpus": manifest.identity.corpus,
        "tokenizer": data.vocabulary[1].model_dump(mode="json"),
        "parameters": count_parameters(student),
        "trained_parameters": count_trained(student),
    }


def total_steps(config: TrainConfig, windows: int, ranks: int = 1) -> int:
    """Optimizer steps of the whole run; the last step of an epoch may hold fewer batches."""
    if config.max_steps is not None:
        return config.max_steps
    assert config.epochs is not None
    return config.epochs * steps_an_epoch(config, windows, ranks)


def run_to_end(trainer: DistillationTrainer, config: TrainConfig, total: int, ranks: Ranks) -> None:
    """Train from the newest whole checkpoint, if there is one, to step `total` or as far as it goes; score the last step."""
    found = checkpoints(config.out / CHECKPOINTS)
    newest = found[-1] if found else None
    done = step_of(newest) if newest else 0
    for name in (METRICS, SAMPLES):
        ranks.once(partial(cut_back, config.out / name, done))
    trainer.scores.read(config.out / METRICS)
    if newest is not None and ranks.first:
        print(f"going on from step {done} of {total}", file=sys.stderr)
    if done < total and not trainer.scores.finished:
        trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    else:
        assert newest is not None
        trainer._load_from_checkpoint(str(newest))
        trainer.state = TrainerState.load_from_json(str(newest / "trainer_state.json"))
        trainer.state.is_world_process_zero = ranks.first
    if not trainer.stopped_by and trainer.scores.last_step != trainer.state.global_step:
        trainer.evaluate()


def too_big(config: TrainConfig) -> RunError:
    """What is said when memory ran out and fewer windows at once do not help."""
    from stage2_student.estimate import what_fits

    return RunError(
        "student",
        expected="room to train it, one window at a time",
        got="out of memory",
        do=f"set gradient_checkpointing or dtype: bfloat16, or take a smaller one: {what_fits(config)}",
    )


def finish(trainer: DistillationTrainer, config: TrainConfig, data: Data, run: dict[str, Any]) -> dict[str, Any]:
    """The student, the picture and run.json; then the checkpoints go, since nothing needs them any more."""
    best = trainer.scores.best_step
    if best is not None and best != trainer.state.global_step:
        trainer._load_from_checkpoint(str(config.out / CHECKPOINTS / f"checkpoint-{best}"))
    with trainer.published_weights():
        publish_student(trainer.model, config.out, data.training.cache.directory, data.manifest, data.own)
    draw_curves(config.out / METRICS, config.out / "curves.png", config.out.name)
    final = validation_at(config.out / METRICS, trainer.scores.best_step)
    libraries = {"torch": torch.__version__, "transformers": transformers.__version__}
    versions = {"python": platform.python_version(), **libraries}
    run = {**run, "status": "finished", "steps": trainer.state.global_step, "final": final, "versions": versions}
    atomic_write(config.out / CARD, card_text(run, config.out.name))
    write_run(config.out, run)
    shutil.rmtree(config.out / CHECKPOINTS)
    return run
