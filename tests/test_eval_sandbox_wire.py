"""eval/sandbox_wire.py: values cross exactly, and nothing else does."""

from __future__ import annotations

import collections
import decimal
import fractions
import os
import random
import struct
from typing import Any, NamedTuple

import pytest

from eval.sandbox_wire import MAX_DEPTH, MAX_FRAME, WireError, decode, encode, read_frame, write_frame


def no_handle(value: Any) -> str:
    raise WireError(f"no {type(value).__name__}")


def round_trip(value: Any) -> Any:
    return decode(encode(value, no_handle), no_handle)


def random_value(rng: random.Random, depth: int = 4) -> Any:
    kind = rng.randrange(12 if depth else 7)
    if kind == 0:
        return rng.choice([None, True, False, ...])
    if kind == 1:
        return rng.randint(-(1 << rng.choice([1, 7, 8, 31, 64, 200])), 1 << rng.choice([1, 7, 8, 31, 64, 200]))
    if kind == 2:
        return struct.unpack("<d", rng.randbytes(8))[0] if rng.random() < 0.5 else rng.uniform(-9, 9)
    if kind == 3:
        return "".join(chr(rng.choice([65, 233, 0x20AC, 0xD800, 0x1F600])) for _ in range(rng.randrange(5)))
    if kind == 4:
        return rng.randbytes(rng.randrange(5))
    if kind == 5:
        return complex(rng.random(), rng.random())
    if kind == 6:
        return rng.choice([int, str, range(3), fractions.Fraction(1, rng.randint(2, 9)), decimal.Decimal("1.50")])
    items = [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind in (7, 8):
        return items if kind == 7 else tuple(items)
    if kind == 9:
        return dict(enumerate(items))
    return {rng.randrange(9) for _ in items} if kind == 10 else collections.deque(items, 9)


def test_values_arrive_with_value_and_type() -> None:
    rng = random.Random(7)
    for _ in range(500):
        value = random_value(rng)
        arrived = round_trip(value)
        assert type(arrived) is type(value)
        assert repr(arrived) == repr(value)  # nan is not equal to itself, its repr is


def test_subclasses_arrive_as_their_base() -> None:
    class Liar(int):
        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            return True

    class Long(list[int]):
        def __len__(self) -> int:
            return 99

    class Pair(NamedTuple):
        first: int
        second: int

    arrived = round_trip([Liar(3), Long([1]), Pair(1, Liar(2))])
    assert [type(part) for part in arrived] == [int, list, tuple]
    assert arrived == [3, [1], (1, 2)]
    assert arrived[0] != 4


def test_views_and_iterators_arrive_drained() -> None:
    assert round_trip({"a": 1}.keys()) == {"a"}
    assert list(round_trip({"a": [1]}.values())) == [[1]]
    assert list(round_trip(x * x for x in range(4))) == [0, 1, 4, 9]


def test_too_deep_too_big_or_not_plain_does_not_leave() -> None:
    deep: list[Any] = []
    for _ in range(MAX_DEPTH + 2):
        deep = [deep]
    loop: list[Any] = []
    loop.append(loop)
    for value in (deep, loop, "x" * (MAX_FRAME + 1), [b"x" * (MAX_FRAME // 2 + 1)] * 2, object()):
        with pytest.raises(WireError):
            encode(value, no_handle)


def test_no_bytes_decode_to_anything_but_a_value_or_a_wire_error() -> None:
    rng = random.Random(11)
    tags = b"NTFeidcsbBltSZDrvKVMIhy"
    for _ in range(4000):
        raw = bytearray(encode(random_value(rng), no_handle))
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.choice(tags) if rng.random() < 0.5 else rng.randrange(256)
        try:
            decode(bytes(raw[: rng.randrange(1, len(raw) + 1)]), no_handle)
        except WireError:
            continue


def test_frames_are_bounded_and_a_cut_one_is_the_end() -> None:
    ours, theirs = os.pipe()
    write_frame(theirs, b"abc")
    os.write(theirs, struct.pack("<I", MAX_FRAME + 1))
    assert read_frame(ours) == b"abc"
    with pytest.raises(WireError, match="a frame of more than 16 MB"):
        read_frame(ours)
    os.write(theirs, struct.pack("<I", 9) + b"short")
    os.close(theirs)
    assert read_frame(ours) is None
    os.close(ours)
