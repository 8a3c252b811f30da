"""The processes of one training run, as `torchrun` or `accelerate launch` start them: one a GPU, all on the same step.

What they have to agree on goes through here: sums, failures, who writes. The gradients are added up once an optimizer step,
after the last backward pass, so that a rank that ran out of memory can first tell the others, and the step be repeated.
Not for which windows a rank gets (steps.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from shared.errors import CodestillError, UsageError

Value = TypeVar("Value")
LAUNCHER_SAYS = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process's view: its number and how many there are. With one process nothing is sent.

    Attributes:
        rank: from 0.
        world: how many.
        words: the gloo group in which the CPUs talk; gradients go through the default group, NCCL's on GPUs.
    """

    rank: int = 0
    world: int = 1
    words: Any = None

    @property
    def first(self) -> bool:
        """Whether this process writes the run's files and speaks to the user."""
        return self.rank == 0

    def add(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks, in float64 on the CPU: no GPU has to finish for it."""
        return self._reduced(values, distributed.ReduceOp.SUM)

    def most(self, values: Sequence[float]) -> list[float]:
        """Each value's largest over all ranks."""
        return self._reduced(values, distributed.ReduceOp.MAX)

    def _reduced(self, values: Sequence[float], operation: Any) -> list[float]:
        if self.world == 1:
            return [float(value) for value in values]
        numbers = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(numbers, operation, group=self.words)
        return [float(value) for value in numbers]

    def wait(self) -> None:
        """Until every rank is here."""
        self.add([0.0])

    def gather(self, value: Value) -> list[Value]:
        """Every rank's value, on every rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value, group=self.words)
        return found

    def once(self, work: Callable[[], Value]) -> Value:
        """The first rank's result of `work`, on every rank; its failure is every rank's."""
        with self.together():
            result = work() if self.first else None
        return self.gather(result)[0]  # type: ignore[return-value]

    @contextmanager
    def together(self) -> Iterator[None]:
        """The body fails on every rank if it fails on one, so that none waits for a rank that has gone."""
        failure: CodestillError | None = None
        try:
            yield
        except CodestillError as error:
            failure = error
        self.raise_first(failure)

    def raise_first(self, failure: CodestillError | None) -> None:
        """Raise the failure of the lowest rank that has one, on every rank; only the first says it to the user.

        Raises:
            CodestillError: on the first rank.
            SystemExit: on the others, with the same exit code.
        """
        failures = self.gather(failure) if self.add([failure is not None])[0] else []
        for each in failures:
            if each is not None:
                raise each if self.first else SystemExit(each.exit_code)

    def sum_gradients(self, model: nn.Module) -> None:
        """Every parameter's gradient becomes the sum over ranks; a rank that had no window gives zeros."""
        if self.world == 1:
            return
        for parameter in trainable(model):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self._each(distributed.all_reduce, (parameter.grad for parameter in trainable(model)))

    def same_weights(self, model: nn.Module) -> None:
        """Every rank starts from the first one's weights."""
        if self.world > 1:
            tensors = (tensor.detach() for tensor in (*model.parameters(), *model.buffers()))
            self._each(lambda tensor, async_op: distributed.broadcast(tensor, 0, async_op=async_op), tensors)

    def _each(self, collective: Callable[..., Any], tensors: Iterable[Tensor | None]) -> None:
        """All under way at once, then all awaited."""
        works = [collective(tensor, async_op=True) for tensor in tensors]
        for work in works:
            work.wait()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """The parameters that learn, tied ones once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def world_size() -> int:
    """How many processes a launcher has started, from the environment.

    Raises:
        UsageError: it says so only half.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    missing = [name for name in LAUNCHER_SAYS if name not in os.environ]
    if world > 1 and missing:
        raise UsageError(
            "train",
            expected=f"{', '.join(LAUNCHER_SAYS)} beside WORLD_SIZE={world}",
            got=f"no {', '.join(missing)}",
            do="start it with torchrun or accelerate launch, or unset WORLD_SIZE",
        )
    return world


@contextmanager
def launched(*, on_gpu: bool) -> Iterator[Ranks]:
    """The ranks of this run; connected while the body runs, and disconnected in order after it."""
    if world_size() == 1:
        yield Ranks()
        return
    from accelerate import PartialState  # type: ignore[import-untyped]

    state = PartialState(cpu=not on_gpu)
    try:
        words = distributed.new_group(backend="gloo")
        yield Ranks(state.process_index, state.num_processes, words)
    finally:
        distributed.destroy_process_group()
