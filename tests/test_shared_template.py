"""Templates: what they render, and the exact sentences for what they refuse."""

from __future__ import annotations

import random
import string

import pytest

from shared.errors import UsageError
from shared.template import Template

ROW = {
    "text": "Add.",
    "test_list": ["assert f(1) == 2", "assert g"],
    "n": 7,
    "meta": {"code": "x"},
    "none": None,
    "yes": True,
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{text}", "Add."),
        ('"""\n{text}\n{test_list[0]}\n"""\n', '"""\nAdd.\nassert f(1) == 2\n"""\n'),
        ("{test_list[1]}|{n}|{meta[code]}", "assert g|7|x"),
        ("{{literal}} {text}", "{literal} Add."),
        ("", ""),
    ],
)
def test_renders(template: str, expected: str) -> None:
    assert Template(template, "corpus.prompt").render(ROW, "row 1") == expected


def test_columns_in_order_without_repeats() -> None:
    assert Template("{b[0]}{a}{b[1]}", "k").columns == ("b", "a")


@pytest.mark.parametrize(
    "template",
    ["{func.doc}", "{text!r}", "{text:>10}", "{}", "{0.real}", "{text.__class__}", "{a[b.c].d}", "{x[]}", "{n:{n}}"],
)
def test_refuses_everything_but_names_and_indexes(template: str) -> None:
    with pytest.raises(
        UsageError, match=r"^corpus\.prompt: template: expected fields like \{column\} or \{column\[0\]\}"
    ):
        Template(template, "corpus.prompt")


def test_refusal_sentence() -> None:
    with pytest.raises(UsageError) as caught:
        Template("a {func.doc}", "corpus.prompt")
    assert str(caught.value) == (
        "corpus.prompt: template: expected fields like {column} or {column[0]}, got {func.doc}; "
        "write the column's name alone; double a brace that is meant literally"
    )
    with pytest.raises(UsageError, match=r"Single '\}' encountered"):
        Template("a } b", "corpus.prompt")


def test_unknown_column_names_the_nearest() -> None:
    with pytest.raises(UsageError) as caught:
        Template("{txt}", "corpus.prompt").render({"text": "a", "code": "b"}, "mbpp.jsonl line 3")
    assert str(caught.value) == (
        "mbpp.jsonl line 3: expected a column 'txt', got columns code, text; "
        "did you mean 'text'? set corpus.prompt to the columns that are there"
    )


@pytest.mark.parametrize(
    ("template", "got"),
    [
        ("{none}", "expected a text or number for corpus.prompt, got null"),
        ("{yes}", "got a bool"),
        ("{test_list}", "got a list"),
        ("{meta}", "got a dict"),
        ("{test_list[9]}", "expected what corpus.prompt asks for, got IndexError: list index out of range"),
        ("{test_list[x]}", "got ValueError: invalid literal for int"),
        ("{n[0]}", "got TypeError: 'int' object is not subscriptable"),
        ("{meta[nope]}", "got KeyError: 'nope'"),
    ],
)
def test_bad_values_get_one_line(template: str, got: str) -> None:
    with pytest.raises(UsageError) as caught:
        Template(template, "corpus.prompt").render(ROW, "x.jsonl line 2")
    assert str(caught.value).startswith("x.jsonl line 2: ")
    assert got in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_are_never_read_as_templates() -> None:
    assert Template("{a}", "k").render({"a": "{b} {{c}} {a.x}"}, "row") == "{b} {{c}} {a.x}"


def test_escaped_text_comes_back_as_it_was() -> None:
    rng = random.Random(5)
    for _ in range(200):
        text = "".join(rng.choices(string.printable + "{}{}äß", k=rng.randrange(40)))
        assert Template(text.replace("{", "{{").replace("}", "}}"), "k").render({}, "row") == text
