"""Sets and maps of millions of 64-bit numbers, in a few bytes each. Not for anything that must be deleted again."""

from __future__ import annotations

from array import array


class SeenIds:
    """A set of 64-bit numbers at 12-24 bytes each (open addressing in one array); a Python set takes about 70.

    Two different things share a 64-bit hash with probability 3e-6 among ten million (birthday bound).
    """

    def __init__(self) -> None:
        self._slots, self._used = array("Q", bytes(8 * 1024)), 0

    def add(self, value: int) -> bool:
        """Add `value`; False if it was there."""
        if 3 * self._used >= 2 * len(self._slots):
            self._grow()
        slot = self._find(value or 1)  # 0 marks a free slot
        if self._slots[slot]:
            return False
        self._slots[slot] = value or 1
        self._used += 1
        return True

    def _find(self, value: int) -> int:
        mask = len(self._slots) - 1
        slot = value & mask
        while self._slots[slot] not in (0, value):
            slot = (slot + 1) & mask
        return slot

    def _grow(self) -> None:
        old = self._slots
        self._slots = array("Q", bytes(8 * 2 * len(old)))
        for value in old:
            if value:
                self._slots[self._find(value)] = value


class FirstHolders(SeenIds):
    """A map from 64-bit numbers to the holder (0 to 2^32 - 1) that each was first added with, at 18-36 bytes each."""

    def __init__(self) -> None:
        super().__init__()
        self._holders = array("I", bytes(self._width * len(self._slots)))

    _width = array("I").itemsize

    def add_holder(self, value: int, holder: int) -> None:
        """Remember `holder` of `value`, unless it has one."""
        if self.add(value):
            self._holders[self._find(value or 1)] = holder

    def holder(self, value: int) -> int | None:
        """The first holder of `value`, or None."""
        slot = self._find(value or 1)
        return self._holders[slot] if self._slots[slot] else None

    def _grow(self) -> None:
        old, holders = self._slots, self._holders
        self._slots = array("Q", bytes(8 * 2 * len(old)))
        self._holders = array("I", bytes(self._width * 2 * len(old)))
        for value, holder in zip(old, holders, strict=True):
            if value:
                slot = self._find(value)
                self._slots[slot], self._holders[slot] = value, holder
