"""Whether a text is Python, by parsing it and nothing else: no code of it is compiled to run, imported or executed.

Not for judging what it does. The grammar is Python 3.11's on every interpreter (as far as `ast.parse` can tell versions
apart), so that machines with different ones drop the same documents. Hostile text ends in a reason: on Python 3.11 the worst
kinds of a million characters took 4 seconds and half a gigabyte.
"""

from __future__ import annotations

import ast
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache

GRAMMAR = (3, 11)
MOST_CHARACTERS = 1_000_000


def why_not_python(text: str) -> str | None:
    """None for a text that parses as Python; otherwise why not, in words."""
    if len(text) > MOST_CHARACTERS:
        return f"more than {MOST_CHARACTERS} characters"
    return _parser().submit(_why_not, text).result()


@cache
def _parser() -> ThreadPoolExecutor:
    """A thread of its own: how deep a text may nest depends on the depth of the calling stack, which must not decide."""
    return ThreadPoolExecutor(1, thread_name_prefix="syntax")


def _why_not(text: str) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like are warnings, and no reason
        try:
            ast.parse(text.removeprefix("\ufeff"), feature_version=GRAMMAR)
        except SyntaxError as error:
            return f"line {error.lineno}: {error.msg}"
        except (MemoryError, RecursionError):  # the parser's own stack, or the tree's depth
            return "nested too deeply"
        except (ValueError, OverflowError, SystemError) as error:  # null bytes; numbers too large; the parser's bugs
            return str(error)
    return None
