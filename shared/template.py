"""Turn a row of a dataset into text: `{column}`, `{column[0]}`, `{column[key]}` and nothing else.

A str.Formatter without its powers: no attribute access (a template from a stranger's config must not reach into
objects), no conversions, no format specs. Literal braces are doubled. Not for chat templates.
"""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shared.errors import UsageError

_FIELD = re.compile(r"([^\[\]{}.!:]+)((?:\[[^\[\]{}]+\])*)")
_INDEX = re.compile(r"\[([^\[\]]+)\]")


class _Strict(string.Formatter):
    """Looks names up in a row; what it does with a missing one is the caller's sentence."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        match = _FIELD.fullmatch(field_name)
        assert match is not None, "a template is checked when it is made"
        value = kwargs[match[1]]
        for index in _INDEX.findall(match[2]):
            value = value[int(index)] if isinstance(value, list) else value[index]
        return value, match[1]


class Template:
    """A checked template.

    Args:
        text: the template; columns in braces.
        key: the config key it comes from; errors name it.
    Raises:
        UsageError: attribute access, a conversion, a format spec, an empty field, or unbalanced braces.
    """

    def __init__(self, text: str, key: str) -> None:
        self.text, self.key = text, key
        try:
            fields = [part[1:] for part in string.Formatter().parse(text) if part[1] is not None]
        except ValueError as error:
            raise self._refusal(text, str(error)) from None
        for name, spec, conversion in fields:
            if spec or conversion or not _FIELD.fullmatch(name or ""):
                raise self._refusal(f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}")
        self.columns = tuple(dict.fromkeys(re.split(r"\[", name or "")[0] for name, _, _ in fields))

    def _refusal(self, got: str, why: str = "") -> UsageError:
        return UsageError(
            f"{self.key}: template",
            expected="fields like {column} or {column[0]}",
            got=f"{got} ({why})" if why else got,
            do="write the column's name alone; double a brace that is meant literally",
        )

    def render(self, row: Mapping[str, Any], place: str) -> str:
        """The text for one row; every field must be a string or a number.

        Args:
            row: column name -> value.
            place: what an error calls the row, e.g. "mbpp.jsonl line 3".
        Raises:
            UsageError: a column is missing, an index does not exist, a value is no text.
        """
        for column in self.columns:
            require_column(row, column, place=place, key=self.key)
        try:
            return _Rendering(place, self.key).vformat(self.text, (), row)
        except (LookupError, TypeError, ValueError) as error:
            raise UsageError(
                place,
                expected=f"what {self.key} asks for",
                got=f"{type(error).__name__}: {error}",
                do="correct it",
            ) from None


class _Rendering(_Strict):
    def __init__(self, place: str, key: str) -> None:
        self.place, self.key = place, key

    def format_field(self, value: Any, format_spec: str) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise not_text(value, place=self.place, what=f"a text or number for {self.key}", key=self.key)
        return str(value)


def not_text(value: Any, *, place: str, what: str, key: str) -> UsageError:
    """The error for a value that should have been text."""
    kind = "null" if value is None else f"a {type(value).__name__}"
    return UsageError(place, expected=what, got=kind, do=f"repair the row or point {key} at another column")


def require_column(columns: Iterable[str], column: str, *, place: str, key: str) -> None:
    """Check that `column` is among `columns`; the error lists them and names the nearest.

    Raises:
        UsageError: it is not.
    """
    names = sorted(columns)
    if column in names:
        return
    near = difflib.get_close_matches(column, names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise UsageError(
        place,
        expected=f"a column '{column}'",
        got="columns " + ", ".join(names),
        do=f"{hint}set {key} to the columns that are there",
    )
