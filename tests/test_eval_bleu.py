"""BLEU is sacrebleu's own, with the white space at the ends left out."""

from __future__ import annotations

import pytest
import sacrebleu

from eval.bleu import corpus_bleu

SOLUTIONS = [
    "    return sorted(values, reverse=True)\n",
    "    total = 0\n    for x in xs:\n        total += x\n    return total\n",
]
COMPLETIONS = [
    "\n    return sorted(values)\n",
    "\n    total = 0\n    for y in xs:\n        total += y\n    return total",
]


def test_equals_sacrebleu_called_directly() -> None:
    expected = sacrebleu.corpus_bleu(
        [text.strip() for text in COMPLETIONS], [[text.strip() for text in SOLUTIONS]], force=True
    )
    found = corpus_bleu(COMPLETIONS, SOLUTIONS)
    assert found.value == expected.score
    assert 20 < found.value < 90
    assert "tok:13a" in found.signature and "smooth:exp" in found.signature


def test_identity_is_a_hundred_and_silence_nothing() -> None:
    assert corpus_bleu(SOLUTIONS, SOLUTIONS).value == pytest.approx(100)
    assert corpus_bleu(["", ""], SOLUTIONS).value == 0
