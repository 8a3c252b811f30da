"""Corpora: every kind of source, the fixed order, and the exact sentences for bad ones."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.config import StrictModel, check_config
from shared.corpus import CorpusConfig, Document, describe_corpus, read_documents
from shared.errors import UsageError

ROWS = [
    {"text": f"Task {i}.", "code": f"def f{i}():\r\n\treturn {i}", "test_list": [f"assert f{i}() == {i}"], "task_id": i}
    for i in (600, 601, 602, 974, 975)
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def documents(**fields: Any) -> list[Document]:
    return list(read_documents(CorpusConfig(**fields)))


def sentence(**fields: Any) -> str:
    with pytest.raises(UsageError) as caught:
        documents(**fields)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_mbpp_recipe_reads_the_train_rows_as_prompt_and_solution(tmp_path: Path) -> None:
    found = documents(recipe="mbpp", path=write_rows(tmp_path / "mbpp.jsonl", ROWS))
    assert [document.id for document in found] == ["mbpp/601", "mbpp/602", "mbpp/974"]
    first = found[0]
    assert first.text[: first.prompt_chars] == '"""\nTask 601.\nassert f601() == 601\n"""\n'
    assert first.text[first.prompt_chars :] == "def f601():\n\treturn 601"  # CRLF is gone
    assert (first.source, first.licence) == ("mbpp", "CC-BY-4.0")


def test_humaneval_recipe(tmp_path: Path) -> None:
    row = {
        "task_id": "HumanEval/0",
        "prompt": "def f():\n",
        "canonical_solution": "    return 1\n",
        "test": "",
        "entry_point": "f",
    }
    found = documents(recipe="humaneval", path=write_rows(tmp_path / "h.jsonl.gz", [row]))
    assert found == [Document("humaneval/HumanEval/0", "def f():\n    return 1\n", 9, "humaneval", "MIT")]


def test_humanized_code_recipe_leaves_out_other_languages_and_empty_rows(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"language": "Python", "cleaned_generated_code": "a = 1", "code": "b"},
        {"language": "Java", "cleaned_generated_code": "int a;", "code": "b"},
        {"language": "python", "cleaned_generated_code": None, "code": "b"},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    assert [(d.id, d.text) for d in documents(recipe="humanized-code", path=path)] == [("rows.jsonl:1", "a = 1")]
    replaced = documents(recipe="humanized-code", path=path, text="code")
    assert [document.text for document in replaced] == ["b"]


def test_the_stack_recipe_keeps_licences(tmp_path: Path) -> None:
    rows = [{"hexsha": "ab", "content": "x = 1\n", "max_stars_repo_licenses": ["MIT", "Apache-2.0"], "size": 6}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "part.parquet")
    found = documents(recipe="the-stack-dedup", path=tmp_path)  # a folder of Parquet parts
    assert found == [Document("the-stack-dedup/ab", "x = 1\n", 0, "the-stack-dedup", "MIT, Apache-2.0")]


def test_jsonl_gz_and_parquet_give_the_same_documents(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"text": f"text {i}", "name": f"n{i}", "unused": {"deep": i}} for i in range(600)
    ]  # several Parquet batches
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    paths = [write_rows(tmp_path / "a.jsonl", rows), write_rows(tmp_path / "a.jsonl.gz", rows), tmp_path / "a.parquet"]
    texts = [[document.text for document in documents(path=path)] for path in paths]
    assert texts[0] == texts[1] == texts[2] == [f"text {i}" for i in range(600)]
    assert [document.id for document in documents(path=paths[2], max_documents=2)] == ["a.parquet:1", "a.parquet:2"]


def test_folder_is_sorted_by_relative_path_and_filtered(tmp_path: Path) -> None:
    for name in ("b.py", "a/z.py", "a.py", "a/b.txt", "tests/t.py", "B.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n")
    assert [d.id for d in documents(path=tmp_path)] == ["B.py", "a.py", "a/z.py", "b.py", "tests/t.py"]
    assert [d.id for d in documents(path=tmp_path, glob="*.py", exclude=("b*",))] == ["B.py", "a.py"]
    assert [d.id for d in documents(path=tmp_path, exclude=("tests/*",), max_documents=3)] == ["B.py", "a.py", "a/z.py"]


def test_links_that_leave_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("KEY = 1\n")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "deep.py").write_text("KEY = 2\n")
    root = tmp_path / "root"
    root.mkdir()
    (root / "own.py").write_text("x = 1\n")
    (root / "inner.py").symlink_to(root / "own.py")
    (root / "leak.py").symlink_to(tmp_path / "secret.py")
    (root / "folder").symlink_to(tmp_path / "outside")
    (root / "broken.py").symlink_to(tmp_path / "nothing")
    os.mkfifo(root / "pipe.py")  # reading it would hang
    assert [d.id for d in documents(path=root)] == ["inner.py", "own.py"]


def test_source_files_in_declared_encodings(tmp_path: Path) -> None:
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe4'\n")
    (tmp_path / "marked.py").write_bytes(b"\xef\xbb\xbfx = 1\n")
    assert [d.text.splitlines()[-1] for d in documents(path=tmp_path)] == ["x = 'ä'", "x = 1"]
    (tmp_path / "zz.py").write_bytes(b"x = '\xe4'\n")
    assert sentence(path=tmp_path) == (
        "source file zz.py: expected UTF-8 text, got invalid or missing encoding declaration; "
        "convert or remove it, or leave it out with corpus.exclude"
    )
    assert len(documents(path=tmp_path, exclude=("zz.py",))) == 2
    (tmp_path / "zz.txt").write_bytes(b"\xe4")
    assert "source file zz.txt: expected UTF-8 text, got 'utf-8' codec can't decode byte 0xe4" in sentence(
        path=tmp_path, glob="*.txt"
    )


def test_embedded_documents() -> None:
    faulty = documents(embedded={"count": 40, "seed": 3, "faulty": 0.5})
    clean = documents(embedded={"count": 40, "seed": 3})
    assert 5 < sum(wrong != right for wrong, right in zip(faulty, clean, strict=True)) < 35
    found = documents(embedded={"count": 5, "seed": 3})
    assert len({document.id for document in found}) == 5
    assert all(0 < document.prompt_chars < len(document.text) for document in found)
    assert found[:3] == documents(embedded={"count": 3, "seed": 3})


def test_missing_column_lists_columns_and_the_nearest(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"text": "ok", "kode": "a"}, {"kode": "b"}])
    assert sentence(path=path) == (
        "x.jsonl line 2: expected a column 'text', got columns kode; "
        "set corpus.text (or corpus.prompt and corpus.completion) to the columns that are there"
    )
    assert sentence(path=path, prompt="{text}", completion="{code}") == (
        "x.jsonl line 1: expected a column 'code', got columns kode, text; "
        "did you mean 'kode'? set corpus.completion to the columns that are there"
    )
    pq.write_table(pa.Table.from_pylist([{"kode": "a"}]), tmp_path / "x.parquet")
    assert "x.parquet: expected a column 'code', got columns kode; did you mean 'kode'?" in sentence(
        path=tmp_path / "x.parquet", text="code"
    )
    for field, key in (("id", "corpus.id"), ("licence", "corpus.licence"), ("where", "corpus.where")):
        said = sentence(path=path, text="text", **{field: {"zz": "*"} if field == "where" else "zz"})
        assert (
            said
            == f"x.jsonl line 1: expected a column 'zz', got columns kode, text; set {key} to the columns that are there"
        )


def test_bad_rows_get_one_line(tmp_path: Path) -> None:
    def bad(line: bytes) -> str:
        (tmp_path / "x.jsonl").write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
        return sentence(path=tmp_path / "x.jsonl")

    assert bad(b'{"text": 5}') == (
        "x.jsonl line 3: expected text in column 'text', got a int; repair the row or point corpus.text at another column"
    )
    assert bad(b'{"text": null}').startswith("x.jsonl line 3: expected text in column 'text', got null")
    assert bad(b'{"text": ').startswith("x.jsonl line 3: expected one JSON object, got Expecting value")
    assert bad(b'["text"]') == "x.jsonl line 3: expected one JSON object, got list; repair or remove the line"
    assert bad(b'{"text": "\xff"}').startswith("x.jsonl line 3: expected one JSON object, got 'utf-8' codec")
    assert bad(b'{"text": "\\ud800"}') == (
        "x.jsonl line 3: expected text that UTF-8 can hold, got half a surrogate pair; repair the row"
    )
    assert bad(b"[" * 200_000).startswith("x.jsonl line 3: expected one JSON object, got ")


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl"
    assert (
        sentence(path=missing) == f"corpus {missing}: expected a file or folder, got nothing there; correct corpus.path"
    )
    (tmp_path / "x.csv").write_text("a,b\n")
    assert "expected a folder or a file ending in .jsonl, .jsonl.gz, .parquet, got x.csv" in sentence(
        path=tmp_path / "x.csv"
    )
    whole = gzip.compress(json.dumps({"text": "a" * 5000}).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-9])
    (tmp_path / "not.jsonl.gz").write_bytes(b'{"text": "plain"}\n')
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    for name, kind in (("cut.jsonl.gz", "gzip"), ("not.jsonl.gz", "gzip"), ("cut.parquet", "Parquet")):
        assert f"{name}: expected a whole {kind} file, got " in sentence(path=tmp_path / name)


def test_a_corpus_without_documents(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    do = "check path, glob, split, where (links out of a folder are not followed)"
    expected = f"expected at least one document, got none; {do}"
    assert sentence(path=tmp_path / "empty.jsonl") == f"corpus empty.jsonl: {expected}"
    (tmp_path / "folder").mkdir()
    assert sentence(path=tmp_path / "folder") == f"corpus folder: {expected}"
    only_test = write_rows(tmp_path / "test.jsonl", ROWS[:1])
    assert sentence(recipe="mbpp", path=only_test) == f"corpus mbpp: {expected}"


def test_a_hub_that_cannot_be_reached_says_what_to_do() -> None:
    said = sentence(recipe="mbpp")
    assert said.startswith("dataset google-research-datasets/mbpp: expected a hub that answers, got ")
    assert said.endswith("; try again, or download it and give the file as corpus.path")


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_through_the_datasets_library(tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local folder goes the same way through load_dataset as a hub id does."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    write_rows(tmp_path / "set" / "train.jsonl", [{"body": f"text {i}", "who": "MIT"} for i in range(5)])
    found = documents(dataset=str(tmp_path / "set"), text="body", licence="who", streaming=streaming)
    assert [(d.text, d.licence) for d in found] == [(f"text {i}", "MIT") for i in range(5)]
    assert sentence(dataset=str(tmp_path / "set"), text="body", split="nope", streaming=streaming).endswith(
        "correct corpus.config, corpus.split or corpus.data_dir, or download it and give the file as corpus.path"
    )


class Command(StrictModel):
    """A command's config as stage 1 has one."""

    corpus: CorpusConfig


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ({}, "exactly one of recipe, dataset, path, embedded (or recipe with path), not none of them"),
        ({"recipe": "mbpp", "dataset": "a/b"}, "not recipe and dataset"),
        ({"dataset": "a/b", "path": "x"}, "not dataset and path"),
        ({"recipe": "mbbp"}, "one of the recipes mbpp, humaneval, humanized-code, the-stack-dedup, got 'mbbp'"),
        ({"path": "x", "text": "a", "completion": "{b}"}, "text, or prompt and completion, not both"),
        ({"path": "x", "prompt": "{b}"}, "a completion template beside the prompt template"),
        ({"path": "x", "split": "train"}, "no field 'split' where documents come from 'path', which does not use it"),
        ({"dataset": "a/b", "glob": "*.py"}, "no field 'glob' where documents come from 'dataset'"),
        ({"embedded": {"count": 3}, "text": "a"}, "no field 'text' where documents come from 'embedded'"),
        ({"embedded": {"count": 0}}, "greater than 0"),
        ({"path": "x", "glob": "../*.py"}, "a pattern inside the folder, such as **/*.py"),
        ({"path": "x", "colum": "a"}, "unknown key 'corpus.colum'"),
    ],
)
def test_config_mistakes(tmp_path: Path, corpus: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_config(Command, {"corpus": corpus}, base=tmp_path, name="c.yaml")
    assert said in str(caught.value)


def test_glob_on_a_file_is_a_mistake(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"text": "a"}])
    assert sentence(path=path, glob="*.py").endswith("expected a folder, got no folder; remove glob and exclude")


