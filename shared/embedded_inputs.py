"""Random arguments for the programs of the embedded domain: examples in docstrings and inputs of tests.

Values gather around the constants of the program, where a wrong constant shows. NOT for choosing which inputs make a test
(`shared.embedded` does, by trying wrong programs).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

_WORDS = (
    "apple", "banana", "cherry", "lemon", "melon", "olive", "peach", "plum",
    "grape", "fig", "kiwi", "pear", "table", "chair", "lamp", "door",
    "window", "river", "stone", "cloud", "forest", "mountain", "bird", "cat",
    "dog", "horse", "tiger", "lion", "mouse", "snake", "paper", "pencil",
    "book", "letter", "music", "piano", "guitar", "drum", "north", "south",
    "east", "west",
)  # fmt: skip


def draw_argument(kind: str, body: str, rng: Random, *, short: bool) -> Any:
    """A value of an argument kind (`shared.embedded_parts.ARGUMENTS`) for a program with this body.

    `short` keeps it fit for a docstring; otherwise it may be empty, long or repetitive.
    """
    return _DRAW[kind](_Source(body, rng, short))


class _Source:
    """Draws values near the constants of one program."""

    def __init__(self, body: str, rng: Random, short: bool) -> None:
        self.rng, self.short = rng, short
        self.numbers = [int(number) for number in re.findall(r"\b\d+\b", body)] or [5]
        self.letters = "".join(re.findall(r"'([^' ]+)'", body)) or "a"

    def size(self) -> int:
        return self.rng.randint(2, 4) if self.short else self.rng.choice((0, 1, 3, 5, 8, min(24, max(0, self.near()))))

    def integer(self) -> int:
        return self.rng.choice((self.near(), self.near(), self.rng.randint(-9, 30), self.rng.randint(0, 12)))

    def near(self) -> int:
        return self.rng.choice(self.numbers) + self.rng.randint(-1, 1)

    def natural(self) -> int:
        """Positive; often a product of the constants, so that divisibility shows."""
        power = self.rng.choice(self.numbers) ** self.rng.randint(1, 3)
        return max(
            1,
            self.rng.choice(
                (self.rng.randint(1, 30), power, power * self.rng.randint(1, 9), self.rng.randint(1, 99999))
            ),
        )

    def small_natural(self) -> int:
        return (
            self.rng.randint(1, 12) if self.short else max(1, self.rng.choice((self.near(), self.rng.randint(1, 40))))
        )

    def integers(self) -> list[int]:
        """Mixed, or all close to one constant: `all` and `take_while` show nothing on mixed lists."""
        if self.rng.random() < 0.7:
            return [self.integer() for _ in range(self.size())]
        constant, side = self.rng.choice(self.numbers), self.rng.choice((-1, 1))
        return [constant + side * self.rng.randint(0, 2) for _ in range(self.size())]

    def word(self) -> str:
        word = self.rng.choice(_WORDS)
        if self.short or self.rng.random() < 0.5:
            return word
        at = self.rng.randint(0, len(word))
        spliced = word[:at] + self.rng.choice(self.letters) + word[at:]
        return self.rng.choice(
            (spliced, spliced.title(), word[: self.rng.randint(1, 4)], word * 2, self.rng.choice(self.letters) + word)
        )

    def words(self) -> list[str]:
        drawn = [self.word() for _ in range(self.size())]
        repeat = not self.short and drawn and self.rng.random() < 0.5
        return [self.rng.choice(drawn[:4]) for _ in range(9)] if repeat else drawn

    def text(self) -> str:
        glue = self.rng.choice((" ", " ", self.rng.choice(self.letters), ", "))
        words = [self.word() for _ in range(self.rng.randint(1, 3) if self.short else self.size())]
        text = (" " if self.short else glue).join(words)
        return text if self.short or self.rng.random() < 0.7 else text[: max(0, self.near())]

    def table(self) -> dict[str, int]:
        return {self.word(): self.integer() for _ in range(self.size())}

    def rows(self) -> list[list[int]]:
        return [self.integers() for _ in range(2 if self.short else self.size() // 2)]


_DRAW: dict[str, Callable[[_Source], Any]] = {
    "ints": _Source.integers,
    "more": _Source.integers,
    "int": _Source.integer,
    "natural": _Source.small_natural,
    "digits": _Source.natural,
    "small": lambda source: source.rng.randint(0, 3),
    "text": _Source.text,
    "words": _Source.words,
    "table": _Source.table,
    "rows": _Source.rows,
}
