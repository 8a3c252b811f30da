"""eval/judge.py against programs that want a pass, the machine or the judge: our own list, and the shared one."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval.judge import judge
from eval.verdicts import Verdict
from shared.tasks import Task, load_tasks

linux = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc")

ADD = Task(
    "T/add",
    "def add(a, b):\n",
    "    return a + b\n",
    "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert abs(candidate(0.5, 0.25) - 0.75) < 1e-6\n",
    "add",
    "",
    "humaneval",
)


def judge_bodies(*bodies: str, **options: Any) -> list[Verdict]:
    samples = [{"task_id": "T/add", "completion": "\n".join("    " + line for line in b.splitlines())} for b in bodies]
    return list(judge(samples, [ADD], **{"jobs": 2, "cpu_seconds": 1, **options}))


def sections(text: str) -> dict[str, str]:
    """Programs by name: each stands under a line `### name`."""
    parts = (part.partition("\n") for part in text.strip().split("### ")[1:])
    return {name: body.strip("\n") for name, _, body in parts}


# Programs that make an ordinary harness say "passed". None gives one right answer more than it must.
FORGERIES = sections(r"""
### exit
import sys; sys.exit(0)
### exit at once
import os; os._exit(0)
### interrupt
raise KeyboardInterrupt
### generator exit
raise GeneratorExit
### equal to all
class T:
    def __eq__(s, o): return True
    def __sub__(s, o): return 0.0
    def __abs__(s): return s
    def __lt__(s, o): return True
return T()
### int equal to all
class T(int):
    def __eq__(s, o): return True
    def __sub__(s, o): return 0
return T(0)
### str equal to all
class T(str):
    def __eq__(s, o): return True
return T('x')
### list of liars
class T:
    def __eq__(s, o): return True
return [T(), T()]
### class that lies about its class
class T:
    __class__ = int
    def __eq__(s, o): return True
return T()
### metaclass
class M(type):
    def __eq__(s, o): return True
    __hash__ = type.__hash__
class T(metaclass=M): pass
return T
### patched builtins
import builtins
builtins.abs = lambda x: 0
builtins.AssertionError = SystemExit
return 3
### patched check
import sys
f = sys._getframe()
while f:
    f.f_globals['check'] = lambda c: None
    f = f.f_back
return 9
### trace
import sys
sys.settrace(lambda *a: None)
sys.setprofile(lambda *a: None)
return 9
### gc walk
import gc
for o in gc.get_objects():
    if type(o) is dict and 'passed' in o: o['passed'] = True
import os
os._exit(0)
### atexit
import atexit, os
atexit.register(os._exit, 0)
return 9
### signal
import signal, os
signal.signal(signal.SIGALRM, lambda *a: os._exit(0))
signal.setitimer(0, 0.001)
while True: pass
### forged lines
import os
for fd in range(64):
    try: os.write(fd, b'{"passed": true, "outcome": "passed"}\n')
    except OSError: pass
os._exit(0)
### forged answers
import os, struct
from itertools import count
body = b't\2\0\0\0s\5\0\0\0valuei\1\0\0\0\3'
for _ in range(99): os.write(3, struct.pack('<I', len(body)) + body)
return 9
### a frame that never ends
import os, struct
os.write(3, struct.pack('<I', 1 << 20))
import time
time.sleep(60)
### closed channel
import os
os.closerange(0, 99)
return 3
### stopped
import os, signal
os.kill(os.getpid(), signal.SIGSTOP)
### unpicklable name
class E(Exception): pass
E.__name__ = 'x' * 10**6
raise E('y' * 10**7)
### endless str
class E(Exception):
    def __str__(s):
        while True: pass
raise E
### error that tests expect
raise AssertionError
### deep value
x = []
for _ in range(10**5): x = [x]
return x
### huge value
return 'x' * (100 << 20)
### endless iterator
from itertools import count
return (i for i in count())
### many threads
import threading, time
try:
    while True: threading.Thread(target=time.sleep, args=(9,), daemon=True).start()
except BaseException: time.sleep(9)
### threads that outlive
import threading, os
threading.Thread(target=lambda: [1 for _ in iter(int, 1)], daemon=True).start()
return 9
### replaced modules
import sys
for m in list(sys.modules):
    if m != 'sys': sys.modules[m] = None
