"""The embedded domain: deterministic, disjoint, right in every style, tests that a wrong constant fails; and its teacher."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from shared import embedded  # its private parts are looked at here
from shared.embedded import FAMILIES, EmbeddedDocument, held_out_tasks, training_documents
from shared.embedded_inputs import draw_argument
from shared.errors import UsageError

TEACHER = Path(embedded.__file__).parent / "embedded_teacher"
DIGEST = """
import hashlib, json
from shared.embedded import held_out_tasks, training_documents
text = json.dumps([d.row() for d in training_documents(200, 3)] + held_out_tasks(40, 3))
print(hashlib.sha256(text.encode()).hexdigest())
"""


def test_the_same_in_every_process() -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        result = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(result.stdout)
    rows = [document.row() for document in training_documents(200, 3)] + held_out_tasks(40, 3)
    digests.add(hashlib.sha256(json.dumps(rows).encode()).hexdigest() + "\n")
    assert len(digests) == 1


def test_a_document_depends_on_seed_and_index_only() -> None:
    few, many = list(training_documents(5, 0)), list(training_documents(50, 0))
    assert few == many[:5]
    assert not {d.prompt for d in many} & {d.prompt for d in training_documents(50, 1)}
    assert len({d.id for d in many}) == 50


def test_rows_have_the_fields_of_humaneval() -> None:
    document = next(training_documents(1, 0))
    assert document == EmbeddedDocument(document.id, document.prompt, document.solution)
    assert document.row() == {
        "task_id": "Embedded/0/0",
        "prompt": document.prompt,
        "canonical_solution": document.solution,
    }
    task = held_out_tasks(2, 0)[1]
    assert list(task) == ["task_id", "prompt", "canonical_solution", "entry_point", "test"]
    assert task["task_id"] == "Embedded/1"
    assert f"def {task['entry_point']}(" in task["prompt"] and task["prompt"].endswith('"""\n')


def test_thousands_of_distinct_programs() -> None:
    assert len(FAMILIES) >= 40 and len({family.name for family in FAMILIES}) == len(FAMILIES)
    assert len({_anonymous(d.prompt + d.solution) for d in training_documents(3000, 0)}) > 2000


def test_every_family_is_trained_and_held_out() -> None:
    rng = Random(0)
    assert {embedded._draw_spec(rng).family.name for _ in range(3000)} == {family.name for family in FAMILIES}
    assert all(embedded._held_out_specs(index) for index in range(len(FAMILIES)))


def test_training_never_draws_a_held_out_spec() -> None:
    rng = Random(1)
    held_out = {spec.key for index in range(len(FAMILIES)) for spec in embedded._held_out_specs(index)}
    assert not held_out & {embedded._draw_spec(rng).key for _ in range(20_000)}


def test_no_held_out_program_occurs_in_training_under_other_names() -> None:
    trained = {_anonymous(d.prompt + d.solution) for d in training_documents(4000, 7)}
    for task in held_out_tasks(120, 5):
        assert _anonymous(task["prompt"] + task["canonical_solution"]) not in trained, task["prompt"]


def test_tasks_are_spread_over_the_families_and_distinct() -> None:
    tasks = held_out_tasks(len(FAMILIES), 4)
    assert len({task["prompt"] for task in tasks}) == len(FAMILIES)
    assert len({_anonymous(task["prompt"] + task["canonical_solution"]) for task in tasks}) == len(FAMILIES)


def test_more_tasks_than_exist_is_an_error_that_says_how_many() -> None:
    with pytest.raises(UsageError, match=r"^embedded tasks: expected at most \d+, got 10000000; ask for fewer tasks$"):
        held_out_tasks(10_000_000, 0)


@pytest.mark.parametrize("index", range(len(FAMILIES)), ids=lambda index: FAMILIES[index].name)
def test_all_styles_of_a_family_are_right(index: int) -> None:
    family, rng = FAMILIES[index], Random(index)
    spec = embedded._Spec(family, tuple(rng.choice(domain) for domain in family.params.values()))
    programs = {(p.name, p.source) for p in (embedded._write(spec, rng) for _ in range(30))}
    body = embedded._write(spec, rng).body
    pool = [tuple(draw_argument(kind, body, rng, short=False) for kind in family.args) for _ in range(40)]
    outcomes = {tuple(embedded._outcomes(source, name, pool)) for name, source in programs}
    assert len(programs) > 5
    assert len(outcomes) == 1
    assert not {"TypeError", "ValueError", "ZeroDivisionError", "IndexError", "KeyError"} & set(outcomes.pop())


def test_the_doctest_in_every_prompt_is_true() -> None:
    for document in training_documents(500, 11):
        call, answer = _docstring(document.prompt).split(">>> ")[1].strip().split("\n")
        name = call.split("(")[0]
        scope = {name: embedded._compile(document.prompt + document.solution, name)}
        assert repr(eval(call, scope)) == answer.strip()


def test_canonical_solutions_pass_and_wrong_constants_fail() -> None:
    survivors: list[str] = []
    mutants = 0
    for task in held_out_tasks(90, 9):
        source = task["prompt"] + task["canonical_solution"]
        assert _passes(source, task)
        for mutant in _with_wrong_constants(source):
            mutants += 1
            if _passes(mutant, task) and _differs(source, mutant, task):
                survivors.append(mutant)
    assert mutants > 200
    assert len(survivors) <= mutants // 100, "\n".join(survivors)


