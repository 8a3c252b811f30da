"""Small integers as bytes: every value, every width, there and back."""

from __future__ import annotations

import numpy as np
import pytest

from cache.packing import add_low_bits, full, low_bits, narrow, pack, packed_size, unpack, unzigzag, widen, zigzag


def test_zigzag_by_hand() -> None:
    assert zigzag(np.array([0, -1, 1, -2, 2, -3], np.int16)).tolist() == [0, 1, 2, 3, 4, 5]
    assert zigzag(np.array([32_767, -32_768], np.int16)).tolist() == [65_534, 65_535]


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64])
def test_zigzag_and_back_for_every_number_of_16_bits(dtype: type) -> None:
    values = np.arange(-32_768, 32_768).astype(dtype)
    codes = zigzag(values)
    assert (codes.dtype, sorted(codes.tolist())) == (np.dtype("<u2"), list(range(65_536)))
    np.testing.assert_array_equal(unzigzag(codes), values)
    np.testing.assert_array_equal(zigzag(unzigzag(codes)), codes)
    assert unzigzag(codes).dtype == np.int16


def test_zigzag_of_what_cannot_be_written_to() -> None:
    """Frames are decoded into read-only buffers."""
    codes = np.frombuffer(zigzag(np.arange(-5, 5)).tobytes(), "<u2")
    np.testing.assert_array_equal(unzigzag(codes), np.arange(-5, 5))


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 8, 33])
def test_symbols_of_every_width_there_and_back(width: int, count: int) -> None:
    symbols = np.random.default_rng(count).integers(0, 1 << width, count).astype(np.uint8)
    packed = pack(symbols, width)
    assert (packed.dtype, len(packed)) == (np.uint8, packed_size(count, width))
    np.testing.assert_array_equal(unpack(packed, width, count), symbols)
    assert not unpack(packed, width, len(packed) * 8 // width)[count:].any(), "the last bytes are filled up with zeros"


def test_which_symbols_share_a_byte() -> None:
    """Half bytes: i with i + ceil(n / 2), the first one higher. Bits: neighbours, the first one highest."""
    assert pack(np.array([1, 2, 3, 4, 5]), 4).tolist() == [0x14, 0x25, 0x30]
    assert pack(np.array([1, 2, 3, 0, 1]), 2).tolist() == [0b01110100, 0b10000000]
    assert pack(np.array([1, 0, 0, 0, 0, 0, 1, 1, 1]), 1).tolist() == [0b10000011, 0b10000000]


@pytest.mark.parametrize("width", [2, 4, 8])
def test_what_does_not_fit_is_left_over_in_order(width: int) -> None:
    top = (1 << width) - 1
    codes = np.array([0, top - 1, top, 65_535, 1, top + 1, top])
    symbols, over = narrow(codes, width)
    assert over.tolist() == [0, 65_535 - top, 1, 0]
    assert full(symbols, width) == 4 and symbols.max() == top
    np.testing.assert_array_equal(widen(symbols, width, over), codes)


@pytest.mark.parametrize("bits", range(13))
def test_high_part_and_low_bits(bits: int) -> None:
    values = np.random.default_rng(bits).integers(-32_768, 32_768, 50)
    ones = low_bits(values, bits)
    assert len(ones) == 50 * bits and set(ones.tolist()) <= {0, 1}
    np.testing.assert_array_equal(add_low_bits(values >> bits, bits, ones), values)
