"""What a stranger's program says about itself without being run: whether it parses, its form, words, documentation.

Programs here come from models and strangers, so every function takes any text: too long, too deep and not Python alike give
None, never an exception. Not for running anything (the eval package's judge does, isolated).
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import tokenize
import warnings
from itertools import pairwise

MOST_CHARS = 200_000  # longer text is no answer
_WORD = re.compile(r"\w+|[^\w\s]")
_SHINGLE = 4  # words in a row that count as one


def parsed(code: str) -> ast.Module | None:
    """The module, or None where `code` is no Python or too deep to look at."""
    if len(code) > MOST_CHARS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in somebody else's text is not ours to warn about
            return ast.parse(code)
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError, SystemError):
        return None  # MemoryError is how CPython's parser says "too deeply nested"


def has_code(module: ast.Module) -> bool:
    """Whether anything is defined or done at all: a lone docstring or `pass` is no program."""
    return any(
        not isinstance(node, ast.Pass) and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in module.body
    )


def normal_form(code: str, *, rename: bool = True) -> str | None:
    """A hash that programs share which differ in layout, comments and docstrings alone; None where it does not parse.

    Args:
        rename: names of arguments and variables do not count either; those of functions, classes and attributes do.
    """
    module = parsed(code)
    if module is None:
        return None
    try:
        _drop_docstrings(module)
        if rename:
            _rename(module)
        return hashlib.sha256(ast.dump(module).encode(errors="surrogatepass")).hexdigest()[:32]
    except RecursionError:
        return None


def _drop_docstrings(module: ast.Module) -> None:
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and _docstring(node):
            node.body = node.body[1:] or [ast.Pass()]


def _docstring(node: ast.AST) -> bool:
    body = getattr(node, "body", None)
    first = body[0] if isinstance(body, list) and body else None
    return isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)


def _rename(module: ast.Module) -> None:
    """Arguments and variables become v0, v1, ... in the order in which they come up; walked without recursion."""
    bound = {node.arg for node in ast.walk(module) if isinstance(node, ast.arg)}
    bound |= {
        node.id for node in ast.walk(module) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del)
    }
    numbers: dict[str, str] = {}
    for node in ast.walk(module):
        if isinstance(node, ast.arg) and node.arg in bound:
            node.arg = numbers.setdefault(node.arg, f"v{len(numbers)}")
        elif isinstance(node, ast.Name) and node.id in bound:
            node.id = numbers.setdefault(node.id, f"v{len(numbers)}")


def public_names(module: ast.Module) -> set[str]:
    """Functions and classes at the top of a module that do not begin with an underscore."""
    return {
        node.name
        for node in module.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    }


def documentation(code: str) -> int:
    """0 to 2: one for a docstring, one for a comment."""
    module = parsed(code)
    docstring = module is not None and any(
        _docstring(node)
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )
    return int(docstring) + int(_has_comment(code))


def _has_comment(code: str) -> bool:
    try:
        return any(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError, ValueError, RecursionError):
        return False


def shingles(text: str) -> frozenset[tuple[str, ...]]:
    """Every four words or signs in a row; all words together where there are fewer."""
    words = _WORD.findall(text[:MOST_CHARS])
    rows = zip(*(words[start:] for start in range(_SHINGLE)), strict=False)
    return frozenset(rows) or frozenset({tuple(words)})


def similarity(one: frozenset[tuple[str, ...]], other: frozenset[tuple[str, ...]]) -> float:
    """Jaccard's: shared shingles by all shingles, 0 to 1."""
    return len(one & other) / len(one | other)


def body_of(code: str, name: str) -> str | None:
    """What completes the head of function `name`: its body after the docstring, then whatever else `code` defines.

    Helpers and imports go behind the function, where its calls find them. None where `code` has no such function.
    """
    module = parsed(code)
    if module is None:
        return None
    heads = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == name]
    if not heads or any(second.lineno <= (first.end_lineno or 0) for first, second in pairwise(module.body)):
        return None  # no such function, or two statements on one line
    head = heads[-1]
    lines = code.replace("\r\n", "\n").replace("\r", "\n").split("\n")  # as the parser counts them
    start = head.body[0].end_lineno if _docstring(head) else head.body[0].lineno - 1
    if start is None or start < head.lineno or (_docstring(head) and len(head.body) == 1):
        return None  # all on the line of its head, or nothing but a docstring
    others = [_lines(lines, node) for node in module.body if node is not head]
    return "\n\n\n".join(["\n".join(lines[start : head.end_lineno]).lstrip("\n"), *others]) + "\n"


def _lines(lines: list[str], node: ast.stmt) -> str:
    start = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
    return "\n".join(lines[start - 1 : node.end_lineno])
