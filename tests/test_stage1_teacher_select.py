"""`select`: a folder of answers becomes a corpus that a capture reads; counted, judged through files, reproducible."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_capture import tiny_config
from tiny_model import save_tiny_model

from shared.config import check_config
from shared.corpus import read_documents
from shared.embedded import held_out_tasks
from shared.errors import RunError, UsageError
from shared.files import read_jsonl, write_jsonl
from stage1_teacher import select_judge
from stage1_teacher.__main__ import main
from stage1_teacher.capture import capture
from stage1_teacher.prompt_sets import Prompt
from stage1_teacher.select import select
from stage1_teacher.select_config import SelectConfig

ROOT = Path(__file__).resolve().parent.parent
TASK = {
    "task_id": 601,
    "text": "Write a function to add.",
    "code": "def add(a, b):\n    return a + b\n",
    "test_list": ["assert add(1, 2) == 3"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
GOOD, LONGER, BAD = (
    "def add(a, b):\n    return a + b\n",
    "def add(a, b):\n    # both\n    return sum((b, a))\n",
    "def add(a, b):\n    return a - b\n",
)


def folder_of(folder: Path, prompts: Sequence[Prompt], answers: Sequence[tuple[str, int, str]], **record: Any) -> Path:
    """A folder as `generate` leaves it."""
    folder.mkdir()
    write_jsonl(folder / "prompts.jsonl", (prompt.row() for prompt in prompts))
    facts = {
        "format": "codestill-answers/1",
        "prompts": {"count": len(prompts), "sha256": "0" * 64},
        "teacher": {"model": "teach", "endpoint": "https://host/v1/completions"},
        "settings": {"temperature": 0.8},
        "left_out": {"empty seeds": 2},
        "begun": "2026-01-02 03:04 UTC",
        "made_with": {"codestill": "1"},
    }
    (folder / "generate.json").write_text(json.dumps(facts | record))
    row = {"finish": "stop", "prompt_tokens": 1, "completion_tokens": 1, "model": "served"}
    write_jsonl(folder / "answers.jsonl", ({"prompt_id": p, "index": i, "answer": a, **row} for p, i, a in answers))
    return folder


def task_prompt(number: int = 601) -> Prompt:
    return Prompt(
        f"mbpp/MBPP/{number}", "program", "", f"# {number}\n", licence="MIT", problem={**TASK, "task_id": number}
    )


def settings(answers: Path, **changes: Any) -> SelectConfig:
    data = {"answers": str(answers), "out": str(answers.parent / "corpus" / "text.jsonl"), "judge": {"jobs": 1}}
    return check_config(SelectConfig, data | changes, base=answers.parent, name="test")


def judge_that(monkeypatch: pytest.MonkeyPatch, passes: Any) -> list[list[str]]:
    """Put a judge in the place of the command; returns the calls it gets."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command)
        samples, problems, out = Path(command[4]), Path(command[6]), Path(command[8])
        names = {f"MBPP/{row['task_id']}" for row in read_jsonl(problems)}
        rows = [{**row, "passed": bool(passes(row["completion"]))} for row in read_jsonl(samples)]
        assert {row["task_id"] for row in rows} <= names
        write_jsonl(out, rows)
        summary = {"verdicts": {"passed": sum(row["passed"] for row in rows)}, "isolation": ["cell"]}
        return subprocess.CompletedProcess(command, 0, json.dumps(summary), "")

    monkeypatch.setattr(select_judge.subprocess, "run", run)
    return calls


