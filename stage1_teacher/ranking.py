"""The order among one prompt's answers: which of them the others agree with (self-consistency, Wang et al. 2022).

Answers that are dropped or fail their tests never get here. Of those that do:

1. agreement: the share of answers whose program has the same normal form (layout, comments, names of variables apart);
2. similarity: the mean share of word quadruples in common with the others, to one decimal: the medoid of texts;
3. documentation: a docstring, a comment;
4. length: the shorter;
5. the lower index.

Not for reading answers (stage1_teacher/answers.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stage1_teacher.answers import Reading
from stage1_teacher.programs import documentation, normal_form, shingles, similarity

ORDER = ("agreement", "similarity", "documentation", "shorter", "lower index")
DUPLICATE, NEAR_DUPLICATE, BEATEN = "duplicate", "near duplicate", "beaten by others of its prompt"

Words = frozenset[tuple[str, ...]]


@dataclass(frozen=True)
class Ranked:
    """One answer and what its place rests on.

    Attributes:
        agreement: share of the prompt's answers with the same program, 0 to 1; 0 for prose.
        similarity: mean over the others, 0 to 1; 1 where there is no other.
        documentation: 0 to 2.
        form: the program's normal form, or None.
    """

    index: int
    reading: Reading
    agreement: float
    similarity: float
    documentation: int
    form: str | None
    words: Words

    @property
    def place(self) -> tuple[float, float, int, int, int]:
        """Smaller is better."""
        length = len(self.reading.completion)
        return -self.agreement, -round(self.similarity, 1), -self.documentation, length, self.index


def ranked(readings: Sequence[tuple[int, Reading]]) -> list[Ranked]:
    """One prompt's answers, the best first.

    Args:
        readings: (index, answer) of those that are good enough.
    """
    words = {reading.completion: shingles(reading.completion) for _, reading in readings}
    counts = Counter(reading.completion for _, reading in readings)
    means = {text: _mean_similarity(text, words, counts) for text in words}
    forms = {code: normal_form(code) for _, reading in readings if (code := reading.code) is not None}
    alike = Counter(forms[reading.code] for _, reading in readings if reading.code is not None)
    found = []
    for index, reading in readings:
        form = forms[reading.code] if reading.code is not None else None
        agreement = alike[form] / len(readings) if form is not None else 0.0
        documented = documentation(reading.code) if reading.code is not None else 0
        text = reading.completion
        found.append(Ranked(index, reading, agreement, means[text], documented, form, words[text]))
    return sorted(found, key=lambda each: each.place)


def _mean_similarity(text: str, words: dict[str, Words], counts: Counter[str]) -> float:
    others = counts.total() - 1
    if others == 0:
        return 1.0
    same = counts[text] - 1
    rest = sum(count * similarity(words[text], words[other]) for other, count in counts.items() if other != text)
    return (same + rest) / others


def best(order: Sequence[Ranked], keep: int, near: float) -> Iterator[tuple[Ranked, str | None]]:
    """Each answer with the reason it is dropped for, or None: at most `keep`, no two of them nearly the same."""
    kept: list[Ranked] = []
    for each in order:
        reason = _reason(each, kept, keep, near)
        if reason is None:
            kept.append(each)
        yield each, reason


def _reason(each: Ranked, kept: Sequence[Ranked], keep: int, near: float) -> str | None:
    if any(each.reading.completion == other.reading.completion for other in kept):
        return DUPLICATE
    for other in kept:
        same = each.form is not None and each.form == other.form
        if same or similarity(each.words, other.words) >= near:
            return NEAR_DUPLICATE
    return BEATEN if len(kept) >= keep else None
