"""Several sources as one corpus: shares, order, ids, and what is wrong with one of them."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from shared.config import check_config
from shared.corpus import CorpusConfig, Document, describe_corpus, read_documents
from shared.errors import UsageError
from shared.mixture import interleave


def made(name: str, count: int = 10**9) -> Iterator[Document]:
    return (Document(f"{number}", f"text {number}", 0, name, None) for number in range(count))


def test_shares_follow_the_weights_and_nothing_is_read_ahead() -> None:
    read: Counter[str] = Counter()

    def counted(name: str) -> Iterator[Document]:
        for document in made(name):
            read[name] += 1
            yield document

    drawn = Counter(
        d.source for d in islice(interleave([(5, counted("a")), (2, counted("b")), (1, counted("c"))], 0), 8000)
    )
    assert drawn == read
    for name, share in (("a", 5 / 8), ("b", 2 / 8), ("c", 1 / 8)):
        assert abs(drawn[name] - 8000 * share) < 4 * (8000 * share * (1 - share)) ** 0.5


def test_each_source_is_read_once_in_order_and_leaves_when_it_ends() -> None:
    found = list(interleave([(9, made("a", 30)), (1, made("b", 50)), (0.1, made("c", 3))], 1))
    assert Counter(d.source for d in found) == {"a": 30, "b": 50, "c": 3}
    for name in "abc":
        numbers = [int(d.id) for d in found if d.source == name]
        assert all(later == earlier + 1 for earlier, later in pairwise(numbers))
    assert len({d.source for d in found[:20]}) > 1


def test_the_order_is_the_documented_one() -> None:
    """`random()` of Python's generator is promised to stay; a share of [0, 1) belongs to each source in turn."""
    draw, expected = random.Random(7), []
    for _ in range(50):
        point = draw.random() * 4
        expected.append("a" if point < 1 else "b" if point < 3.5 else "c")
    sources = [(1.0, made("a")), (2.5, made("b")), (0.5, made("c"))]
    assert [d.source for d in islice(interleave(sources, 7), 50)] == expected
    other = [d.source for d in islice(interleave([(1.0, made("a")), (2.5, made("b")), (0.5, made("c"))], 8), 50)]
    assert other != expected


def write(path: Path, count: int, **columns: Any) -> Path:
    path.write_text("".join(json.dumps({"text": f"{path.stem} {n}", **columns}) + "\n" for n in range(count)))
    return path


def config(folder: Path, **corpus: Any) -> CorpusConfig:
    return check_config(CorpusConfig, corpus, base=folder, name="c.yaml")


