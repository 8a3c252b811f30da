"""The embedded programming domain: a seeded generator of small real programs, so that the whole line runs without a hub.

`training_documents` is a stream of (docstring prompt, solution); `held_out_tasks` are tasks in HumanEval's own format whose
specs (family and parameters) never occur in training, for any seed. Standard library only. NOT for reading
corpora (`shared.corpus`) or task files (`shared.tasks`), and NOT a place to run code that
a model wrote: what is executed here is our own.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from shared.embedded_families import MAPPING, TESTING
from shared.embedded_families_shape import DIGITS, SHAPING
from shared.embedded_families_text import TABLES, TEXT, WORDS
from shared.embedded_inputs import draw_argument
from shared.embedded_parts import ARGUMENTS, LOCALS, Choice, Family
from shared.errors import UsageError

FAMILIES: tuple[Family, ...] = (*TESTING, *MAPPING, *SHAPING, *DIGITS, *TEXT, *WORDS, *TABLES)
HELD_OUT_SHARE = 8  # one spec in so many is held out
_SPLIT = "70"  # salt of the split: with it every family has a held-out spec
_TEST_INPUTS = 8
_POOL = 64  # inputs to choose the test's inputs from
_MUTANTS = 8


@dataclass(frozen=True)
class EmbeddedDocument:
    """One training document: `prompt` (signature and docstring) + `solution` (the body, indented, ends in a newline)."""

    id: str
    prompt: str
    solution: str

    def row(self) -> dict[str, str]:
        """The document as a row of a JSONL corpus, with HumanEval's field names."""
        return {"task_id": self.id, "prompt": self.prompt, "canonical_solution": self.solution}


@dataclass(frozen=True)
class _Spec:
    """What a program does: a family and one Choice for each of its parameters, in the family's order."""

    family: Family
    choices: tuple[Choice, ...]

    @property
    def key(self) -> str:
        return "|".join((_SPLIT, self.family.name, *(choice.code[0] for choice in self.choices)))

    @property
    def held_out(self) -> bool:
        return hashlib.sha256(self.key.encode()).digest()[0] % HELD_OUT_SHARE == 0


@dataclass(frozen=True)
class _Program:
    name: str
    header: str
    doc: str
    body: str

    @property
    def source(self) -> str:
        return self.header + self.body

    def prompt(self, example: str) -> str:
        return f'{self.header}    """{self.doc}\n\n{example}    """\n'


def training_documents(count: int, seed: int, faulty: float = 0.0) -> Iterator[EmbeddedDocument]:
    """The first `count` documents of the stream `seed`; document i is the same whatever `count` is.

    A spec may come back in other words, names or style. No spec of `held_out_tasks` occurs.

    Args:
        count: documents.
        seed: of the stream.
        faulty: share of documents whose solution does what another spec of its family asks for, as in scraped code where
            the text and the code have drifted apart. The others are the same at every share.
    """
    for index in range(count):
        rng = Random(f"embedded/documents/{seed}/{index}")
        spec = _draw_spec(rng)
        style = rng.getstate()
        program = _write(spec, rng)
        prompt = program.prompt(_example(spec, program, rng))
        slip, same_style = Random(f"embedded/faults/{seed}/{index}"), Random()
        same_style.setstate(style)
        wrong = slip.random() < faulty
        body = _write(_neighbour(spec, slip), same_style).body if wrong else program.body
        yield EmbeddedDocument(f"Embedded/{seed}/{index}", prompt, body)


def _neighbour(spec: _Spec, rng: Random) -> _Spec:
    """Another training spec of the same family, where it has one."""
    for _ in range(_POOL):
        choices = tuple(rng.choice(rng.choice(_by_tag(domain))) for domain in spec.family.params.values())
        other = _Spec(spec.family, choices)
        if other.choices != spec.choices and not other.held_out:
            return other
    return spec


def held_out_tasks(count: int, seed: int) -> list[dict[str, str]]:
    """`count` held-out tasks with distinct specs, spread evenly over the families, as rows in HumanEval's format.

    Each row: task_id, prompt, canonical_solution, entry_point, test (`def check(candidate)`). The tests' inputs are chosen so
    that a solution with another constant or operator fails.

    Raises:
        UsageError: more tasks wanted than the domain holds out.
    """
    rng = Random(f"embedded/tasks/{seed}")
    specs = list(itertools.islice(_round_robin(rng), count))
    if len(specs) < count:
        raise UsageError("embedded tasks", expected=f"at most {len(specs)}", got=str(count), do="ask for fewer tasks")
    return [_task(f"Embedded/{index}", spec, rng) for index, spec in enumerate(specs)]


def _task(task_id: str, spec: _Spec, rng: Random) -> dict[str, str]:
    program = _write(spec, rng)
    prompt = program.prompt(_example(spec, program, rng))
    calls = _test_inputs(spec, program, rng)
    run = _compile(program.source, program.name)
    lines = (f"    assert candidate({_spell(args)}) == {run(*args)!r}\n" for args in calls)
    return {
        "task_id": task_id,
        "prompt": prompt,
        "canonical_solution": program.body,
        "entry_point": program.name,
        "test": "def check(candidate):\n" + "".join(lines),
    }


# ---- choosing specs


def _draw_spec(rng: Random) -> _Spec:
    """A training spec: uniform over families, then over kinds of parameter value (tags), then over values."""
    while True:
        family = rng.choice(FAMILIES)
        choices = tuple(rng.choice(rng.choice(_by_tag(domain))) for domain in family.params.values())
        spec = _Spec(family, choices)
        if not spec.held_out:
            return spec


