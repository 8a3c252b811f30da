"""Building blocks of the embedded programming domain: what a family is, and the parameter values that families share.

A family is written once with `$` placeholders of one letter; the same placeholder reads as words in a docstring, as code in a
body and as a tag in a function name. NOT for choosing, rendering or splitting tasks: that is `shared.embedded`.

Placeholders: $a $b arguments; $x $y $k $i $r $t local names; every other letter is a parameter of the family.
In bodies a tab is one indentation step. `|` separates right alternatives.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Choice:
    """One value of a parameter. `words` and `code` hold alternatives that mean the same; `tag` goes into function names."""

    words: tuple[str, ...]
    code: tuple[str, ...]
    tag: str


@dataclass(frozen=True)
class Family:
    """Programs of one shape. A spec is a family and one `Choice` for each of `params`; everything else is surface."""

    name: str
    args: tuple[str, ...]  # kinds of the arguments, keys of ARGUMENTS
    returns: str
    params: dict[str, tuple[Choice, ...]]  # placeholder letter -> domain
    titles: tuple[str, ...]  # function names
    docs: tuple[str, ...]
    bodies: tuple[str, ...]  # several right solutions


def family(
    name: str, args: str, returns: str, params: dict[str, tuple[Choice, ...]], titles: str, docs: str, *bodies: str
) -> Family:
    """A Family from its compact spelling: `args` separated by spaces, `titles` and `docs` by `|`."""
    return Family(name, tuple(args.split()), returns, params, tuple(titles.split("|")), tuple(docs.split("|")), bodies)


# Kind of argument -> (annotation, names a programmer would give it).
ARGUMENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "ints": ("list[int]", ("nums", "numbers", "values", "items", "data")),
    "more": ("list[int]", ("others", "second", "weights", "ys")),
    "int": ("int", ("n", "number", "value", "num")),
    "natural": ("int", ("n", "number", "value", "num")),
    "digits": ("int", ("n", "number", "value", "num")),
    "small": ("int", ("k", "step", "amount", "m")),
    "text": ("str", ("text", "string", "line", "message")),
    "words": ("list[str]", ("words", "names", "strings", "labels")),
    "table": ("dict[str, int]", ("table", "scores", "counts", "prices", "stock")),
    "rows": ("list[list[int]]", ("rows", "grid", "matrix", "lists")),
}
LOCALS: dict[str, tuple[str, ...]] = {
    "x": ("x", "v", "e", "item"),
    "y": ("y", "w", "z", "other"),
    "k": ("key", "name", "q", "label"),
    "i": ("i", "j", "pos", "index"),
    "r": ("result", "out", "found", "res"),
    "t": ("total", "count", "acc", "answer"),
}


def collect(expr: str, cond: str = "", over: str = "$a") -> tuple[str, ...]:
    """Bodies that build a list: comprehension, named comprehension, loop, and filter or map with a lambda."""
    test = f" if {cond}" if cond else ""
    comprehension = f"[{expr} for $x in {over}{test}]"
    step = f"\tif {cond}:\n\t\t$r.append({expr})" if cond else f"\t$r.append({expr})"
    lazy = f"filter(lambda $x: {cond}, {over})" if cond else over
    lazy = lazy if expr == "$x" else f"map(lambda $x: {expr}, {lazy})"
    return (
        f"return {comprehension}",
        f"$r = {comprehension}\nreturn $r",
        f"$r = []\nfor $x in {over}:\n{step}\nreturn $r",
        f"return list({lazy})",
    )


def total(expr: str, cond: str = "", over: str = "$a") -> tuple[str, ...]:
    """Bodies that add up: sum of a generator, sum of a list, loop."""
    test = f" if {cond}" if cond else ""
    step = f"\tif {cond}:\n\t\t$t += {expr}" if cond else f"\t$t += {expr}"
    return (
        f"return sum({expr} for $x in {over}{test})",
        f"$r = [{expr} for $x in {over}{test}]\nreturn sum($r)",
        f"$t = 0\nfor $x in {over}:\n{step}\nreturn $t",
    )


def count(cond: str, over: str = "$a") -> tuple[str, ...]:
    """Bodies that count: sum of ones, length of a list, loop."""
    return (
        f"return sum(1 for $x in {over} if {cond})",
        f"return len([$x for $x in {over} if {cond}])",
        f"$t = 0\nfor $x in {over}:\n\tif {cond}:\n\t\t$t += 1\nreturn $t",
    )


def _choice(words: str, code: str, tag: str) -> Choice:
    return Choice(tuple(words.split("|")), tuple(code.split("|")), tag)


def _numbered(words: str, code: str, tag: str, values: Iterable[object]) -> tuple[Choice, ...]:
    """One Choice a value, `#` standing for it."""
    return tuple(_choice(words.replace("#", str(v)), code.replace("#", str(v)), tag) for v in values)


def constants(low: int, high: int) -> tuple[Choice, ...]:
    """The integers low..high as a domain."""
    return _numbered("#", "#", "", range(low, high + 1))


def _between() -> tuple[Choice, ...]:
    pairs = ((low, low + gap) for low in range(1, 10) for gap in (2, 3, 5, 8))
    return tuple(_choice(f"between {lo} and {hi}", f"{lo} <= $x <= {hi}", "between") for lo, hi in pairs)


# Every predicate and map speaks of $x.
INT_TESTS = (
    *_numbered("greater than #|above #|larger than #", "$x > #", "above", range(1, 21)),
    *_numbered("less than #|below #|smaller than #", "$x < #", "below", range(1, 21)),
    *_numbered("at least #|no less than #", "$x >= #", "at_least", range(1, 21)),
    *_numbered("at most #|no more than #", "$x <= #", "at_most", range(1, 21)),
    *_numbered("divisible by #", "$x % # == 0|not $x % #", "divisible", range(3, 10)),
    *_numbered("not divisible by #", "$x % # != 0", "indivisible", range(3, 10)),
    *_numbered("different from #|not equal to #", "$x != #", "different", range(1, 21)),
    *_between(),
    _choice("even", "$x % 2 == 0|not $x % 2", "even"),
    _choice("odd", "$x % 2 == 1|$x % 2 != 0", "odd"),
    _choice("positive", "$x > 0", "positive"),
    _choice("negative", "$x < 0", "negative"),
)
DIGIT_TESTS = (
    *_numbered("greater than #|above #|larger than #", "$x > #", "above", range(1, 9)),
    *_numbered("less than #|below #|smaller than #", "$x < #", "below", range(2, 10)),
    *_numbered("different from #|not equal to #", "$x != #", "different", range(1, 10)),
    *_numbered("divisible by #", "$x % # == 0|not $x % #", "divisible", range(3, 6)),
    _choice("even", "$x % 2 == 0|not $x % 2", "even"),
    _choice("odd", "$x % 2 == 1|$x % 2 != 0", "odd"),
)
INT_MAPS = (
    *_numbered("increased by #|plus #", "$x + #", "plus", range(1, 13)),
    *_numbered("decreased by #|minus #", "$x - #", "minus", range(1, 13)),
    *_numbered("multiplied by #|times #", "$x * #|# * $x", "times", range(2, 13)),
    *_numbered("divided by # and rounded down", "$x // #", "divided", range(2, 10)),
    *_numbered("taken modulo #", "$x % #", "modulo", range(3, 10)),
    *_numbered("subtracted from #", "# - $x", "from", range(2, 13)),
    _choice("squared", "$x * $x|$x ** 2", "squared"),
    _choice("cubed", "$x ** 3|$x * $x * $x", "cubed"),
    _choice("negated", "-$x", "negated"),
    _choice("made absolute", "abs($x)", "absolute"),
)
WORD_TESTS = (
    *_numbered("longer than # characters", "len($x) > #", "long", range(2, 9)),
    *_numbered("shorter than # characters", "len($x) < #", "short", range(3, 9)),
    *_numbered("exactly # characters long", "len($x) == #", "sized", range(2, 9)),
    *_numbered("starting with '#'", "$x.startswith('#')|$x[:1] == '#'", "starting", "abcdefglmoprst"),
    *_numbered("ending with '#'", "$x.endswith('#')|$x[-1:] == '#'", "ending", "adehklnorsty"),
    *_numbered("containing '#'", "'#' in $x", "containing", "abcdeilnoprstu"),
    *_numbered("without '#'", "'#' not in $x", "without", "abcdeilnoprstu"),
)
WORD_MAPS = (
    *_numbered("cut to its first # characters", "$x[:#]", "cut", range(1, 7)),
    *_numbered("without its first # characters", "$x[#:]", "trimmed", range(1, 6)),
    *_numbered("cut to its last # characters", "$x[-#:]", "tail", range(1, 6)),
    *_numbered("repeated # times", "$x * #", "repeated", range(2, 7)),
    *_numbered("followed by '#'", "$x + '#'", "followed", "abcxyz!?-"),
    *_numbered("preceded by '#'", "'#' + $x", "preceded", "abcxyz!?-"),
    _choice("in upper case", "$x.upper()", "upper"),
    _choice("capitalized", "$x.capitalize()", "capitalized"),
    _choice("reversed", "$x[::-1]", "reversed"),
)
LETTERS = _numbered("'#'", "'#'", "", "abcdeilnoprstu")
MARKS = _numbered("'#'", "'#'", "", "-*_#.+")
CHAR_SETS = _numbered(
    "'#'",
    "'#'",
    "",
    (
        "aeiou",
        "abc",
        "xyz",
        "ae",
        "lmn",
        "rst",
        "no",
        "aio",
        "pqr",
        "stu",
        "de",
        "el",
        "aeo",
        "bcd",
        "est",
        "lr",
        "ou",
        "nrt",
        "ape",
        "ion",
        "gh",
        "dst",
        "ry",
        "mno",
        "ilo",
    ),
)
SEPARATORS = tuple(
    _choice(name, f"'{mark}'", name)
    for name, mark in (
        ("comma", ","),
        ("dash", "-"),
        ("colon", ":"),
        ("slash", "/"),
        ("dot", "."),
        ("plus", "+"),
        ("star", "*"),
        ("semicolon", ";"),
    )
)
CASES = (
    _choice("in upper case", ".upper()", "upper"),
    _choice("in lower case", ".lower()", "lower"),
    _choice("with its case swapped", ".swapcase()", "swapped"),
    _choice("in title case", ".title()", "title"),
)
OPERATORS = (
    _choice("sum", "$x + $y", "sum"),
    _choice("difference", "$x - $y", "difference"),
    _choice("product", "$x * $y", "product"),
    _choice("maximum", "max($x, $y)", "maximum"),
    _choice("minimum", "min($x, $y)", "minimum"),
)
RANKS = (_choice("largest", "True", "largest"), _choice("smallest", "False", "smallest"))
ENDS = (_choice("largest", "max", "largest"), _choice("smallest", "min", "smallest"))