def test_ids_are_unique_and_sources_named(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("x = 1\n")
    (tmp_path / "code" / "b.js").write_text("let x = 1\n")
    write(tmp_path / "rows.jsonl", 5)
    sources = [
        {"path": "rows.jsonl", "max_documents": 3},
        {"path": "rows.jsonl", "name": "again", "weight": 2, "language": "text"},
        {"path": "code", "glob": "*"},
        {"embedded": {"count": 2}},
    ]
    found = list(read_documents(config(tmp_path, sources=sources)))
    assert len({d.id for d in found}) == len(found) == 3 + 5 + 2 + 2
    by_id = {d.id: d for d in found}
    assert {"rows.jsonl:rows.jsonl:1", "again:rows.jsonl:1", "code:a.py", "code:b.js"} < set(by_id)
    assert {d.source for d in found} == {"rows.jsonl", "again", "code", "embedded"}
    languages = {name: by_id[name].language for name in ("rows.jsonl:rows.jsonl:1", "again:rows.jsonl:1", "code:b.js")}
    assert list(languages.values()) == ["python", "text", "js"]
    assert found == list(read_documents(config(tmp_path, sources=sources, seed=0)))
    some = list(read_documents(config(tmp_path, sources=sources, max_documents=4)))
    assert some == found[:4]
    assert [d.id for d in read_documents(config(tmp_path, sources=sources, seed=1))] != [d.id for d in found]


def test_a_manifest_can_say_it(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", 1)
    sources = [{"path": "rows.jsonl", "weight": 2}, {"recipe": "mbpp", "path": "m.jsonl"}, {"recipe": "humaneval"}]
    facts = describe_corpus(config(tmp_path, sources=sources, care={"python_syntax": True}))
    assert [source["name"] for source in facts["sources"]] == ["rows.jsonl", "mbpp", "humaneval"]
    assert [source["weight"] for source in facts["sources"]] == [2.0, 1.0, 1.0]
    assert facts["sources"][1]["completion"] == "{code}" and facts["sources"][2]["dataset"] == "openai/openai_humaneval"
    assert (facts["seed"], facts["licence_name"]) == (0, "CC-BY-4.0, MIT")
    assert facts["care"]["python_syntax"] is True
    assert str(tmp_path) not in json.dumps(facts)


def test_streamed_is_known_of_every_source(tmp_path: Path) -> None:
    local = {"path": "rows.jsonl"}
    assert not config(tmp_path, **local).streamed
    assert config(tmp_path, recipe="the-stack-dedup").streamed  # its recipe says so
    assert not config(tmp_path, recipe="the-stack-dedup", streaming=False).streamed
    assert not config(tmp_path, recipe="the-stack-dedup", path="stack").streamed
    assert config(tmp_path, dataset="a/b", streaming=True).streamed
    assert config(tmp_path, sources=[local, {"recipe": "humanized-code"}]).streamed
    assert not config(tmp_path, sources=[local, {"recipe": "mbpp"}]).streamed


@pytest.mark.parametrize(
    ("corpus", "said"),
    [
        ({"sources": []}, "at least 1 item"),
        (
            {"sources": [{"path": "a"}], "path": "b"},
            "no field 'path' beside sources; write it into the source it is for",
        ),
        ({"sources": [{"path": "a"}], "language": "text"}, "no field 'language' beside sources"),
        ({"path": "a", "seed": 1}, "no field 'seed' without sources, which it would shuffle"),
        ({"sources": [{"path": "x/a"}, {"path": "y/a"}]}, "different names without ':' (set `name`), not 'a'"),
        ({"sources": [{"path": "a", "name": "b:c"}]}, "without ':' (set `name`), not 'b:c'"),
        ({"sources": [{"path": "a", "weight": 0}]}, "greater than 0"),
        ({"sources": [{}]}, "exactly one of recipe, dataset, path, embedded (or recipe with path), not none of them"),
        ({"sources": [{"path": "a", "weigth": 1}]}, "did you mean 'weight'?"),
        ({"sources": [{"path": "a", "care": {}}]}, "unknown key 'sources.0.care'"),
        ({"embedded": {"count": 1}, "language": "text"}, "no field 'language' where documents come from 'embedded'"),
    ],
)
def test_config_mistakes(tmp_path: Path, corpus: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        config(tmp_path, **corpus)
    assert said in str(caught.value)


def test_what_is_wrong_with_one_source_is_told(tmp_path: Path) -> None:
    write(tmp_path / "rows.jsonl", 30)
    good, heard = {"path": "rows.jsonl", "weight": 5}, list[UsageError]()
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UsageError, match=r"^corpus empty.jsonl: expected at least one document"):
        list(read_documents(config(tmp_path, sources=[good, {"path": "empty.jsonl"}])))
    wrong = [good, {"path": "rows.jsonl", "name": "wrong", "text": "txet"}]
    with pytest.raises(UsageError, match=r"^rows.jsonl line 1: expected a column 'txet'.*did you mean 'text'"):
        list(read_documents(config(tmp_path, sources=wrong), heard.append))
    assert len(heard) == 30  # one by one, as always
    mended = write(tmp_path / "mended.jsonl", 3).read_text() + '{"text": 5}\n'
    (tmp_path / "mended.jsonl").write_text(mended)
    found = list(read_documents(config(tmp_path, sources=[good, {"path": "mended.jsonl"}]), heard.append))
    assert Counter(d.source for d in found) == {"rows.jsonl": 30, "mended.jsonl": 3}
