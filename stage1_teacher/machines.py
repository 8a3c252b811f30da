"""One corpus, many processes, one command: fits the tail's shape once, captures every part as a job, merges.

Run again after a crash it goes on: finished parts are left alone, a merged cache is returned at once. A part that a signal or
a lost node ended is begun again and goes on behind its sealed shards; one that complains ends the rest, in order.
Work in progress lies beside the cache: CACHE-part-* and CACHE-machines (shape, logs); both are gone once the cache stands.
Not for where jobs run (shared/jobs.py, jobs_ray.py), what a part is (parts.py), nor joining parts of hand (cache/merge.py).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from cache.lock import only_one
from cache.manifest import MANIFEST, Manifest, read_manifest
from cache.merge import merge
from cache.writer import LOCK, PROGRESS_FOLDER, differences
from shared.errors import RunError, UsageError
from shared.jobs import Engine, Finished, Job, LocalEngine, visible_devices
from shared.jobs_ray import RayEngine
from shared.tokenizer import fingerprint, load_tokenizer
from stage1_teacher.ahead import Ahead, corpus_facts, look_ahead, window_facts
from stage1_teacher.config import CaptureConfig
from stage1_teacher.parts import MOST, Part, parts_beside, require_enough, work_beside
from stage1_teacher.shape_file import require_shape_file
from stage1_teacher.status import tokens_read

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ATTEMPTS = 3  # of a part that is killed
LOOK = 1.0  # seconds between two looks at the parts' progress
NO_SHAPE = "expected a tail with a shape"  # how `fit` refuses a teacher whose tail can have none


def open_engine(kind: str, address: str | None, config: CaptureConfig, parts: int | None) -> Engine:
    """Where the parts run: one process a GPU where the teacher may use one, else on the CPU.

    Raises:
        UsageError: no such engine, no Ray, or no cluster at `address`.
    """
    on_gpu = config.teacher.device_map != "cpu"
    if kind == "local" and address is None:
        devices = visible_devices() if on_gpu else []
        return LocalEngine(None if devices else parts, devices)
    if kind == "ray":
        return RayEngine(address, gpus=None if on_gpu else 0, retries=0)  # a lost node leaves its lock: see _Crew._run
    got = "--address, which is Ray's" if kind == "local" else kind
    raise UsageError(f"--engine {kind}", expected="local or ray", got=got, do="write --engine local, or --engine ray")


def capture_everywhere(
    config: CaptureConfig,
    arguments: Sequence[str],
    engine: Engine,
    *,
    parts: int | None = None,
    shape: Path | None = None,
    progress: bool = True,
) -> Manifest:
    """Capture the corpus in parts, as jobs of `engine`, into one cache, byte for byte the single capture's.

    Args:
        arguments: CONFIG and the overrides as they were typed, for the jobs' command lines.
        parts: how many; None goes on with those that are there, else takes as many as run at once.
        shape: the tail's shape as `fit` wrote it, taken instead of fitting it.
    Returns:
        the manifest; at once if the cache is already there (the teacher's weights are not looked at again).
    Raises:
        UsageError: config, corpus or number of parts are wrong, or another cache is there; a part's own one is passed on.
        RunError: a part failed, or was killed ATTEMPTS times.
    """
    require_shape_file(shape)
    tokenizer = load_tokenizer(config.teacher.model, config.teacher.revision)
    ahead = look_ahead(config, tokenizer)
    known = _known(config, tokenizer, ahead)
    crew = _Crew(config, tuple(arguments), engine, _split(config.cache, parts, engine.slots, ahead), progress)
    done = _finished(config.cache, known)
    if done is None:
        crew.work.mkdir(parents=True, exist_ok=True)
        with only_one(crew.work / PROGRESS_FOLDER / LOCK):
            missing = [part for part in crew.parts if _finished(part.directory(config.cache), known) is None]
            if missing:
                crew.capture(missing, shape or crew.fit(), None if ahead is None else ahead.tokens)
            done = merge([part.directory(config.cache) for part in crew.parts], config.cache, progress=progress)
    if crew.work.is_dir():
        for folder in (*parts_beside(config.cache), crew.work):
            shutil.rmtree(folder)
    return done


def on_own_device(config: CaptureConfig, environ: Mapping[str, str]) -> CaptureConfig:
    """The same config with the GPU that torchrun's LOCAL_RANK means, where the config leaves the device open.

    Raises:
        UsageError: this host has fewer GPUs than processes.
    """
    devices, local = len(visible_devices()), int(environ.get("LOCAL_RANK", "0"))
    if not devices or config.teacher.device_map != "auto":
        return config
    if local >= devices:
        do = f"use torchrun --nproc-per-node {devices}"
        raise UsageError(f"LOCAL_RANK {local}", expected="a GPU of its own", got=f"{devices} GPUs here", do=do)
    teacher = config.teacher.model_copy(update={"device_map": f"cuda:{local}"})
    return config.model_copy(update={"teacher": teacher})


def _split(cache: Path, parts: int | None, slots: int, ahead: Ahead | None) -> list[Part]:
    """The parts to capture; those of an interrupted run must be the same ones."""
    shards = len(ahead.shard_tokens) if ahead else None
    begun = {part.of for path in parts_beside(cache) if (part := Part.named_by(path))}
    of = parts or max(begun, default=slots if shards is None else min(slots, shards))
    if begun - {of}:
        other = min(begun - {of})
        do = f"go on with --parts {other}, or delete {cache}-part-*-of-{other:03d}"
        raise UsageError(f"--parts {of}", expected=f"the {other} parts that are there", got=f"{of}", do=do)
    require_enough(f"--parts {of}", of, MOST if shards is None else min(MOST, shards))
    return [Part(number, of) for number in range(1, of + 1)]


def _known(config: CaptureConfig, tokenizer: PreTrainedTokenizerBase, ahead: Ahead | None) -> dict[str, Any]:
    """What of an identity is known without the teacher."""
    return {
        "tokenizer": fingerprint(tokenizer).model_dump(mode="json"),
        "corpus": corpus_facts(config, ahead),
        "windows": window_facts(config.windows),
        "selection": config.selection.model_dump(mode="json"),
        "windows_per_shard": config.windows_per_shard,
    }


def _finished(directory: Path, known: dict[str, Any]) -> Manifest | None:
    """The manifest there, if its capture had ended.

    Raises:
        UsageError: it is another cache; names the first differing fact.
    """
    if not (directory / MANIFEST).is_file():
        return None
    manifest = read_manifest(directory)
    facts = manifest.identity.model_dump(mode="json")
    if rows := differences({name: facts[name] for name in known}, known):
        key, was, now = rows[0]
        do = "use the same settings, or another directory"
        raise UsageError(f"cache directory {directory}, {key}", expected=str(was), got=str(now), do=do)
    return manifest


@dataclass(frozen=True)
class _Crew:
    """The jobs of one capture."""

    config: CaptureConfig
    arguments: tuple[str, ...]
    engine: Engine
    parts: list[Part]
    progress: bool

    @property
    def work(self) -> Path:
        return work_beside(self.config.cache)

    def _job(self, name: str, verb: str, *options: str) -> Job:
        command = (sys.executable, "-m", "stage1_teacher", verb, *self.arguments, *options)
        return Job(name, command, self.work / "logs" / f"{name.replace('/', '-of-')}.log", Path.cwd())

    def fit(self) -> Path | None:
        """The tail's shape, fitted once for all parts; None where there can be none."""
        file = self.work / "shape.safetensors"
        if self.config.shape is None or file.is_file():
            return file if file.is_file() else None
        if self.progress:
            tqdm.write(f"fitting the tail's shape; all logs are in {self.work / 'logs'}", file=sys.stderr)
        try:
            self._run([self._job("fit", "fit", "--out", str(file))], lambda _: file.is_file(), lambda: None)
        except UsageError as error:
            if NO_SHAPE not in str(error):
                raise
            return None
        return file

    def capture(self, parts: Sequence[Part], shape: Path | None, tokens: int | None) -> None:
        """Capture `parts`; the bar counts the tokens of all."""
        options = () if shape is None else ("--shape", str(shape.resolve()))
        own = {f"part {part}": part.directory(self.config.cache) for part in parts}
        every = [part.directory(self.config.cache) for part in self.parts]
        jobs = [self._job(name, "capture", "--part", name.removeprefix("part "), *options) for name in own]
        with tqdm(total=tokens, unit="tok", unit_scale=True, desc="capture", disable=not self.progress) as bar:
            self._run(
                jobs,
                lambda name: (own[name] / MANIFEST).is_file(),
                lambda: bar.update(max(0, sum(map(tokens_read, every)) - bar.n)),
                lambda name: (own[name] / PROGRESS_FOLDER / LOCK).unlink(missing_ok=True),
            )

    def _run(
        self,
        jobs: Sequence[Job],
        is_there: Callable[[str], bool],
        look: Callable[[], object],
        tidy: Callable[[str], object] = lambda _: None,
    ) -> None:
        """Run `jobs` until what each should leave is there.

        Args:
            tidy: called before a job that was killed is begun again: its process, and maybe its host, are gone.
        """
        begun = {job.name: 1 for job in jobs}
        for job in jobs:
            self.engine.submit(job)
        left = len(jobs)
        while left:
            ended = self.engine.next_finished(LOOK)
            look()
            if ended is None:
                continue
            name = ended.job.name
            if ended.code == 0 and is_there(name):
                left -= 1
                continue
            _require_killed(ended, begun[name])
            tqdm.write(f"{name} was {_killed_by(ended.code)} and is begun again; log {ended.job.log}", file=sys.stderr)
            tidy(name)
            begun[name] += 1
            self.engine.submit(ended.job)


def _require_killed(ended: Finished, begun: int) -> None:
    """A part that was killed may be begun again, so many times; one that complains would complain again."""
    log = ended.job.log
    if ended.code > 0:
        kind = UsageError if ended.code == UsageError.exit_code else RunError
        raise kind(f"{ended.job.name}: {last_words(log)} (log {log})")
    if begun >= ATTEMPTS:
        got = f"{_killed_by(ended.code)} {begun} times"
        raise RunError(ended.job.name, expected="an end of its own", got=got, do=f"see {log}, and the host's memory")


def _killed_by(code: int) -> str:
    return f"killed by signal {-code}" if code else "stopped by SIGTERM"  # which a capture answers with 0


def last_words(log: Path) -> str:
    """The last line a job wrote, as a rule its one-line error."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").replace("\r", "\n").strip().splitlines()
    return lines[-1].removeprefix("error: ") if lines else "no word"
