"""Running sums of distances: the quick way for heads of one width finds what plain sums find, up to the largest steps."""

from __future__ import annotations

import numpy as np
import pytest

from cache.id_codes import Heads
from cache.value_codes import TOP_CODE, below_best


@pytest.mark.parametrize("width", [1, 3, 4, 64, 252])
@pytest.mark.parametrize("most", [1, 5, 254])
def test_one_width_or_many(width: int, most: int) -> None:
    """The second head list has another size at its end, so that its sums go the plain way."""
    rng, positions = np.random.default_rng(width), 30
    best_P = rng.integers(0, TOP_CODE - 255 * 252, positions + 1).astype(np.int32)
    gaps = rng.integers(0, most + 1, positions * (width - 1)).astype(np.uint8)
    found_E = below_best(gaps, best_P[:-1], Heads.of(np.full(positions, width, np.int32)), 1 / 32)
    sizes_P = np.append(np.full(positions, width), width + 1).astype(np.int32)
    more_E = below_best(np.append(gaps, np.full(width, 7, np.uint8)), best_P, Heads.of(sizes_P), 1 / 32)
    assert found_E.dtype == np.float32
    np.testing.assert_array_equal(found_E, more_E[: len(found_E)])
    steps_PK = np.column_stack([best_P[:-1], gaps.reshape(positions, width - 1)]).cumsum(axis=1)
    np.testing.assert_array_equal(found_E, (-steps_PK / 32).ravel().astype(np.float32) + 0)
    assert not np.signbit(found_E[found_E == 0]).any()


def test_too_far_is_refused_whatever_the_width() -> None:
    gaps, heads = np.full(63, 255, np.uint8), Heads.of(np.array([64], np.int32))
    furthest = TOP_CODE - 63 * 255
    assert below_best(gaps, np.array([furthest], np.int32), heads, 1.0)[-1] == -TOP_CODE
    with pytest.raises(ValueError, match="below the smallest"):
        below_best(gaps, np.array([furthest + 1], np.int32), heads, 1.0)