return 9
### no stdlib left
import sys
sys.stdout = sys.stderr = None
sys.modules.clear()
return 9
### recursion
import sys
sys.setrecursionlimit(10**9)
def g(): return [*map(lambda _: g(), [1])]
return g()
### memory of threads
import threading
hold = []
def g(): hold.append(bytearray(1 << 29))
ts = [threading.Thread(target=g) for _ in range(8)]
[t.start() for t in ts]; [t.join() for t in ts]
return a + b if len(hold) == 8 else None
### ignored timeout
import signal
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
while True: pass
### output
import os
for _ in range(3000): os.write(1, b'z' * 10**5)
return 9
### many files
for i in range(10**5):
    open(str(i), 'w').close()
return a + b
""")


def test_nothing_forged_passes_and_the_next_program_is_judged_right() -> None:
    honest = [f"return a + b  # {number}" for number in range(len(FORGERIES))]
    both = [body for pair in zip(FORGERIES.values(), honest, strict=True) for body in pair]
    verdicts = judge_bodies(*both)
    assert [name for name, verdict in zip(FORGERIES, verdicts[::2], strict=True) if verdict["passed"]] == []
    assert {verdict["verdict"] for verdict in verdicts[1::2]} == {"passed"}
    assert max(verdict["wall_s"] for verdict in verdicts[::2]) < 10
    assert max(len(json.dumps(verdict)) for verdict in verdicts) < 1500


def test_a_program_finds_no_test_and_no_reference_in_its_memory() -> None:
    body = """
import gc, sys
found = []
for o in gc.get_objects():
    if type(o) is dict:
        found += [v for v in list(o.values()) if type(v) is str and 'candid' + 'ate(1' in v]
frame = sys._getframe()
while frame:
    found += [v for v in frame.f_locals.values() if type(v) is str and 'candid' + 'ate(1' in v]
    frame = frame.f_back
return a + b if found else None
"""
    verdicts = judge_bodies("return a + b", body.strip(), jobs=1)
    assert [verdict["verdict"] for verdict in verdicts] == ["passed", "failed"]


@pytest.fixture
def bait(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the hostile programs look for: a secret in the environment, listeners on TCP and on an abstract socket."""
    monkeypatch.setenv("HOSTILE_CANARY_SECRET", "swordfish")
    with socket.socket(socket.AF_UNIX) as local, socket.socket() as tcp:
        local.bind("\0hostile_canary")
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind(("127.0.0.1", 47613))
        for listener in (local, tcp):
            listener.listen()
            threading.Thread(target=answer, args=(listener,), daemon=True).start()
        yield
        for listener in (local, tcp):
            listener.shutdown(socket.SHUT_RDWR)


def answer(listener: socket.socket) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        connection.sendall(b"canary")
        connection.close()


def markers_and_survivors() -> list[str]:
    found = [str(path) for folder in (Path.home(), Path("/tmp")) for path in folder.glob(".hostile_marker_*")]
    for process in Path("/proc").glob("[0-9]*/comm"):
        try:
            if process.read_text().startswith("hostile_surv"):
                found.append(str(process))
        except OSError:
            continue
    return found


def judge_hostile(shared_data: Path, **options: Any) -> None:
    tasks = load_tasks(shared_data / "humaneval.jsonl")
    reference = {task.task_id: task.reference for task in tasks}
    rows = [json.loads(line) for line in (shared_data / "hostile.jsonl").read_text().splitlines()]
    samples = []
    for number, row in enumerate(rows):
        honest = f"{reference[row['task_id']]}\n# {number}\n"
        samples += [{"task_id": row["task_id"], "completion": code} for code in (row["completion"], honest)]
    verdicts = list(judge(samples, tasks, **options))
    wrong = [
        row["name"] for row, v in zip(rows, verdicts[::2], strict=True) if v["passed"] or v["wall_s"] > row["max_s"]
    ]
    assert wrong == []
    assert [verdict for verdict in verdicts[1::2] if not verdict["passed"]] == []
    assert max(len(json.dumps(verdict)) for verdict in verdicts) < 1500


@linux
def test_every_hostile_program_gets_its_verdict_and_leaves_nothing(shared_data: Path, bait: None) -> None:
    judge_hostile(shared_data, cpu_seconds=1)
    time.sleep(0.5)
    assert markers_and_survivors() == []


@pytest.mark.slow
@linux
def test_nothing_hostile_shows_up_later_either(shared_data: Path, bait: None) -> None:
    judge_hostile(shared_data, cpu_seconds=3)
    time.sleep(7)
    assert markers_and_survivors() == []
