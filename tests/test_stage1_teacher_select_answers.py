"""Reading answers without running them: blocks, sections, programs, bodies, refusals; and the order among them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from stage1_teacher.answers import Dropped, Reading, read_answer
from stage1_teacher.markdown import python_block, sections
from stage1_teacher.programs import body_of, documentation, normal_form, parsed, shingles, similarity
from stage1_teacher.prompt_sets import Prompt
from stage1_teacher.prompt_templates import FUNCTION_BODY_ENDS, SECTIONS, WHOLE_PROGRAM_ENDS, fenced
from stage1_teacher.ranking import best, ranked
from stage1_teacher.select_config import REFUSALS

SEED = "def area(w, h):\n    return w * h\n"
BODY_PROBLEM = {
    "task_id": "E/1",
    "prompt": 'def twice(x):\n    """Double x."""\n',
    "canonical_solution": "    return 2 * x\n",
    "entry_point": "twice",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
PROGRAM = Prompt("p", "program", "", '"""\ntext\n"""\n', WHOLE_PROGRAM_ENDS)
BODY = Prompt("b", "body", "", BODY_PROBLEM["prompt"].rstrip(), FUNCTION_BODY_ENDS, problem=BODY_PROBLEM)


def read(prompt: Prompt, answer: str, finish: str = "stop", shortest: int = 5) -> Reading:
    return read_answer(prompt, answer, finish, shortest=shortest, refusals=REFUSALS)


def why(prompt: Prompt, answer: str, finish: str = "stop", shortest: int = 5) -> str:
    with pytest.raises(Dropped) as reason:
        read(prompt, answer, finish, shortest)
    return str(reason.value)


def about(kind: Any) -> Prompt:
    return Prompt("c", kind, "", "", code=SEED)


# ---- blocks and sections


def test_the_longest_python_block_counts() -> None:
    text = "```\nx\n```\n~~~python\nlonger = 1\n```\n~~~\n```js\nvar aVeryLongName = 1\n```\n```python\nunfinished = 12345678"
    assert python_block(text) == "longer = 1\n```\n"
    assert python_block("no block, ``` in text") is None
    assert python_block("````python\na = '''\n```\n'''\n````") == "a = '''\n```\n'''\n"
    for code in ("x = 1\n", "x = '```'\n", "x = '''\n````\n'''\n"):
        assert python_block(f"text\n{fenced(code)}\ntext") == code


def test_sections_are_read_in_order_and_not_out_of_code() -> None:
    text = (
        "Sure!\n## Reasoning\nr\n### Code:\n```python\n## tests\nx = 1\n```\n## Explanation\ne\n## Other\n# tests\nt\n"
    )
    assert sections(text, SECTIONS) == {
        "reasoning": "r", "code": "```python\n## tests\nx = 1\n```", "explanation": "e\n## Other", "tests": "t"
    }  # fmt: skip
    for broken in (
        text.replace("# tests\nt", ""),  # missing
        text + "## Code\nagain",  # twice
        text.replace("## Reasoning\nr\n", "") + "## Reasoning\nr",  # another order
        text.replace("\ne\n## Other", "\n"),  # empty
    ):
        assert sections(broken, SECTIONS) is None


# ---- programs


HOSTILE = [
    "(" * 10_000, "-" * 10_000 + "1", "x" + ".a" * 10_000, "[" * 90 + "]" * 90, "\0", "x = '\ud800'", "1" * 5000,
    "if x:\n" + "".join(" " * n + "if x:\n" for n in range(1, 150)), "lambda:" * 5000 + "0", "x" * 300_000, "\\d = '\\d'",
    "f'{" * 200, "a" + "+a" * 10_000,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_raises(text: str) -> None:
    assert parsed(text) is None or isinstance(normal_form(text), str | None)
    assert documentation(text) in (0, 1, 2)
    assert 0 < similarity(shingles(text), shingles(text)) <= 1
    for prompt in (
        PROGRAM,
        BODY,
        *map(about, ("explain", "document", "write_tests", "refactor", "instruction", "plain")),
    ):
        for answer in (text, fenced(text) if len(text) < 10_000 else text):
            try:
                assert read(prompt, answer).completion
            except Dropped as reason:
                assert str(reason)


def test_the_normal_form_knows_what_a_program_does_from_how_it_looks() -> None:
    first = 'def f(a, b):\n    """Add."""\n    total = a + b  # sum\n    return total\n'
    same = "def f(x,y):\n  s=x+y\n  return (s)"
    assert normal_form(first) == normal_form(same)
    assert normal_form(first, rename=False) != normal_form(same, rename=False)
    assert normal_form(first, rename=False) == normal_form(first.replace('"""Add."""', "'''Other.'''"), rename=False)
    for other in (
        "def g(a, b):\n    t = a + b\n    return t",
        "def f(a, b):\n    t = b + a\n    return t",
        "def f(a, b): pass",
    ):
        assert normal_form(first) != normal_form(other)
    assert normal_form("def f(:") is None


def test_documentation_counts_docstrings_and_comments() -> None:
    assert [documentation(code) for code in ("x = '# no'", "# yes\nx = 1", "def f():\n    'doc'\n    # c\n    return 1")] == [
        0, 1, 2
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "body"),
    [
        ("def twice(x):\n    return 2 * x\n", "    return 2 * x\n"),
        ('def twice(x):\n    """Doc\n    more."""\n    # why\n    return 2 * x\n', "    # why\n    return 2 * x\n"),
        (
            "import math\n\n@cache\ndef helper(x):\n    return x\n\ndef twice(x):\n    return helper(x)\n",
            "    return helper(x)\n\n\nimport math\n\n\n@cache\ndef helper(x):\n    return x\n",
        ),
        ("x = 1\r\ndef twice(x):\r\n    y = '\x0c'\r\n    return y\r\n", "    y = '\x0c'\n    return y\n\n\nx = 1\n"),
        ("def other(x):\n    return 2 * x\n", None),
        ("def twice(x): return 2 * x\n", None),
        ('def twice(x):\n    """Doc."""\n', None),
        ("x = 1; y = 2\ndef twice(x):\n    return 2 * x\n", None),
        ("def twice(x:\n", None),
    ],
)
def test_the_body_of_a_function(code: str, body: str | None) -> None:
    assert body_of(code, "twice") == body
    if body is not None:
        assert parsed(BODY_PROBLEM["prompt"] + body) is not None


# ---- answers, kind by kind


def test_a_program_is_cut_where_the_model_starts_something_else() -> None:
    code = "def f(x):\n    return x\n"
    found = read(PROGRAM, f"\n{code}\nassert f(1) == 1\nmore")
    assert (found.completion, found.code, found.judged) == (code, code, code)
    assert read(PROGRAM, f"```python\n{code}```\nThat is it.").completion == code
    chat = replace(PROGRAM, stop=())
    assert read(chat, f"Here:\n```python\n{code}```\nThat is it.").completion == code
    assert why(PROGRAM, "def f(x:\n    return x") == "does not parse"
    assert why(PROGRAM, "def f(x):\n    return x", "length") == "cut off"
    assert read(PROGRAM, f"{code}\nassert f(1", "length").completion == code, "the end was reached before the limit"
    assert why(PROGRAM, '"""only a docstring"""') == "no code"
    assert why(PROGRAM, "x=1", shortest=10) == "too short"
    assert why(PROGRAM, "  \n ") == "too short"


def test_the_rest_of_a_function() -> None:
    found = read(BODY, "\n    return 2 * x\n\ndef other():\n    pass\n")
    assert found.completion == found.judged == "\n    return 2 * x\n"
    assert found.code == BODY.prompt + found.completion
    whole = 'Sure:\n```python\ndef twice(x):\n    """Mine."""\n    return x + x\n```'
    assert read(replace(BODY, stop=()), whole).completion == "\n    return x + x\n"
    assert why(replace(BODY, stop=()), "```python\ndef thrice(x):\n    return 3 * x\n```") == "no code"
    assert why(BODY, "return 2 * x\n") == "no code", "beside the function"
    assert why(BODY, "    return (2 * x\n") == "does not parse"
    assert why(BODY, "\n\n") == "too short"


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("explain", "It multiplies width and height.", None),
        ("explain", "Eh.", "too short"),
        ("document", f"```python\n{SEED.replace(':', ':  # width, height', 1)}```", None),
        ("document", SEED.replace(":\n", ':\n    """The area."""\n'), None),
        ("document", f"```python\n{SEED}```", "no documentation"),
        ("document", "```python\ndef area(w, h):\n    # sum\n    return w + h\n```", "changed the code"),
        ("document", "I would add a docstring.", "no code"),
        ("write_tests", "```python\ndef test_area():\n    assert area(2, 3) == 6\n```", None),
        ("write_tests", "```python\nclass T:\n    def test(self):\n        self.assertEqual(area(2, 3), 6)\n```", None),
        ("write_tests", "```python\nprint(area(2, 3))\n```", "no tests"),
        ("write_tests", "```python\nassert (\n```", "does not parse"),
        ("refactor", "```python\ndef area(width, height):\n    return width * height\n```", None),
        ("refactor", f"Nothing to do:\n```python\n# good\n{SEED}```", "left the code as it was"),
        ("refactor", "```python\ndef surface(w, h):\n    return w * h\n```", "lost public names"),
        ("plain", "Anything at all.", None),
        ("plain", "```python\nx = (\n```", "does not parse"),
    ],
)
def test_answers_about_code(kind: Any, answer: str, reason: str | None) -> None:
    if reason is None:
        assert read(about(kind), answer).completion == answer.rstrip() + "\n"
    else:
        assert why(about(kind), answer) == reason


def test_an_instruction_is_answered_in_four_fields() -> None:
    answer = "Hi\n## Reasoning\nAdd.\n## Code\n```python\ndef f(a):\n    return a\n```\n## Explanation\nIt adds.\n## Tests\n```\nassert f(1) == 1\n```"
    found = read(about("instruction"), answer)
    assert found.sections == {
        "reasoning": "Add.", "code": "def f(a):\n    return a\n", "explanation": "It adds.", "tests": "assert f(1) == 1\n"
    }  # fmt: skip
    assert found.code == "def f(a):\n    return a\n"
    assert found.completion == (
        "## Reasoning\nAdd.\n\n## Code\n```python\ndef f(a):\n    return a\n```\n\n"
        "## Explanation\nIt adds.\n\n## Tests\n```python\nassert f(1) == 1\n```\n"
    )
    assert why(about("instruction"), answer.replace("## Tests", "Tests")) == "not the four sections"
    assert why(about("instruction"), answer.replace("assert f(1) == 1", "f(1)")) == "no tests"
    assert why(about("instruction"), answer.replace("return a\n", "return (\n")) == "does not parse"


@pytest.mark.parametrize(
    "answer", ["I'm sorry, but I can't do that.", "As an AI language model, I", "I\u2019m unable to share code."]
)
def test_refusals(answer: str) -> None:
    assert why(about("explain"), answer) == "refusal"
    assert why(replace(PROGRAM, stop=()), answer) == "refusal"
    assert read(replace(PROGRAM, stop=()), f"{answer}\n```python\ndef f():\n    return 1\n```").code is not None
    late = "The code multiplies. " * 20 + answer
    assert read(about("explain"), late).completion.startswith("The code")


def test_a_filtered_answer_is_a_refusal() -> None:
    assert why(about("explain"), "It multiplies width and", "content_filter") == "refusal"


# ---- the order among them


def code(text: str) -> Reading:
    return Reading(text, text)


def indexes(texts: list[str]) -> list[int]:
    return [each.index for each in ranked([(n, code(text)) for n, text in enumerate(texts)])]


def test_agreement_comes_first() -> None:
    lone = "def f(a, b):\n    '''Doc.'''\n    return sum([a, b])  # c\n"
    order = ranked(
        [(0, code(lone)), (1, code("def f(a, b):\n    return a + b\n")), (2, code("def f(x, y):\n    return x + y\n"))]
    )
    assert [each.index for each in order] == [1, 2, 0]
    assert [each.agreement for each in order] == pytest.approx([2 / 3, 2 / 3, 1 / 3])


def test_then_similarity_documentation_length_and_index() -> None:
    prose = ["the area of a box is width by height", "the area of a box is width by length", "cats sleep all day long"]
    order = ranked([(n, Reading(text, None)) for n, text in enumerate([prose[2], prose[0], prose[1]])])
    assert [each.index for each in order] == [1, 2, 0]
    assert (order[0].agreement, order[2].similarity) == (0.0, 0.0)
    bare, commented = "def f(a):\n    return a\n", "def f(a):\n    # itself\n    return a\n"
    order_of_two = ranked([(0, code(bare)), (1, code(commented))])
    assert [each.index for each in order_of_two] == [1, 0], "the same program: the documented one"
    assert indexes(["def f(abc):\n    return abc\n", "def f(a):\n    return a\n"]) == [1, 0], "the shorter"
    assert indexes([bare, bare]) == [0, 1]
    assert ranked([(4, code(bare))])[0].similarity == 1.0


def test_kept_answers_differ() -> None:
    texts = [
        "def f(a):\n    return a * 2\n", "def f(a):\n    return a * 2\n", "def f(b):\n    return b * 2\n",
        "def f(a):\n    return a + a\n", "def f(a):\n    total = 0\n    for _ in range(2):\n        total += a\n    return total\n",
    ]  # fmt: skip
    found = [(each.index, reason) for each, reason in best(ranked([(n, code(t)) for n, t in enumerate(texts)]), 2, 0.9)]
    assert found == [
        (0, None), (1, "duplicate"), (2, "near duplicate"), (3, None), (4, "beaten by others of its prompt")
    ]  # fmt: skip
    prose = "one two three four five six seven eight nine ten eleven twelve thirteen"
    order = ranked([(0, Reading(prose, None)), (1, Reading(f"{prose} fourteen", None))])
    assert [reason for _, reason in best(order, 2, 0.9)] == [None, "near duplicate"], "10 of 11 quadruples in common"
    assert [reason for _, reason in best(order, 2, 0.95)] == [None, None]


def test_rows_survive_json() -> None:
    assert json.loads(json.dumps(BODY.row())) == json.loads(json.dumps(Prompt.of_row(BODY.row()).row()))
