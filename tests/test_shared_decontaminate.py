"""Decontamination: what counts as an overlap, what is counted, and that it streams."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.corpus import CorpusConfig, Document, read_documents
from shared.decontaminate import (
    EXAMPLES,
    Decontamination,
    DecontaminationConfig,
    TaskIndex,
    drop_contaminated,
    evaluation_texts,
)
from shared.errors import UsageError

WORDS = [f"word_{letter}{other}" for letter in "abcdefghij" for other in "klmnopqrst"]


def sample(rng: random.Random, count: int) -> list[str]:
    return rng.sample(WORDS, count)


def document(text: str, name: str = "d") -> Document:
    return Document(name, text, 0, "test", None)


def test_thirteen_shared_words_are_an_overlap_and_twelve_are_not() -> None:
    rng = random.Random(1)
    for _ in range(50):
        task, before, after = sample(rng, 40), sample(rng, 5), sample(rng, 5)
        index = TaskIndex([("t", [" ".join(task)])], 13)
        start = rng.randrange(40 - 13)
        shared = task[start : start + 13]
        assert index.match(" ".join([*before, "x", *shared, "x", *after])) == "t"
        assert index.match(" ".join([*before, "x", *shared[:6], "x", *shared[6:], "x", *after])) is None
        assert index.match(" ".join(["x", *shared[:12], "x"])) is None


def test_case_punctuation_and_layout_do_not_hide_an_overlap() -> None:
    task = (
        "def below_zero(operations: List[int]) -> bool: '''You are given a list of deposit and withdrawal operations'''"
    )
    index = TaskIndex([("HumanEval/3", [task])], 13)
    copied = "DEF below_zero(operations: list[int]) -> bool:\n    # you are given: a LIST of deposit and withdrawal"
    assert index.match("x = 1\n" + copied) == "HumanEval/3"


def test_numbers_and_nested_loops_are_no_evidence() -> None:
    numbers = "x = [" + ", ".join(str(i) for i in range(40)) + "]"
    loops = (
        "for i in range(n):\n    for j in range(n):\n        for i in range(n):\n            for j in range(n): pass"
    )
    index = TaskIndex([("t", [numbers, loops])], 13)
    assert index.match(numbers) is None
    assert index.match(loops) is None


def test_short_texts_are_matched_as_a_whole() -> None:
    index = TaskIndex([("nine", [" ".join(WORDS[:9])]), ("seven", [" ".join(WORDS[20:27])])], 13)
    assert index.match("x " + " ".join(WORDS[:9]) + " y") == "nine"
    assert index.match(" ".join(WORDS[:8])) is None
    assert index.match(" ".join(WORDS[20:27])) is None  # fewer than eight words: common speech


def test_an_overlap_does_not_span_description_and_solution() -> None:
    index = TaskIndex([("t", [" ".join(WORDS[:10]), " ".join(WORDS[10:20])])], 13)
    assert index.match(" ".join(WORDS[4:18])) is None


def test_drops_and_counts_in_a_stream() -> None:
    task = " ".join(WORDS[:20])
    read: list[int] = []

    def endless() -> Iterator[Document]:
        for number in range(10**9):
            read.append(number)
            yield document(task if number % 2 else f"clean text {number}", f"d{number}")

    result = Decontamination()
    kept = drop_contaminated(endless(), TaskIndex([("t", [task])], 13), result)
    assert [next(kept).id for _ in range(200)] == [f"d{2 * number}" for number in range(200)]
    assert len(read) == 399  # nothing was read ahead
    assert (result.tasks, result.documents, result.dropped) == (1, 399, 199)
    assert result.by_task == {"t": 199}
    assert result.examples[:2] == [("d1", "t"), ("d3", "t")]
    assert len(result.examples) == EXAMPLES


def write_tasks(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(**tasks: Any) -> list[tuple[str, list[str]]]:
    return list(evaluation_texts(DecontaminationConfig.model_validate({"against": [tasks]})))


def test_task_files_of_both_formats(tmp_path: Path) -> None:
    humaneval = write_tasks(tmp_path / "h.jsonl", [{"task_id": "H/0", "prompt": "p", "canonical_solution": "s"}])
    mbpp = write_tasks(tmp_path / "m.jsonl", [{"task_id": n, "text": f"t{n}", "code": "c"} for n in (10, 11, 510, 511)])
    assert texts(path=humaneval) == [("h.jsonl/H/0", ["p", "s"])]
    pq.write_table(pa.Table.from_pylist([{"task_id": 1, "text": "t", "code": "c", "more": 1}]), tmp_path / "m.parquet")
    assert texts(path=tmp_path / "m.parquet") == [("m.parquet/1", ["t", "c"])]
    assert [task for task, _ in texts(path=mbpp)] == ["m.jsonl/10", "m.jsonl/11", "m.jsonl/510", "m.jsonl/511"]
    assert [task for task, _ in texts(recipe="mbpp", path=mbpp)] == ["mbpp/11", "mbpp/510"]  # the scored rows
    assert texts(recipe="humaneval", path=humaneval) == [("humaneval/H/0", ["p", "s"])]


def test_bad_task_files(tmp_path: Path) -> None:
    other = write_tasks(tmp_path / "o.jsonl", [{"task_id": 1, "question": "q"}])
    with pytest.raises(UsageError) as caught:
        texts(path=other)
    assert str(caught.value) == (
        f"decontaminate.against {other}: expected tasks with task_id, prompt, canonical_solution (HumanEval) or "
        "task_id, text, code (MBPP), got columns question, task_id; give the task file that eval uses"
    )
    train = write_tasks(tmp_path / "t.jsonl", [{"task_id": 601, "text": "t", "code": "c"}])
    with pytest.raises(
        UsageError, match=r"scored rows of mbpp in .*t\.jsonl: expected at least one document, got none"
    ):
        texts(recipe="mbpp", path=train)
    with pytest.raises(UsageError, match=r"none\.jsonl: expected a file or folder, got nothing there"):
        texts(path=tmp_path / "none.jsonl")


def test_config_mistakes() -> None:
    for tasks, said in (({}, "recipe, path, or both"), ({"recipe": "the-stack-dedup"}, "one of the task recipes")):
        with pytest.raises(ValueError, match=said):
            DecontaminationConfig.model_validate({"against": [tasks]})
    with pytest.raises(ValueError, match="at least 1 item"):
        DecontaminationConfig.model_validate({"against": []})


def test_real_tasks_find_themselves(shared_data: Path) -> None:
    """Every HumanEval task long enough to have an n-gram is found in a file that quotes it; MBPP train is free of them."""
    against = DecontaminationConfig.model_validate(
        {"against": [{"recipe": "humaneval", "path": shared_data / "humaneval.jsonl"}]}
    )
    tasks = list(evaluation_texts(against))
    index = TaskIndex(tasks, against.ngram)
    assert len(tasks) == index.tasks == 164
    assert all(index.match("x = 1\n" + "".join(parts)) is not None for _, parts in tasks)
    train = read_documents(CorpusConfig(recipe="mbpp", path=shared_data / "mbpp.jsonl"))
    result = Decontamination()
    assert len(list(drop_contaminated(train, index, result))) == 374
    assert result.dropped == 0


def test_counts_by_task_set_name_the_sets_that_were_found_nowhere(tmp_path: Path) -> None:
    first = write_tasks(
        tmp_path / "a.jsonl", [{"task_id": n, "text": " ".join(WORDS[20 * n :][:20]), "code": "c"} for n in (0, 1)]
    )
    other = write_tasks(
        tmp_path / "b.jsonl", [{"task_id": "H/0", "prompt": " ".join(WORDS[60:80]), "canonical_solution": "s"}]
    )
    against = DecontaminationConfig.model_validate({"against": [{"path": first}, {"path": other}]})
    index, result = TaskIndex(evaluation_texts(against), against.ngram), Decontamination()
    texts = [" ".join(WORDS[0:20]), " ".join(WORDS[21:36]), " ".join(WORDS[2:17]), "clean"]
    assert len(list(drop_contaminated(map(document, texts), index, result))) == 1
    assert result.by_task == {"a.jsonl/0": 2, "a.jsonl/1": 1}
    assert result.by_set == {"a.jsonl": 3, "b.jsonl": 0}
    assert result.sets == {"a.jsonl": 2, "b.jsonl": 1}
