"""A capture of a mixture with every filter on: what the manifest counts, what stderr names, and that parts agree."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from cache_records import files_of
from tiny_capture import tiny_config

from cache.merge import merge
from cache.reader import open_cache
from shared.corpus_config import CorpusConfig
from shared.windows import Window, WindowCounts
from stage1_teacher.ahead import look_ahead, manifest_counts
from stage1_teacher.capture import capture
from stage1_teacher.config import CaptureConfig
from stage1_teacher.parts import Part
from stage1_teacher.reading import Reader

TASK = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


def write(path: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path)}


@pytest.fixture
def config(tmp_path: Path) -> CaptureConfig:
    """Three sources: rows with licences and every kind of trouble, rows in another language, a folder of code."""
    rng = random.Random(0)
    lines = [f"a{rng.randrange(100)} = b{rng.randrange(100)} + {number}" for number in range(14)]
    good = [{"text": f"x{number} = {number}\n", "l": "MIT"} for number in range(12)]
    trouble = [
        {"text": "x1 = 1  \r\n", "l": "MIT"},
        {"text": "x2 = (", "l": "MIT"},
        {"text": "y = 1", "l": "GPL-3.0"},
        {"text": "\n".join(lines), "l": "Apache-2.0, MIT"},
        {"text": "\n".join([*lines, "z = 1"]), "l": "MIT"},
        {"text": f"s = '{TASK}'", "l": "MIT"},
        {"text": None, "l": "MIT"},
        {"text": " ", "l": "MIT"},
    ]
    for number, row in enumerate(trouble):
        good.insert(2 * number + 3, row)
    (tmp_path / "code").mkdir()
    for number in range(6):
        (tmp_path / "code" / f"{number}.py").write_text(f"def f{number}():\n    pass\n")
    write(tmp_path / "tasks.jsonl", [{"task_id": 1, "text": TASK, "code": "pass"}])
    write(tmp_path / "others.jsonl", [{"task_id": 1, "text": TASK.replace("e", "u"), "code": "pass"}])
    corpus = {
        "sources": [
            write(tmp_path / "good.jsonl", good) | {"licence": "l", "weight": 3},
            write(tmp_path / "prose.jsonl", [{"text": f"Say {n} words."} for n in range(5)]) | {"language": "english"},
            {"path": str(tmp_path / "code"), "weight": 0.5},
        ],
        "seed": 3,
        "care": {
            "licences": ["MIT", "Apache-2.0", "unstated"],
            "exact_duplicates": True,
            "python_syntax": True,
            "near_duplicates": 0.85,
        },
    }
    against = [{"path": str(tmp_path / name)} for name in ("tasks.jsonl", "others.jsonl")]
    windows = {"decontaminate": {"against": against}}
    return tiny_config(tmp_path, corpus=corpus, windows=windows, windows_per_shard=5, shape=None)


COUNTS = {
    "documents": 31,
    "windows": 24,
    "dropped_contaminated": 1,
    "dropped_duplicate": 1,
    "dropped_licence": 1,
    "dropped_near_duplicate": 1,
    "dropped_syntax": 1,
    "dropped_too_short": 1,
    "dropped_unreadable": 1,
    "contaminated_others.jsonl": 0,
    "contaminated_tasks.jsonl": 1,
    "licence_Apache-2.0, MIT": 1,
    "licence_GPL-3.0": 1,
    "licence_MIT": 17,
    "licence_unstated": 11,
    "source_code": 6,
    "source_good.jsonl": 19,
    "source_prose.jsonl": 5,
}


def test_the_manifest_counts_every_document(config: CaptureConfig, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = capture(config, progress=False)
    assert manifest.counts == COUNTS
    dropped = sum(count for name, count in COUNTS.items() if name.startswith("dropped_"))
    assert manifest.counts["documents"] == manifest.counts["windows"] + dropped  # one window a document here
    said = capsys.readouterr().err.splitlines()
    expected = {
        "dropped: licence: good.jsonl:good.jsonl:8 (GPL-3.0)",
        "dropped: duplicate: good.jsonl:good.jsonl:4 (came before)",
        "dropped: syntax: good.jsonl:good.jsonl:6 (line 1: '(' was never closed)",
        "dropped: near_duplicate: good.jsonl:good.jsonl:12 (like good.jsonl:good.jsonl:10)",
        "dropped: contaminated: good.jsonl:good.jsonl:14 (tasks.jsonl/1)",
    }
    assert {line for line in said if line.startswith("dropped: ")} == expected
    assert [line for line in said if line.startswith("skipped: ")] == [
        "skipped: good.jsonl line 16: expected text in column 'text', got null; repair the row or point corpus.text at "
        "another column"
    ]
    facts = manifest.identity.corpus
    assert [source["name"] for source in facts["sources"]] == ["good.jsonl", "prose.jsonl", "code"]  # type: ignore
    assert str(config.cache.parent) not in json.dumps(facts)
    documents = {open_cache(config.cache)[number].document for number in range(24)}
    assert {"code:0.py", "prose.jsonl:prose.jsonl:1", "good.jsonl:good.jsonl:1"} < documents


def test_parts_agree_and_merge_into_the_same_cache(config: CaptureConfig, tmp_path: Path) -> None:
    for number in (1, 2):
        capture(config, part=Part(number, 2), progress=False)
    merge([Part(number, 2).directory(config.cache) for number in (1, 2)], tmp_path / "merged")
    capture(config, progress=False)
    assert files_of(tmp_path / "merged") == files_of(config.cache)


def test_a_recipe_that_streams_is_not_read_ahead(tmp_path: Path) -> None:
    """Its data set is larger than the disk: cutting it once for nothing would take days."""
    config = tiny_config(tmp_path)
    streamed = config.model_copy(update={"corpus": CorpusConfig(recipe="the-stack-dedup")})
    assert look_ahead(streamed, None) is None  # type: ignore[arg-type]


def test_names_of_strangers_stay_on_their_line() -> None:
    counts = WindowCounts(documents=3)
    counts.licences.update({"a\nb\x1b[2J": 2, "x" * 300: 1})
    assert list(manifest_counts(counts)) == ["documents", "windows", "licence_a b [2J", "licence_" + "x" * 100]


def test_a_stream_goes_on_without_the_teacher_reading_again(
    config: CaptureConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is known ahead of a stream: what was sealed is cut and compared again, by the tokenizer alone."""
    good, *others = config.corpus.sources or ()
    sources = (good.model_copy(update={"streaming": True}), *others)
    config = config.model_copy(update={"corpus": config.corpus.model_copy(update={"sources": sources})})
    real, read = Reader.read_shard, list[int]()

    def cut_off(reader: Reader, windows: list[Window], number: int, advance: Any) -> Any:
        if number == 3 and 3 not in read:
            read.append(number)
            raise KeyboardInterrupt
        read.append(number)
        return real(reader, windows, number, advance)

    monkeypatch.setattr(Reader, "read_shard", cut_off)
    with pytest.raises(KeyboardInterrupt):
        capture(config, progress=False)
    manifest = capture(config, progress=False)
    assert read == [0, 1, 2, 3, 3, 4]
    assert manifest.counts == COUNTS and "windows_sha256" not in manifest.identity.corpus
    capture(config.model_copy(update={"cache": tmp_path / "whole"}), progress=False)
    assert files_of(config.cache) == files_of(tmp_path / "whole")