def test_the_best_answer_that_passes_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [("mbpp/MBPP/601", n, text) for n, text in enumerate([BAD, LONGER, GOOD, BAD, GOOD, "def add(", "x"])]
    folder = folder_of(tmp_path / "run", [task_prompt(), task_prompt(602)], answers[::-1])
    calls = judge_that(monkeypatch, lambda text: text != BAD)
    summary = select(settings(folder))
    assert summary == {
        "corpus": "text.jsonl", "rows": 1, "prompts": 2, "prompts_kept": 1, "answers": 7,
        "dropped": {
            "beaten by others of its prompt": 1, "does not parse": 1, "duplicate": 1, "failed its tests": 2, "too short": 1
        },
        "judged": 5, "passed": 3, "verdicts": {"passed": 3},
        "section": 'corpus: {path: text.jsonl, prompt: "{prompt}", completion: "{completion}", id: id, licence: licence}',
    }  # fmt: skip
    (row,) = read_jsonl(tmp_path / "corpus" / "text.jsonl")
    assert (row["id"], row["prompt"], row["completion"], row["licence"]) == ("mbpp/MBPP/601#2", "# 601\n", GOOD, "MIT")
    assert row["provenance"]["passed"] is True and row["provenance"]["agreement"] == pytest.approx(0.6667)
    command = calls[0]
    assert command[:4] == [sys.executable, "-m", "eval", "judge"] and "--problems" in command and "--json" in command
    samples = list(read_jsonl(tmp_path / "corpus" / "text.judge" / "samples.jsonl"))
    assert samples[0] == {"task_id": "MBPP/601", "completion": BAD, "index": 0} and len(samples) == 5
    assert list(read_jsonl(tmp_path / "corpus" / "text.judge" / "problems.jsonl")) == [TASK]
    assert json.loads((tmp_path / "corpus" / "text.summary.json").read_text()) == summary
    provenance = json.loads((tmp_path / "corpus" / "text.provenance.json").read_text())
    assert provenance["teacher"] == {
        "model": "teach",
        "endpoint": "https://host/v1/completions",
        "answered_as": ["served"],
    }
    assert (
        provenance["corpus"]["sha256"] == hashlib.sha256((tmp_path / "corpus" / "text.jsonl").read_bytes()).hexdigest()
    )
    assert provenance["selection"]["judge"]["isolation"] == ["cell"] and provenance["begun"] == "2026-01-02 03:04 UTC"
    assert str(tmp_path) not in json.dumps(provenance)


def test_the_same_answers_make_the_same_bytes_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_that(monkeypatch, lambda text: True)
    answers = [(f"mbpp/MBPP/{601 + p}", n, text) for p in (0, 1) for n, text in enumerate([LONGER, GOOD, BAD, GOOD])]
    made = []
    for name, order in (("a", answers), ("b", answers[::-1])):
        (tmp_path / name).mkdir()
        prompts = [task_prompt(), task_prompt(602)]
        select(settings(folder_of(tmp_path / name / "run", prompts, order), keep=2))
        made.append((tmp_path / name / "corpus" / "text.jsonl").read_bytes())
    assert made[0] == made[1] and made[0].count(b"\n") == 4


def test_the_same_seed_twice_teaches_once(tmp_path: Path) -> None:
    words = " ".join(f"word{n}" for n in range(80))
    prompts = [Prompt(name, "explain", "", text) for name, text in (("a", words), ("b", words), ("c", words + " more"))]
    prompts.append(Prompt("d", "plain", "", words))
    answers = [(name, 0, "It is explained.") for name in "abcd"]
    summary = select(settings(folder_of(tmp_path / "run", prompts, answers)))
    assert [row["id"] for row in read_jsonl(tmp_path / "corpus" / "text.jsonl")] == ["a#0", "d#0"]
    assert summary["dropped"] == {
        "duplicate of another prompt's": 1, "near duplicate of another prompt's": 1
    }  # fmt: skip
    assert (summary["judged"], summary["verdicts"]) == (0, {})


def test_an_unfinished_line_and_answers_to_nobody(tmp_path: Path) -> None:
    prompt = Prompt("a", "explain", "", "Explain.\n")
    folder = folder_of(tmp_path / "run", [prompt], [("a", 0, "It is explained."), ("z", 0, "Who asked?")])
    with (folder / "answers.jsonl").open("a") as file:
        file.write('{"prompt_id": "a", "ind')
    summary = select(settings(folder))
    assert (summary["rows"], summary["dropped"]) == (1, {"of no prompt": 1})


def test_instruction_fields_are_columns(tmp_path: Path) -> None:
    answer = "## Reasoning\nr\n## Code\n```\nx = 1\n```\n## Explanation\ne\n## Tests\n```\nassert x\n```\n"
    folder = folder_of(tmp_path / "run", [Prompt("i", "instruction", "", "Do.\n")], [("i", 0, answer)])
    select(settings(folder))
    path = tmp_path / "corpus" / "text.jsonl"
    (row,) = read_jsonl(path)
    assert {name: row[name] for name in ("reasoning", "code", "explanation", "tests")} == {
        "reasoning": "r", "code": "x = 1\n", "explanation": "e", "tests": "assert x\n"
    }  # fmt: skip