def test_description_for_the_manifest_has_recipe_and_no_machine_path(tmp_path: Path) -> None:
    config = check_config(
        Command,
        {"corpus": {"recipe": "mbpp", "path": "mbpp.jsonl", "where": {"task_id": [1, 3]}}},
        base=tmp_path,
        name="c",
    ).corpus
    assert config.path == tmp_path.resolve() / "mbpp.jsonl"
    facts = describe_corpus(config)
    assert facts["path"] == "mbpp.jsonl"
    assert facts["where"] == {"task_id": [1, 3]}
    assert (facts["completion"], facts["licence_name"]) == ("{code}", "CC-BY-4.0")
    assert str(tmp_path) not in json.dumps(facts)
    assert describe_corpus(CorpusConfig.model_validate({"embedded": {"count": 9}}))["embedded"] == {
        "count": 9,
        "seed": 0,
        "faulty": 0.0,
    }
    hub = describe_corpus(CorpusConfig(recipe="the-stack-dedup", revision="abc"))
    assert (hub["dataset"], hub["data_dir"], hub["revision"]) == ("bigcode/the-stack-dedup", "data/python", "abc")


def test_real_mbpp_train(shared_data: Path) -> None:
    found = documents(recipe="mbpp", path=shared_data / "mbpp.jsonl")
    assert len(found) == 374
    assert (found[0].id, found[-1].id) == ("mbpp/601", "mbpp/974")
    assert not any("\r\n" in document.text for document in found)
    assert len(documents(recipe="humaneval", path=shared_data / "humaneval.jsonl")) == 164
