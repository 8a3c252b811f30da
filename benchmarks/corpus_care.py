"""What care for a corpus costs and finds, beside what reading and encoding the same text cost anyway.

    python -m benchmarks.corpus_care [--mbpp mbpp.jsonl] [--tokenizer DIR] [--documents 100000]

Filters: the standard library's source of this interpreter (and MBPP's training rows), in memory, through each filter alone
and all together. The floor is one hash over every byte. With --tokenizer also the encoding, which every capture, and every
capture that goes on after a crash, does for each document that passes.
Planted: documents of 30 lines drawn from the standard library's, every tenth a copy of an earlier one with one or two lines
replaced; near duplicates found by shared/dedup.py and, where it is installed, by datasketch's MinHash and MinHashLSH with
the same shingles, bands and permutations. Similar: planted pairs whose true Jaccard similarity reaches the threshold; found
among them; found without being planted; and memory a document kept (resident set). Rates are by processor time, since a
busy machine changes the clock's. Not a test: timings are for reading.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import random
import sysconfig
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from shared.care import Care, CareConfig
from shared.corpus import CorpusConfig, Document, read_documents
from shared.dedup import PERMUTATIONS, NearDuplicates, bands_for, shingle_hashes
from shared.tokenizer import encode_document, load_tokenizer

THRESHOLD, LINES, EVERY = 0.85, 30, 10
FILTERS: dict[str, dict[str, Any]] = {
    "exact duplicates": {"exact_duplicates": True},
    "python syntax": {"python_syntax": True},
    f"near duplicates {THRESHOLD}": {"near_duplicates": THRESHOLD},
}
FILTERS["all three"] = {name: value for one in FILTERS.values() for name, value in one.items()}


def timed(call: Callable[[Document], object], documents: Iterable[Document]) -> tuple[float, list[Any]]:
    """(Processor seconds, what `call` returned for each document)."""
    start = time.process_time()
    found = [call(document) for document in documents]
    return time.process_time() - start, found


def filters(name: str, documents: list[Document], tokenizer: str | None) -> None:
    """One table: documents and megabytes a second, and what was dropped."""
    size = sum(len(document.text.encode()) for document in documents)
    print(f"\n{name}: {len(documents)} documents, {size / 1e6:.1f} MB")

    def row(what: str, seconds: float, note: str = "") -> None:
        print(f"  {what:<26}{len(documents) / seconds:>10.0f} docs/s{size / seconds / 1e6:>9.1f} MB/s   {note}")

    row("floor: one hash", timed(lambda document: hashlib.blake2b(document.text.encode()).digest(), documents)[0])
    examples: list[str] = []
    for what, settings in FILTERS.items():
        seconds, found = timed(Care(CareConfig.model_validate(settings)).why_not, documents)
        reasons = Counter(why[0] for why in found if why)
        row(what, seconds, ", ".join(f"{reason} {count}" for reason, count in reasons.items()) or "nothing dropped")
        examples = [f"{document.id}: {why[1]}" for document, why in zip(documents, found, strict=True) if why]
    if tokenizer is not None:
        loaded = load_tokenizer(tokenizer)
        row("encoding", timed(lambda d: encode_document(loaded, d.text, d.prompt_chars), documents)[0])
    print("\n".join(f"    {example[:120]}" for example in examples[:8]))


def planted(count: int, pool: list[str]) -> tuple[list[tuple[str, str]], set[str]]:
    """((name, text) of each document, names of the planted copies that are similar enough)."""
    rng = random.Random(0)
    documents: list[tuple[str, str]] = []
    similar: set[str] = set()
    for number in range(count):
        if number % EVERY:
            documents.append((str(number), "\n".join(rng.sample(pool, LINES))))
            continue
        original = rng.choice(documents or [("", "\n".join(rng.sample(pool, LINES)))])[1]
        lines = original.split("\n")
        for place in rng.sample(range(len(lines)), rng.choice((1, 2))):
            lines[place] = rng.choice(pool)
        documents.append((str(number), "\n".join(lines)))
        one, two = (set(shingle_hashes(text).tolist()) for text in (original, documents[-1][1]))
        if documents[:-1] and len(one & two) / len(one | two) >= THRESHOLD:
            similar.add(str(number))
    return documents, similar


def datasketch_near() -> Callable[[str, str], str | None]:
    """The same question to datasketch: a similar document that came before, or None and it is kept."""
    from datasketch import MinHash, MinHashLSH

    empty = MinHash(PERMUTATIONS, hashfunc=int, scheme="affine32")
    index, kept = MinHashLSH(num_perm=PERMUTATIONS, params=bands_for(THRESHOLD)), dict[str, Any]()

    def like(text: str, name: str) -> str | None:
        sketch = empty.copy()
        sketch.update_batch(shingle_hashes(text).tolist())
        for other in index.query(sketch):
            if sketch.jaccard(kept[other]) >= THRESHOLD:
                return str(other)
        index.insert(name, sketch, check_duplication=False)
        kept[name] = sketch
        return None

    return like


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def near(
    what: str, like: Callable[[str, str], str | None], documents: list[tuple[str, str]], similar: set[str]
) -> None:
    """One row of the table of planted duplicates."""
    before, start = resident(), time.process_time()
    found = {name for name, text in documents if like(text, name) is not None}
    seconds, grown = time.process_time() - start, resident() - before
    wrong = sum(int(name) % EVERY != 0 for name in found)
    print(
        f"  {what:<12}{len(documents) / seconds:>8.0f} docs/s   found {len(found & similar)} of {len(similar)} similar, "
        f"{len(found - similar) - wrong} planted below the threshold, {wrong} not planted   "
        f"{grown / (len(documents) - len(found)) / 1e3:.2f} kB a document kept"
    )


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mbpp", type=Path, help="mbpp.jsonl as published")
    parser.add_argument("--tokenizer", help="directory or hub id")
    parser.add_argument("--documents", type=int, default=100_000, help="of the planted corpus")
    arguments = parser.parse_args()
    library = CorpusConfig(path=Path(sysconfig.get_paths()["stdlib"]), exclude=("*site-packages*",))
    documents = list(read_documents(library, lambda _: None))
    pool = sorted({line for document in documents for line in document.text.splitlines() if len(line.split()) > 2})
    made, similar = planted(arguments.documents, pool)
    size = sum(len(text) for _, text in made)
    print(f"planted: {len(made)} documents of {size / len(made):.0f} characters, bands and rows {bands_for(THRESHOLD)}")
    near("ours", NearDuplicates(THRESHOLD, 10**7).like, made, similar)
    if importlib.util.find_spec("datasketch"):
        near("datasketch", datasketch_near(), made, similar)
    filters("standard library", documents, arguments.tokenizer)
    if arguments.mbpp:
        rows = list(read_documents(CorpusConfig(recipe="mbpp", path=arguments.mbpp)))
        filters("MBPP, training rows", rows, arguments.tokenizer)


if __name__ == "__main__":
    main()
