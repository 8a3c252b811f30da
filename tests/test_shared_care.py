"""Care for a corpus: each filter, their order, what is counted and named, and that it streams."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_model import byte_tokenizer

from shared.care import Care, CareConfig, careful
from shared.config import check_config
from shared.corpus import CorpusConfig, Document, read_documents
from shared.errors import UsageError
from shared.windows import EXAMPLES, LICENCES, OTHER, WindowConfig, WindowCounts, read_windows


def document(text: str, name: str = "d", licence: str | None = None, language: str = "python") -> Document:
    return Document(name, text, 0, "test", licence, language)


def verdicts(config: dict[str, Any], documents: list[Document]) -> list[str | None]:
    why_not = Care(CareConfig.model_validate(config)).why_not
    return [found and found[0] for found in map(why_not, documents)]


def program(rng: random.Random, lines: int = 30) -> list[str]:
    return [f"name_{rng.randrange(10**6)} = call_{rng.randrange(10**6)}({rng.randrange(100)})" for _ in range(lines)]


@pytest.mark.parametrize(
    ("stated", "passes"),
    [
        ("MIT", True),
        ("mit", True),
        ("MIT, Apache-2.0", True),
        ("MIT, GPL-3.0", False),
        ("GPL-3.0", False),
        ("LGPL-2.1, or later", True),
        ("MIT,", False),
        (None, False),
        ("", False),
    ],
)
def test_licences_all_of_them_must_be_allowed(stated: str | None, passes: bool) -> None:
    config = {"licences": ["mit", "Apache-2.0", "LGPL-2.1, or later"]}
    assert verdicts(config, [document("x", licence=stated)]) == [None if passes else "licence"]


def test_none_stated_can_be_allowed() -> None:
    documents = [document("x"), document("y", licence="MIT"), document("z", licence="GPL-3.0")]
    assert verdicts({"licences": ["MIT", "unstated"]}, documents) == [None, None, "licence"]


def test_syntax_is_asked_of_python_alone() -> None:
    documents = [document("x = "), document("x = ", language="js"), document("x = 1")]
    assert verdicts({"python_syntax": True}, documents) == ["syntax", None, None]


def test_the_order_spares_what_is_fine_from_what_went_before() -> None:
    """A refused document must not take its allowed or parsing twin with it."""
    rng = random.Random(1)
    lines = program(rng)
    text, broken = "\n".join(lines), "\n".join([*lines, "x ="])
    config = {"licences": ["MIT"], "exact_duplicates": True, "python_syntax": True, "near_duplicates": 0.85}
    documents = [
        document(text, licence="GPL-3.0"),
        document(broken, licence="MIT"),
        document(text, licence="MIT"),
        document(text + "  \r\n", licence="MIT"),
        document("\n".join([*lines, "x = 1"]), licence="MIT"),
    ]
    assert verdicts(config, documents) == ["licence", "syntax", None, "duplicate", "near_duplicate"]


def test_off_means_off() -> None:
    documents = [document("x = "), document("x = "), document("x", licence="GPL")]
    assert verdicts({}, documents) == [None] * 3
    assert list(careful(documents, None, None)) == documents


def test_it_streams_in_order_and_says_why() -> None:
    read: list[int] = []

    def endless() -> Iterator[Document]:
        for number in range(10**9):
            read.append(number)
            yield document(f"x = {number // 2}", f"d{number}")

    heard: list[tuple[str, str, str]] = []
    config = CareConfig(exact_duplicates=True)
    kept = careful(endless(), config, lambda document, reason, why: heard.append((document.id, reason, why)))
    assert [next(kept).id for _ in range(5)] == ["d0", "d2", "d4", "d6", "d8"]
    assert len(read) == 9
    assert heard == [(f"d{number}", "duplicate", "came before") for number in (1, 3, 5, 7)]


@pytest.mark.parametrize(
    ("care", "said"),
    [
        ({"near_duplicates": 0.4}, "greater than or equal to 0.5"),
        ({"near_duplicates": 1.5}, "less than or equal to 1"),
        ({"near_duplicates": 0.8, "remember": 1}, "greater than or equal to 2"),
        ({"remember": 100}, "no field 'remember' without near_duplicates, which alone uses it"),
        ({"licences": []}, "at least 1 item"),
        ({"near_duplicate": 0.85}, "did you mean 'near_duplicates'?"),
    ],
)
def test_config_mistakes(tmp_path: Path, care: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_config(CorpusConfig, {"path": "x", "care": care}, base=tmp_path, name="c.yaml")
    assert said in str(caught.value)


def corpus(folder: Path, rows: list[dict[str, Any]], **care: Any) -> CorpusConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return check_config(CorpusConfig, {"path": str(path), "licence": "l", "care": care}, base=folder, name="c")


def test_windows_count_and_name_what_is_left_out(tmp_path: Path) -> None:
    lines = program(random.Random(2), 12)
    rows = [{"text": "\n".join(lines), "l": "MIT"}, {"text": "\n".join([*lines, "y = 2"]), "l": "MIT"}]
    rows += [{"text": "x = 1", "l": "MIT"}] * 8 + [{"text": "x = ", "l": None}, {"text": "x", "l": "GPL-3.0"}]
    care = {"licences": ["MIT", "unstated"], "exact_duplicates": True, "python_syntax": True, "near_duplicates": 0.85}
    config = WindowConfig(max_length=2000)
    windows, counts = read_windows(corpus(tmp_path, rows, **care), byte_tokenizer(), config, skip_unreadable=True)
    assert [window.document for window in windows] == ["rows.jsonl:1", "rows.jsonl:3"]
    assert (counts.documents, counts.windows) == (12, 2)
    assert counts.dropped == {"licence": 1, "duplicate": 7, "syntax": 1, "near_duplicate": 1}
    assert counts.licences == {"MIT": 10, "": 1, "GPL-3.0": 1}
    assert counts.sources == {"rows.jsonl": 12}
    assert counts.examples["licence"] == ["rows.jsonl:12 (GPL-3.0)"]
    assert counts.examples["near_duplicate"] == ["rows.jsonl:2 (like rows.jsonl:1)"]
    assert counts.examples["syntax"] == ["rows.jsonl:11 (line 1: invalid syntax)"]
    assert len(counts.examples["duplicate"]) == EXAMPLES


def test_nothing_left_says_what_went(tmp_path: Path) -> None:
    rows = [{"text": "x = ", "l": "MIT"}, {"text": "y", "l": "GPL-3.0"}]
    care = {"licences": ["MIT"], "python_syntax": True}
    windows, _ = read_windows(corpus(tmp_path, rows, **care), byte_tokenizer(), WindowConfig())
    with pytest.raises(UsageError, match=r"got none of 2 documents \(licence 1, syntax 1\)"):
        list(windows)


def test_names_of_licences_are_bounded() -> None:
    counts = WindowCounts()
    for number in range(3 * LICENCES):
        counts.read(document("x", licence=f"L{number % (LICENCES + 40)}"))
    assert len(counts.licences) == LICENCES + 1
    assert counts.licences.total() == counts.documents == 3 * LICENCES
    assert counts.licences[OTHER] == 3 * LICENCES - sum(counts.licences[f"L{number}"] for number in range(LICENCES))


def test_max_documents_counts_what_is_read(tmp_path: Path) -> None:
    rows = [{"text": "x = 1", "l": "MIT"}] * 3 + [{"text": "x = 2", "l": "MIT"}] * 3
    config = corpus(tmp_path, rows, exact_duplicates=True).model_copy(update={"max_documents": 4})
    assert [d.id for d in read_documents(config)] == ["rows.jsonl:1", "rows.jsonl:4"]


def test_real_source_files(tmp_path: Path) -> None:
    """A package of the standard library, twice, once with other line ends, and a file of Python 2."""
    import asyncio

    for path in sorted(Path(asyncio.__file__).parent.glob("*.py"))[:8]:
        raw = path.read_bytes()
        (tmp_path / f"a_{path.name}").write_bytes(raw)
        (tmp_path / f"b_{path.name}").write_bytes(raw.replace(b"\n", b"\r\n"))
        (tmp_path / f"c_{path.name}").write_bytes(raw + b"\n__checked__ = True\n")
    (tmp_path / "old.py").write_text("print 'hello'\n")
    care = {"exact_duplicates": True, "python_syntax": True, "near_duplicates": 0.85}
    config = check_config(CorpusConfig, {"path": str(tmp_path), "care": care}, base=tmp_path, name="c")
    gone: dict[str, list[str]] = {}
    kept = read_documents(config, dropped=lambda document, reason, _: gone.setdefault(reason, []).append(document.id))
    names = [d.id for d in kept]
    assert len(names) == 8 and all(name.startswith("a_") for name in names)
    assert {reason: {name[:2] for name in found} for reason, found in gone.items()} == {
        "duplicate": {"b_"},
        "near_duplicate": {"c_"},
        "syntax": {"ol"},
    }
