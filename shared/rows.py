"""Rows out of files and data sets, one at a time and always in the same order: JSONL, Parquet, the hub; source files.

Not for what a row means: shared/corpus.py turns rows into documents. Nothing here holds a whole file or data set.
"""

from __future__ import annotations

import fnmatch
import gzip
import io
import tokenize
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from shared.errors import UsageError
from shared.files import json_object
from shared.hub import steady_rows
from shared.retry import http_error
from shared.template import require_column

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

ROW_SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
BATCH_ROWS = 256  # Parquet rows in memory at a time; source files of 1 MB each still fit

T = TypeVar("T")
Row = dict[str, Any]
PlacedRow = tuple[str, str, Row]
"""What an error calls the row ("mbpp.jsonl line 3"), its id if no column names it ("mbpp.jsonl:3"), column -> value."""


Spoilt = Callable[[UsageError], object]
"""Called with what is wrong with one row, which is then left out; nobody to call: the error is raised."""


def file_rows(path: Path, name: str, columns: Sequence[str], spoilt: Spoilt | None = None) -> Iterator[PlacedRow]:
    """Rows of one local file, in file order.

    Args:
        path: a file whose name ends as ROW_SUFFIXES say.
        name: what errors call it.
        columns: the columns that will be read (Parquet reads no others); all if none is named.
        spoilt: hears of lines that are not JSON objects.
    Raises:
        UsageError: missing, unreadable, damaged or of another kind; names file and line.
    """
    if not path.is_file():
        raise UsageError(f"corpus {path}", expected="a file or folder", got="nothing there", do="correct corpus.path")
    if path.name.endswith(".parquet"):
        return _parquet_rows(path, name, columns)
    if path.name.endswith(ROW_SUFFIXES):
        return _jsonl_rows(path, name, spoilt)
    raise UsageError(
        f"corpus {path}",
        expected=f"a folder or a file ending in {', '.join(ROW_SUFFIXES)}",
        got=path.name,
        do="rename or convert the file",
    )


def _jsonl_rows(path: Path, name: str, spoilt: Spoilt | None) -> Iterator[PlacedRow]:
    with path.open("rb") as raw:
        packed = path.name.endswith(".gz")
        lines = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        for number, line in enumerate(_lines(lines, path), 1):
            if line.strip():
                place = f"{name} line {number}"
                row = unless_spoilt(partial(json_object, line, place), spoilt)
                if row is not None:
                    yield place, f"{name}:{number}", row


def unless_spoilt(read: Callable[[], T], spoilt: Spoilt | None) -> T | None:
    """What `read` returns; None where it refuses and somebody wants to hear of it instead."""
    try:
        return read()
    except UsageError as error:
        if spoilt is None:
            raise
        spoilt(error)
        return None


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        yield from file
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UsageError(f"corpus {path}", expected="a whole gzip file", got=str(error), do="fetch it again") from None


def _parquet_rows(path: Path, name: str, columns: Sequence[str]) -> Iterator[PlacedRow]:
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for column in columns:
                require_column(file.schema_arrow.names, column, place=name, key="the corpus columns")
            yield from _batched_rows(file, name, columns)
    except (ArrowException, OSError) as error:
        raise UsageError(
            f"corpus {path}", expected="a whole Parquet file", got=str(error), do="fetch or write it again"
        ) from None


def _batched_rows(file: ParquetFile, name: str, columns: Sequence[str]) -> Iterator[PlacedRow]:
    number = 0
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=list(columns) or None):
        for row in batch.to_pylist():
            number += 1
            yield f"{name} row {number}", f"{name}:{number}", row


def hub_rows(
    dataset: str, *, config: str | None, split: str, revision: str | None, data_dir: str | None, streaming: bool
) -> Iterator[PlacedRow]:
    """Rows of a hub data set in its own order; streamed ones never touch the disk, and outlast the hub's bad hours.

    Raises:
        UsageError: no hub, no such set, config or split, or terms not accepted; says to use corpus.path instead.
    """
    import datasets

    local = "download it and give the file as corpus.path"

    def open_rows() -> Any:
        return datasets.load_dataset(
            dataset, name=config, split=split, revision=revision, data_dir=data_dir, streaming=streaming
        )

    try:
        for number, row in enumerate(steady_rows(open_rows, f"dataset {dataset}"), 1):
            yield f"{dataset} row {number}", f"{dataset}:{number}", dict(row)
    except datasets.exceptions.DatasetNotFoundError as error:
        do = f"check the name, accept its terms on the hub and run `hf auth login`, or {local}"
        raise UsageError(f"dataset {dataset}", expected="a data set you may read", got=str(error), do=do) from None
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
        do = f"correct corpus.config, corpus.split or corpus.data_dir, or {local}"
        raise UsageError(f"dataset {dataset}", expected="readable rows", got=str(error), do=do) from None
    except (OSError, http_error()) as error:
        raise UsageError(
            f"dataset {dataset}", expected="a hub that answers", got=str(error), do=f"try again, or {local}"
        ) from None


def folder_files(root: Path, glob: str, exclude: Sequence[str]) -> list[Path]:
    """Files under `root` that match `glob` and no pattern of `exclude`, sorted by relative POSIX path.

    A link that leads out of the folder is not followed: a corpus must not pick up a home directory by accident.
    """
    inside = root.resolve()
    found = {
        path.relative_to(root).as_posix(): path
        for path in root.glob(glob)
        if path.is_file() and path.resolve().is_relative_to(inside)
    }
    return [found[name] for name in sorted(found) if not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)]


def read_source(path: Path, name: str) -> str:
    """A source file's text: UTF-8, or the encoding that a Python file declares in its first two lines (PEP 263).

    Args:
        path: the file.
        name: what an error calls it.
    Raises:
        UsageError: the bytes are not in that encoding.
    """
    raw = path.read_bytes()
    try:
        encoding = tokenize.detect_encoding(io.BytesIO(raw).readline)[0] if path.suffix == ".py" else "utf-8-sig"
        return raw.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError) as error:
        raise UsageError(
            f"source file {name}",
            expected="UTF-8 text",
            got=str(error),
            do="convert or remove it, or leave it out with corpus.exclude",
        ) from None
