"""The errors a user sees: one line that says what, expected, got and what to do.

For everything that comes from outside (a call, a config, a file, a disk). Not for our own mistakes: those are asserts.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` without what could command a terminal: names of files and manifests are often somebody else's."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class CodestillError(Exception):
    """Base of every error that a command prints as one line.

    Args:
        what: the thing that is wrong, by name (a file, a config key, a column).
        expected: what would have been right.
        got: what was found instead.
        do: the way out, as an instruction.
    """

    exit_code = 1

    def __init__(self, what: str, *, expected: str = "", got: str = "", do: str = "") -> None:
        self.what, self.expected, self.got, self.do = what, expected, got, do
        super().__init__(self.__str__())

    def __str__(self) -> str:
        facts = ", ".join(
            f"{name} {value}" for name, value in (("expected", self.expected), ("got", self.got)) if value
        )
        sentence = f"{self.what}: {facts}" if facts else self.what
        line = f"{sentence}; {self.do}" if self.do else sentence
        return printable(" ".join(line.split()))  # one line, whatever a file name or a library's message held

    def __reduce__(self) -> tuple[object, ...]:
        """Survive the trip out of a DataLoader worker: keyword arguments are lost by the default pickling."""
        return _rebuild, (type(self), self.what, self.expected, self.got, self.do)


def _rebuild(kind: type[CodestillError], what: str, expected: str, got: str, do: str) -> CodestillError:
    return kind(what, expected=expected, got=got, do=do)


class UsageError(CodestillError):
    """The call, a config or an input is wrong; nothing was started. Exit code 2."""

    exit_code = 2


class RunError(CodestillError):
    """A check failed or a run could not go on (damaged cache, full disk). Exit code 1."""

    exit_code = 1