@cache
def _by_tag(domain: tuple[Choice, ...]) -> tuple[tuple[Choice, ...], ...]:
    groups: dict[str, list[Choice]] = {}
    for choice in domain:
        groups.setdefault(choice.tag, []).append(choice)
    return tuple(tuple(group) for group in groups.values())


@cache
def _held_out_specs(index: int) -> tuple[_Spec, ...]:
    family = FAMILIES[index]
    every = (_Spec(family, choices) for choices in itertools.product(*family.params.values()))
    return tuple(spec for spec in every if spec.held_out)


def _round_robin(rng: Random) -> Iterator[_Spec]:
    """All held-out specs in seeded order, one of each family a round while it lasts."""
    queues = [rng.sample(specs, len(specs)) for specs in map(_held_out_specs, range(len(FAMILIES)))]
    while queues := [queue for queue in queues if queue]:
        rng.shuffle(queues)
        for queue in queues:
            yield queue.pop()


# ---- writing programs


def _write(spec: _Spec, rng: Random) -> _Program:
    """One surface of a spec: names, wording and style drawn from `rng`."""
    names = _draw_names(spec.family, rng)
    letters = tuple(spec.family.params)
    code = names | {letter: rng.choice(choice.code) for letter, choice in zip(letters, spec.choices, strict=True)}
    words = names | {letter: rng.choice(choice.words) for letter, choice in zip(letters, spec.choices, strict=True)}
    tags = {letter: choice.tag for letter, choice in zip(letters, spec.choices, strict=True)}
    title = _fill(rng.choice(spec.family.titles), tags)
    arguments = (f"{names[letter]}: {ARGUMENTS[kind][0]}" for letter, kind in zip("ab", spec.family.args, strict=False))
    body = _fill(rng.choice(spec.family.bodies), code).replace("\t", "    ")
    return _Program(
        title,
        f"def {title}({', '.join(arguments)}) -> {spec.family.returns}:\n",
        _fill(rng.choice(spec.family.docs), words),
        "".join(f"    {line}\n" for line in body.split("\n")),
    )


def _draw_names(family: Family, rng: Random) -> dict[str, str]:
    """A name for each argument and local, all different."""
    pools = {letter: ARGUMENTS[kind][1] for letter, kind in zip("ab", family.args, strict=False)} | LOCALS
    names: dict[str, str] = {}
    for letter, pool in pools.items():
        names[letter] = rng.choice([name for name in pool if name not in names.values()])
    return names


def _fill(template: str, values: dict[str, str]) -> str:
    """Replace placeholders until none is left: a parameter's code speaks of $x itself."""
    while "$" in template:
        template = re.sub(r"\$([a-z])", lambda match: values[match[1]], template)
    return template


def _compile(source: str, name: str) -> Callable[..., Any]:
    scope: dict[str, Any] = {}
    exec(source, scope)  # our own templates, never a model's text
    function: Callable[..., Any] = scope[name]
    return function


# ---- examples and tests


def _example(spec: _Spec, program: _Program, rng: Random) -> str:
    """One doctest line pair, as HumanEval's prompts have them."""
    args = _draw_call(spec, program, rng, short=True)
    result = _compile(program.source, program.name)(*args)
    return f"    >>> {program.name}({_spell(args)})\n    {result!r}\n"


def _draw_call(spec: _Spec, program: _Program, rng: Random, *, short: bool) -> tuple[Any, ...]:
    return tuple(draw_argument(kind, program.body, rng, short=short) for kind in spec.family.args)


def _spell(args: Sequence[Any]) -> str:
    return ", ".join(map(repr, args))


def _test_inputs(spec: _Spec, program: _Program, rng: Random) -> list[tuple[Any, ...]]:
    """Inputs on which every wrong neighbour of the program shows: greedy cover of the mutants, then more at random."""
    pool = [_draw_call(spec, program, rng, short=False) for _ in range(_POOL)]
    want = _outcomes(program.source, program.name, pool)
    alive = [got for source in _mutants(spec, program, rng) if (got := _outcomes(source, program.name, pool)) != want]
    chosen: list[int] = []
    while alive:
        best = max(range(_POOL), key=lambda i: sum(got[i] != want[i] for got in alive))
        chosen.append(best)
        alive = [got for got in alive if got[best] == want[best]]
    chosen += [i for i in range(_POOL) if i not in chosen][: max(0, _TEST_INPUTS - len(chosen))]
    return [pool[i] for i in chosen]


def _outcomes(source: str, name: str, pool: Sequence[tuple[Any, ...]]) -> list[str]:
    """repr of the result on each input, or the name of the exception."""
    run = _compile(source, name)
    results: list[str] = []
    for args in pool:
        try:
            results.append(repr(run(*ast.literal_eval(repr(args)))))
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            results.append(type(error).__name__)
    return results


def _mutants(spec: _Spec, program: _Program, rng: Random) -> Iterator[str]:
    """Sources of wrong programs: each integer one off, and each parameter at its neighbours and at some other values."""
    yield from _bumped(program)
    for position, domain in enumerate(spec.family.params.values()):
        here = domain.index(spec.choices[position])
        near = [domain[i] for i in (here - 1, here + 1) if 0 <= i < len(domain)]
        for other in near + rng.sample(domain, min(_MUTANTS, len(domain))):
            choices = (*spec.choices[:position], other, *spec.choices[position + 1 :])
            mutant = _write(_Spec(spec.family, choices), Random(0))
            yield mutant.source.replace(f"def {mutant.name}(", f"def {program.name}(", 1)


def _bumped(program: _Program) -> Iterator[str]:
    if "while" in program.body:  # a wrong constant there may never end
        return
    tree = ast.parse(program.source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and type(node.value) is int:
            right = node.value
            for node.value in (right - 1, right + 1):
                yield ast.unparse(tree)
            node.value = right