def test_an_empty_solution_and_another_task_s_solution_fail() -> None:
    tasks = held_out_tasks(60, 2)
    for task, other in pairwise(tasks):
        assert not _passes(task["prompt"] + "    return None\n", task)
        body = other["canonical_solution"]
        if body != task["canonical_solution"]:
            assert not _passes(task["prompt"] + body, task)


def test_the_tokenizer_splits_where_prompt_and_solution_meet() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    assert len(tokenizer) == 1024 and tokenizer.eos_token == "<|endoftext|>" and tokenizer.bos_token is None
    longest = 0
    for document in training_documents(300, 21):
        whole = tokenizer(document.prompt + document.solution)["input_ids"]
        assert whole == tokenizer(document.prompt)["input_ids"] + tokenizer(document.solution)["input_ids"]
        assert tokenizer.decode(whole) == document.prompt + document.solution
        longest = max(longest, len(whole))
    assert longest < 256
    assert tokenizer.decode(tokenizer("Grüße,\t世界\r\n")["input_ids"]) == "Grüße,\t世界\r\n"


def test_the_teacher_knows_the_domain() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    teacher = AutoModelForCausalLM.from_pretrained(TEACHER)
    assert teacher.dtype == torch.bfloat16 and teacher.config.vocab_size == len(tokenizer)
    assert teacher.lm_head.weight is teacher.model.embed_tokens.weight
    assert (TEACHER / "model.safetensors").stat().st_size < 3_000_000
    right = wrong = 0
    for task in held_out_tasks(40, 13):
        prompt, body = (tokenizer(task[part])["input_ids"] for part in ("prompt", "canonical_solution"))
        ids_BT = torch.tensor([prompt + body])
        with torch.inference_mode():
            best_T = teacher(input_ids=ids_BT).logits[0, len(prompt) - 1 : -1].argmax(-1)
        hits = int((best_T == ids_BT[0, len(prompt) :]).sum())
        right, wrong = right + hits, wrong + len(body) - hits
    assert right / (right + wrong) > 0.7  # several styles are right, so it cannot be near 1


# ---- what the tests need


def _docstring(prompt: str) -> str:
    return prompt.split('"""')[1]


def _anonymous(source: str) -> str:
    """The program with every name that the surface chose replaced by its order of appearance, and no docstring or title."""
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    function.name, function.body = "f", function.body[1:]
    names = [arg.arg for arg in function.args.args]
    names += [node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    names += [arg.arg for node in ast.walk(function) if isinstance(node, ast.Lambda) for arg in node.args.args]
    order = {name: f"name{position}" for position, name in enumerate(dict.fromkeys(names))}
    for node in ast.walk(function):
        if isinstance(node, ast.Name):
            node.id = order.get(node.id, node.id)
        if isinstance(node, ast.arg):
            node.arg = order[node.arg]
    return ast.unparse(function)


def _passes(source: str, task: dict[str, str]) -> bool:
    scope: dict[str, Any] = {}
    exec(source + "\n" + task["test"], scope)
    try:
        scope["check"](scope[task["entry_point"]])
    except (AssertionError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, NameError):
        return False
    return True


def _with_wrong_constants(source: str) -> Iterator[str]:
    """The program with one integer one off. A `while` might then never end: its constants are left alone."""
    tree = ast.parse(source)
    constants = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and type(n.value) is int]
    for node in constants if "while" not in source.split('"""')[2] else []:
        right = node.value
        assert isinstance(right, int)
        for node.value in (right - 1, right + 1):
            yield ast.unparse(tree)
        node.value = right


def _differs(source: str, mutant: str, task: dict[str, str]) -> bool:
    """Whether the two programs can be told apart at all, on many inputs of other draws (some wrong constants are right)."""
    function = ast.parse(source).body[0]
    assert isinstance(function, ast.FunctionDef)
    annotations = [ast.unparse(arg.annotation) for arg in function.args.args if arg.annotation]
    kinds = {"list[int]": "ints", "int": "natural", "str": "text", "list[str]": "words", "dict[str, int]": "table"}
    kinds["list[list[int]]"] = "rows"
    rng, body = Random(77), task["canonical_solution"]
    pool = [tuple(draw_argument(kinds[a], body, rng, short=False) for a in annotations) for _ in range(200)]
    name = task["entry_point"]
    return embedded._outcomes(source, name, pool) != embedded._outcomes(mutant, name, pool)


def test_faulty_documents_do_what_another_spec_says_and_leave_the_others_alone() -> None:
    clean, faulty = (list(training_documents(400, 3, share)) for share in (0.0, 0.3))
    assert [document.prompt for document in clean] == [document.prompt for document in faulty]
    differing = [pair for pair in zip(clean, faulty, strict=True) if pair[0].solution != pair[1].solution]
    assert 0.2 < len(differing) / 400 < 0.35, "a few families have one spec only, and slips can write the same text"
    for right, wrong in differing[:50]:
        for document in (right, wrong):
            compile(document.prompt + document.solution, document.id, "exec")
    wrong_examples = 0
    for right, wrong in differing[:50]:
        name = right.prompt.split("def ", 1)[1].split("(", 1)[0]
        call, result = right.prompt.split(">>> ", 1)[1].split("\n")[:2]
        scope: dict[str, object] = {}
        exec(wrong.prompt + wrong.solution, scope)
        assert name in scope
        try:
            wrong_examples += repr(eval(call, scope)) != result.strip()
        except (ArithmeticError, LookupError, TypeError, ValueError):
            wrong_examples += 1
    assert wrong_examples >= 25, "the code of most no longer fits the example in its own text"
