"""The untrusted side: a bare process that forks one confined child, the cell, for every judged program.

NOT for verdicts: the cell only loads a program and answers calls; eval/sandbox_tester.py decides, in another process.
The zygote below is forked before any task was read and never reads one: the cell itself takes the program from its
pipe, so its memory holds no test, no reference and no other model's answer. What a cell starts dies with it.
"""

from __future__ import annotations

import gc
import json
import operator
import os
import random
import signal
import socket
import sys
import tempfile
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from eval.sandbox_confine import Confinement, become_reaper, fences, limit, own_root, raise_fence, wipe
from eval.sandbox_wire import WireError, decode, encode, read_frame, write_frame

CHANNEL = 3  # the descriptor of the cell's pipe to the tester; 0, 1 and 2 are /dev/null
MESSAGE_CHARS = 400
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    **{
        name: getattr(operator, name)
        for name in ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "truediv", "getitem", "contains", "truth")
    },
    "len": len,
    "str": str,
    "repr": repr,
    "abs": abs,
    "list": list,
    "hash": hash,
}


# ---- the zygote


def run_zygote(control: socket.socket, folder: Path) -> NoReturn:
    """Confine this process, tell `control` how, then fork a cell for every request until `control` closes.

    Args:
        control: a SEQPACKET pair with eval/sandbox_server.py; a request carries the cell's end of the pipe.
        folder: an empty folder of ours; the program's private one, or the root of its private world.
    """
    granted = fences(folder)
    if granted >= 1:
        raise_fence()
    become_reaper()
    clock = _open_proc()
    if granted == 2:
        own_root(folder)
    writable = Path("/tmp") if granted == 2 else folder
    os.chdir(writable)
    tempfile.tempdir = str(writable)
    _silence()
    confinement = Confinement(writable)
    confinement.close_files()
    parts = ["namespaces", "private root"][:granted] + confinement.parts
    control.send(json.dumps({"parts": parts, "missing": confinement.missing, "private_root": granted == 2}).encode())
    gc.collect()
    gc.freeze()
    while True:
        raw, channels, _, _ = socket.recv_fds(control, 4096, 1)
        if not raw:
            os._exit(0)
        report = _one_cell(json.loads(raw), channels[0], control, confinement, clock, fenced=granted >= 1)
        wipe(writable)
        try:
            control.send(json.dumps(report).encode())
        except ConnectionError:
            os._exit(0)  # the server is gone


def _one_cell(
    request: dict[str, Any],
    channel: int,
    control: socket.socket,
    confinement: Confinement,
    clock: int,
    *,
    fenced: bool,
) -> dict[str, float]:
    """Fork a cell, let it live until the server says so; its exit status and CPU seconds."""
    pid = os.fork()
    if pid == 0:
        _become_cell(request, channel, control, confinement, clock)
    os.close(channel)
    control.recv(64)  # the server is done with this sample, or gone
    _kill(pid, everything=fenced)
    _, status, usage = os.wait4(pid, 0)
    _reap_orphans(everything=fenced)
    return {"status": os.waitstatus_to_exitcode(status), "cpu": usage.ru_utime + usage.ru_stime}


def _kill(pid: int, *, everything: bool) -> None:
    for kill, target in ((os.kill, pid), (os.killpg, pid)):
        try:
            kill(target, signal.SIGKILL)
        except ProcessLookupError:
            continue
        except PermissionError:  # macOS: a group of zombies
            continue
    if everything:
        try:
            os.kill(-1, signal.SIGKILL)  # process 1 of its own world: all but itself
        except ProcessLookupError:
            return


def _reap_orphans(*, everything: bool) -> None:
    """What a cell started where seccomp could not forbid it came to us; kill and reap until nothing is left."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            for orphan in _children():
                _kill(orphan, everything=everything)
            time.sleep(0.005)


def _children() -> list[int]:
    try:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    except OSError:
        return []
    return [int(word) for word in listed.split()]


def _open_proc() -> int:
    """A handle on /proc of the world outside, by which a cell learns its process id there; -1 where there is none."""
    try:
        return os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return -1


def _outer_pid(clock: int) -> int:
    try:
        return int(os.readlink("self", dir_fd=clock)) if clock >= 0 else os.getpid()
    except (OSError, ValueError):
        return os.getpid()


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)


# ---- the cell


def _become_cell(
    request: dict[str, Any], channel: int, control: socket.socket, confinement: Confinement, clock: int
) -> NoReturn:
    """In the new child: nothing but the channel stays open, limits on, system calls off; then serve the program."""
    try:
        os.setsid()
        control.send(b"%d" % _outer_pid(clock))
        os.dup2(channel, CHANNEL)
        os.closerange(CHANNEL + 1, 1024)
        os.environ.clear()
        limit(request["cpu_seconds"], request["memory_bytes"])
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        confinement.close_calls()
        for name in [name for name in sys.modules if name == "eval" or name.startswith("eval.")]:
            del sys.modules[name]
        _serve()
    finally:
        os._exit(0)


def _serve() -> None:
    """Load the program in the first frame, then answer calls until the tester hangs up."""
    random.seed(0)  # a program that draws numbers draws the same ones every time
    objects: list[Any] = []
    module = types.ModuleType("solution")
    sys.modules["solution"] = sys.modules["__main__"] = module

    def handle_of(value: Any) -> str:
        objects.append(value)
        return f"o:{len(objects) - 1}:{type(value).__name__[:60]}"

    def object_of(handle: str) -> Any:
        kind, _, name = handle.partition(":")
        return objects[int(name.partition(":")[0])] if kind == "o" else _global(module, name)

    source = read_frame(CHANNEL)
    if source is not None:
        write_frame(CHANNEL, _load(decode(source, object_of), module))
    while (request := read_frame(CHANNEL)) is not None:
        write_frame(CHANNEL, _answer(request, handle_of, object_of))


def _global(module: types.ModuleType, name: str) -> Any:
    if name not in vars(module):
        raise NameError(f"the program defines no '{name}'")
    return vars(module)[name]


def _load(source: str, module: types.ModuleType) -> bytes:
    try:
        code = compile(source, "solution.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, OverflowError, RecursionError) as error:
        return _report("syntax", error)
    except BaseException as error:  # noqa: BLE001  (a compiler out of memory is this program's doing)
        return _report("raise", error)
    try:
        exec(code, vars(module))
    except BaseException as error:  # noqa: BLE001  (whatever it raises is its result)
        return _report("raise", error)
    return _report("value", None)


def _answer(request: bytes, handle_of: Callable[[Any], str], object_of: Callable[[str], Any]) -> bytes:
    try:
        operation, args, kwargs = decode(request, object_of)
        result = OPERATIONS[operation](*args, **kwargs)
        return encode(("value", result), handle_of)
    except BaseException as error:  # noqa: BLE001  (whatever it raises is its result)
        return _report("raise", error)


def _report(how: str, value: Any) -> bytes:
    """An outcome as bytes. Text of an exception is its own code running: inside the limits, and cut short."""
    if not isinstance(value, BaseException):
        return encode((how, value), str)
    try:
        message = str(value)[:MESSAGE_CHARS]
    except BaseException as error:  # noqa: BLE001  (its text is broken too)
        message = f"(no text: {type(error).__name__})"
    number = value.errno if isinstance(value, OSError) and type(value.errno) is int else 0
    if isinstance(value, WireError):
        how, message = "unplain", str(value)
    try:
        return encode((how, type(value).__name__[:60], message, number), str)
    except WireError:
        return encode((how, "Exception", "", 0), str)
