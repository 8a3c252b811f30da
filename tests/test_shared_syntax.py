"""The syntax filter: what is Python 3.11, what is not, and that hostile text ends in a reason."""

from __future__ import annotations

import asyncio
import threading
import warnings
from pathlib import Path

import pytest

from shared.syntax import MOST_CHARACTERS, why_not_python

LONG = 30_000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x = 1\n",
        "\ufeffx = 1\n",
        "x = 1\r\nif x:\r\n\ty = 2\r\n",
        "# -*- coding: latin-1 -*-\ngröße = 'ä'\n",
        "match x:\n    case [1, *_]:\n        pass\n",
        "try:\n    pass\nexcept* ValueError:\n    pass\n",
        '"""Task.\nassert f(1) == 1\n"""\ndef f(x):\n    return x\n',
        "return 1\n",  # grammar alone: what the compiler says later does not matter
        "raise SystemExit(open('never', 'w'))\n",
    ],
)
def test_python(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert why_not_python(text) is None
    assert not list(tmp_path.iterdir())  # nothing of it ran


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x = 1\nprint x\n", "line 2: Missing parentheses in call to 'print'"),
        ("def f(:\n", "line 1: "),
        ("\tx\n y\n", "line 1: unexpected indent"),
        ("type X = int\n", "line 1: "),  # Python 3.12
        ("public class A { int a; }\n", "line 1: "),
        ("The quick brown fox.\n", "line 1: "),
        ("x = '\ud800'", "'utf-8' codec can't encode"),
        ("x = 1\0", "null bytes"),
        ("(" * LONG, "line 1: too many nested parentheses"),
        ("-" * LONG + "1", "nested too deeply"),
        ("not " * LONG + "1", "nested too deeply"),
        ("1 if 1 else " * LONG + "1", "nested too deeply"),
        ("lambda:" * LONG + "1", "nested too deeply"),
        ("x = 1" + "+1" * LONG, "nested too deeply"),
        ("a" + ".a" * LONG, "nested too deeply"),
        ("if 1:\n pass\n" + "elif 1:\n pass\n" * LONG, "nested too deeply"),
        ("".join(" " * depth + "if 1:\n" for depth in range(120)), "too many levels of indentation"),
        ("9" * LONG, "line 1: Exceeds the limit"),
        ("{[(" * 60 + "!", "line 1: "),
        ("f'{" * 100, "line 1: "),
        ("x" * (MOST_CHARACTERS + 1), f"more than {MOST_CHARACTERS} characters"),
    ],
    ids=lambda value: value[:20],
)
def test_not_python(text: str, why: str) -> None:
    found = why_not_python(text)
    assert found is not None and why in found


def test_warnings_are_no_reason_and_are_not_heard() -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        assert why_not_python("x = '\\d'\nassert (1, 'a')\ny = 1 is 1\n") is None
    assert not heard


def test_the_verdict_does_not_depend_on_the_caller_s_stack() -> None:
    """The interpreter's own limit starts at the caller's depth: a text near it would pass in one place and not in another."""

    def deep(levels: int, text: str) -> str | None:
        return why_not_python(text) if levels == 0 else deep(levels - 1, text)

    low, high = 100, LONG  # chains of additions that pass, that fail
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if why_not_python("1" + "+1" * middle) is None else (low, middle)
    assert 500 < low < LONG - 1
    assert [deep(300, "1" + "+1" * length) for length in (low, high)] == [None, "nested too deeply"]
    elsewhere: list[str | None] = []
    thread = threading.Thread(target=lambda: elsewhere.append(deep(100, "1" + "+1" * low)))
    thread.start()
    thread.join()
    assert elsewhere == [None]


def test_the_standard_library_is_python() -> None:
    for path in sorted(Path(asyncio.__file__).parent.glob("*.py"))[:12]:
        assert why_not_python(path.read_text(encoding="utf-8")) is None