def test_nothing_good_enough_is_an_error_that_leaves_no_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge_that(monkeypatch, lambda text: False)
    folder = folder_of(tmp_path / "run", [task_prompt()], [("mbpp/MBPP/601", 0, BAD), ("mbpp/MBPP/601", 1, "x")])
    with pytest.raises(RunError) as error:
        select(settings(folder))
    assert str(error.value) == (
        f"answers {folder}: expected one good enough, got 1 too short, 1 failed its tests; "
        "raise samples or max_new_tokens, or take a better teacher"
    )
    assert {path.name for path in (tmp_path / "corpus").iterdir()} == {"text.judge"}


def test_a_judge_that_refuses_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "run", [task_prompt()], [("mbpp/MBPP/601", 0, GOOD)])
    for code, kind in ((2, UsageError), (1, RunError)):
        done = subprocess.CompletedProcess(
            [], code, "", "judging...\nerror: this machine cannot isolate programs; set x\n"
        )
        monkeypatch.setattr(select_judge.subprocess, "run", lambda *_, done=done, **__: done)
        with pytest.raises(kind) as error:
            select(settings(folder))
        assert str(error.value) == f"judge of {tmp_path}/corpus/text.judge: this machine cannot isolate programs; set x"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "generate.json").unlink(), "expected a folder with generate.json, got none"),
        (lambda f: (f / "generate.json").write_text("{}"), "expected codestill-answers/1, got None"),
        (
            lambda f: (f / "answers.jsonl").write_text("{}\n"),
            "answers.jsonl line 1: expected prompt_id as str, got None",
        ),
        (
            lambda f: (f / "answers.jsonl").write_text("[]\n"),
            "answers.jsonl line 1: expected one JSON object, got list",
        ),
    ],
)
def test_folders_that_are_no_answers(tmp_path: Path, damage: Any, said: str) -> None:
    folder = folder_of(tmp_path / "run", [Prompt("a", "explain", "", "x")], [("a", 0, "It is explained.")])
    damage(folder)
    with pytest.raises(UsageError) as error:
        select(settings(folder))
    assert said in str(error.value)


def test_out_is_a_jsonl_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a name that ends in \.jsonl"):
        settings(tmp_path, out="corpus")


def test_the_embedded_teacher_writes_a_corpus_that_a_capture_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole line: prompts, a real teacher, the real judge, selection, and a cache of what came out."""
    write_jsonl(tmp_path / "tasks.jsonl", held_out_tasks(4, 5))
    teacher = {"model": str(ROOT / "shared" / "embedded_teacher"), "dtype": "float32", "device_map": "cpu"}
    generate = {
        "out": "run", "prompts": {"mbpp": {"path": "tasks.jsonl", "licence": "Apache-2.0"}}, "teacher": teacher,
        "samples": 4, "temperature": 0.4, "max_new_tokens": 48,
    }  # fmt: skip
    (tmp_path / "generate.yaml").write_text(json.dumps(generate))
    (tmp_path / "select.yaml").write_text(json.dumps({"answers": "run", "out": "text.jsonl", "judge": {"jobs": 1}}))
    for verb in ("generate", "select"):
        monkeypatch.setattr(sys, "argv", ["stage1-teacher", verb, str(tmp_path / f"{verb}.yaml"), "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    shown = capsys.readouterr().out
    facts, end = json.JSONDecoder().raw_decode(shown)
    summary = json.loads(shown[end:])
    assert (facts["wanted"], facts["there"], facts["finished"], facts["usd"]) == (16, 16, True, None)
    assert summary["judged"] > 8 and 0 < summary["passed"] <= summary["judged"], "some of its programs work"
    assert summary["rows"] == summary["prompts_kept"] > 0
    corpus = {"path": str(tmp_path / "text.jsonl"), "prompt": "{prompt}", "completion": "{completion}"}
    corpus |= {"id": "id", "licence": "licence"}
    save_tiny_model(tmp_path / "teacher", positions=1024)
    config = tiny_config(tmp_path, corpus=corpus, shape=None)
    documents = list(read_documents(config.corpus))
    assert [document.licence for document in documents] == ["Apache-2.0"] * summary["rows"]
    tasks = {row["task_id"]: row for row in held_out_tasks(4, 5)}
    for document in documents:
        task = tasks[document.id.removeprefix("text.jsonl/mbpp/").partition("#")[0]]
        assert document.text[: document.prompt_chars] == task["prompt"].rstrip()
        scope: dict[str, Any] = {}
        exec(document.text + "\n" + task["test"], scope)  # the judge has passed it
        scope["check"](scope[task["entry_point"]])
    assert capture(config).total("windows") == summary["rows"]
