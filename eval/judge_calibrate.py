"""How much time and reach a task needs, learned from its own reference solution and only where that can matter.

NOT for deciding a sample: that is the official test text. A program that passes needs no second look. The first one of a
task that does not pass makes the reference run through the same sandbox, once: if the reference is slow, the CPU limit
of the task becomes several times its time; if it cannot pass with plain values, the reach of the task grows until it does.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace

from eval.judge_plan import REACHES, Plan
from eval.judge_pool import Answer, Server
from shared.tasks import Task

REFERENCE_FACTOR = 5  # a sample may use this many times the reference's CPU time
REFERENCE_CPU_SECONDS = 60  # a reference slower than this is not waited for
_MARKS = {
    "values": "",
    "objects": "[objects of the solution's own classes stayed in the sandbox]",
    "operators": "[the solution's own operators decided]",
}


@dataclass(frozen=True)
class Limits:
    """What one program may use."""

    cpu_seconds: float
    memory_bytes: int


@dataclass(frozen=True)
class _Setting:
    """How the samples of a task are judged; `learned`: from the reference, and so final."""

    reach: str
    cpu_seconds: int
    learned: bool = False
    broken: str = ""  # how the reference itself fails, where it does


class Calibration:
    """The settings of all tasks; shared by the pool's threads."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._default = _Setting(REACHES[0], math.ceil(limits.cpu_seconds))
        self._settings: dict[str, _Setting] = {}
        self._locks: dict[str, threading.Lock] = {}

    def judge(self, server: Server, task: Task, plan: Plan, program: str) -> Answer:
        """The verdict on one program, with the limits its task needs."""
        used = self._settings.get(task.task_id, self._default)
        answer = self._ask(server, plan, program, used)
        if answer["verdict"] != "passed" and not used.learned:
            learned = self._learn(server, task, plan)
            longer = answer["verdict"] == "timeout" and learned.cpu_seconds > used.cpu_seconds
            if longer or learned.reach != used.reach:
                answer = self._ask(server, plan, program, learned)
            used = learned
        return _marked(answer, used)

    def _learn(self, server: Server, task: Task, plan: Plan) -> _Setting:
        with self._locks.setdefault(task.task_id, threading.Lock()):
            if task.task_id not in self._settings:
                self._settings[task.task_id] = self._measure(server, task, plan)
            return self._settings[task.task_id]

    def _measure(self, server: Server, task: Task, plan: Plan) -> _Setting:
        broken = ""
        for reach in REACHES:
            setting = replace(
                self._default, reach=reach, cpu_seconds=max(REFERENCE_CPU_SECONDS, self._default.cpu_seconds)
            )
            answer = self._ask(server, plan, task.program(task.reference), setting)
            if answer["verdict"] == "passed":
                needed = math.ceil(REFERENCE_FACTOR * answer["cpu_s"])
                return _Setting(reach, max(needed, self._default.cpu_seconds), learned=True)
            broken = broken or f"{answer['verdict']}: {answer['detail']}"
            if answer["verdict"] == "timeout":
                break
        return replace(self._default, learned=True, broken=broken)

    def _ask(self, server: Server, plan: Plan, program: str, setting: _Setting) -> Answer:
        return server.ask(
            plan.request(
                program,
                reach=setting.reach,
                cpu_seconds=setting.cpu_seconds,
                memory_bytes=self._limits.memory_bytes,
            )
        )


def _marked(answer: Answer, used: _Setting) -> Answer:
    broken = f"[the reference solution fails too: {used.broken}]" if used.broken else ""
    detail = " ".join(part for part in (answer["detail"], _MARKS[used.reach], broken) if part)
    return {**answer, "detail": detail}
