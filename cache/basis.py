"""basis.h5: the file of a cache's tail shape. Plain HDF5 like a shard, checked like a shard before anything is believed.

Not for what the numbers mean (cache/shape.py). FORMAT.md is the specification.
Shapes: V vocabulary, R directions, A = R + 1 rows, K classes that occur, S segments: the tokens of one class in one row.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zstandard
from numpy.typing import NDArray

from cache.frames import compress, decompress, new_compressor
from cache.packing import (
    Bytes,
    add_low_bits,
    full,
    low_bits,
    narrow,
    pack,
    packed_size,
    unpack,
    unzigzag,
    widen,
    zigzag,
)
from cache.prior import Prior
from cache.shape import BASIS, CLASSES, Basis, TailShape, classes_of
from cache.shard import write_frames
from cache.structure import BASIS as LAYOUT
from cache.structure import chunk_table, open_checked
from shared.errors import RunError

MOST_ENTRIES = 1 << 29  # of the codes, decoded: 1 GB
PIECE = 1 << 22  # bytes of the stream in one frame
UNIT = 16  # group of segments whose codes spread by 1; each group more is half an octave
GROUPS = 48


def to_bytes(basis: Basis) -> bytes:
    """The file: one stream of bytes, in pieces."""
    pieces = _pieces(list(_stream(basis)))
    length, compressor = max(sum(map(len, piece)) for piece in pieces), new_compressor()
    frames = [compress(piece, length, compressor)[0] for piece in pieces]
    with h5py.File("basis", "w", driver="core", backing_store=False, libver=("v110", "v110")) as file:
        file.attrs["format"] = np.bytes_(LAYOUT.format)
        file.attrs["version"] = np.uint32(LAYOUT.version)
        checksum = np.array([zlib.crc32(frame) for frame in frames], "<u4")
        file.create_dataset("checksum", data=checksum, track_times=False)
        write_frames(file, "stream", length, frames)
        file.flush()
        image: bytes = file.id.get_file_image()
    return image


def _pieces(sections: Sequence[Bytes]) -> list[list[Bytes]]:
    """The sections in order, cut where a piece is full."""
    pieces: list[list[Bytes]] = [[]]
    for section in sections:
        while len(section):
            room = PIECE - sum(map(len, pieces[-1]))
            if not room:
                pieces.append([])
                continue
            pieces[-1].append(section[:room])
            section = section[room:]
    return pieces


def _stream(basis: Basis) -> Iterator[Bytes]:
    yield basis.class_V
    yield basis.scale_A.astype("<f4").view(np.uint8)
    for numbers in (basis.weights_R2R, basis.centres_AK):
        symbols, over = narrow(zigzag(numbers).ravel(), 8)
        yield from (symbols, over.astype("<u2").view(np.uint8))
    groups_AK, codes_AV = _groups(basis), basis.codes_AV[:, basis.order()]
    yield groups_AK.ravel()
    places = _places(basis.class_V)
    for group in np.unique(groups_AK[groups_AK > 0]).tolist():
        segments = [codes_AV[row, places[column]] for row, column in np.argwhere(groups_AK == group)]
        yield from _packed(np.concatenate(segments), group)


def _places(class_V: NDArray[np.uint8]) -> list[slice]:
    """Where the tokens of each class stand in the order of ranks, finest class first."""
    counts = [int((class_V == number).sum()) for number in classes_of(class_V)]
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]


def _groups(basis: Basis) -> NDArray[np.uint8]:
    """[A, K]: the root mean square of each segment's codes, in half octaves; 0 where all are zero."""
    codes_AV = basis.codes_AV[:, basis.order()].astype(np.float64)
    spread_AK = np.stack([np.sqrt((codes_AV[:, place] ** 2).mean(axis=1)) for place in _places(basis.class_V)], axis=1)
    with np.errstate(divide="ignore"):
        group_AK = np.clip(np.rint(2 * np.log2(spread_AK)) + UNIT, 1, GROUPS - 1)
    return np.where(spread_AK == 0, 0, group_AK).astype(np.uint8)


def _widths(group: int) -> tuple[int, int]:
    """(Bits of a symbol, low bits beside it) of a group's codes."""
    if group <= UNIT - 4:
        return 1, 0
    return (2, 0) if group <= UNIT - 2 else (4, max(0, (group - UNIT - 1) // 2))


def _packed(codes: NDArray[np.int16], group: int) -> Iterator[Bytes]:
    """Symbols, leftovers in half bytes (where the symbols are smaller), leftovers of those in 16 bits, low bits."""
    width, bits = _widths(group)
    symbols, over = narrow(zigzag(codes >> bits), width)
    yield pack(symbols, width)
    if width < 4:
        symbols, over = narrow(over, 4)
        yield pack(symbols, 4)
    yield over.astype("<u2").view(np.uint8)
    yield pack(low_bits(codes, bits), 1)


def read_basis(directory: Path, shape: TailShape, vocab_size: int) -> Basis:
    """Open a cache's basis and check it against the manifest.

    Raises:
        RunError: missing, of another size or hash, damaged, hostile, or not of the manifest's directions and vocabulary.
    """
    path = directory / BASIS
    remedy = "run `python -m cache verify` on the cache and get the files it names again"
    if path.is_symlink() or not path.is_file() or path.stat().st_size != shape.bytes:
        got = "none, a link, or another size"
        raise RunError(f"{path}", expected=f"a file of {shape.bytes} bytes", got=got, do=remedy)
    if hashlib.sha256(path.read_bytes()).hexdigest() != shape.sha256:
        raise RunError(f"{path}", expected=f"sha256 {shape.sha256[:12]}...", got="another", do=remedy)
    try:
        if (shape.directions + 1) * vocab_size > MOST_ENTRIES:
            raise ValueError(f"{shape.directions} directions of {vocab_size} tokens, more than any reader accepts")
        return _parsed(_Stream(_decoded(path, shape.directions, vocab_size)), shape.directions, vocab_size)
    except ValueError as error:
        raise RunError(f"{path}", expected="a basis that fits the manifest", got=str(error), do=remedy) from None


def read_prior(directory: Path, shape: TailShape | None, vocab_size: int) -> Prior | None:
    """What a cache's shards are stored relative to; None where it has no basis.

    Raises:
        RunError: see read_basis.
    """
    return None if shape is None else read_basis(directory, shape, vocab_size).prior


def _decoded(path: Path, directions: int, vocab_size: int) -> Bytes:
    """The whole stream."""
    with open_checked(path, LAYOUT) as file:
        pieces, length = file["stream"].shape
        checksums: list[int] = file["checksum"][...].tolist()
        table = chunk_table(file["stream"], path)
    if length > PIECE or (pieces - 1) * length > 8 * (directions + 2) * (vocab_size + 2 * directions + CLASSES):
        raise ValueError(f"a stream of {pieces} pieces of {length} bytes")
    raw, zstd, found = path.read_bytes(), zstandard.ZstdDecompressor(), []
    for start, size, checksum in zip(*table, checksums, strict=True):
        frame = raw[start : start + size]
        if zlib.crc32(frame) != checksum:
            raise ValueError("a checksum that does not fit")
        found.append(decompress(frame, length, zstd))
    return np.concatenate(found)


class _Stream:
    """Takes one section after another."""

    def __init__(self, raw: Bytes) -> None:
        self._raw, self._place = raw, 0

    def take(self, count: int) -> Bytes:
        start, self._place = self._place, self._place + count
        if self._place > len(self._raw):
            raise ValueError("a stream that ends too early")
        return self._raw[start : self._place]

    def wide(self, symbols: Bytes, width: int) -> NDArray[Any]:
        """Symbols and the leftovers in 16 bits that follow."""
        over = np.frombuffer(self.take(2 * full(symbols, width)).tobytes(), "<u2")
        return widen(symbols, width, over)

    def signed(self, count: int) -> NDArray[np.int16]:
        """Numbers of mostly a byte."""
        return unzigzag(self.wide(self.take(count), 8).astype(np.uint16))

    def codes(self, count: int, group: int) -> NDArray[np.int16]:
        """The inverse of _packed."""
        width, bits = _widths(group)
        symbols = unpack(self.take(packed_size(count, width)), width, count)
        if width < 4:
            further = full(symbols, width)
            nibbles = unpack(self.take(packed_size(further, 4)), 4, further)
            found = widen(symbols, width, self.wide(nibbles, 4))
        else:
            found = self.wide(symbols, 4)
        ones = unpack(self.take(packed_size(bits * count, 1)), 1, bits * count)
        return add_low_bits(unzigzag(found.astype(np.uint16)), bits, ones).astype(np.int16)

    def end(self) -> None:
        if self._raw[self._place :].any():
            raise ValueError("bytes behind the stream's end")


def _parsed(stream: _Stream, directions: int, vocab_size: int) -> Basis:
    class_V = stream.take(vocab_size)
    if class_V.max() >= CLASSES:
        raise ValueError(f"a class of {class_V.max()}")
    rows, places = directions + 1, _places(class_V)
    scale_A = np.frombuffer(stream.take(4 * rows).tobytes(), "<f4")
    if not np.isfinite(scale_A).all() or (scale_A <= 0).any():
        raise ValueError("scales that are not positive numbers")
    weights_R2R = stream.signed(2 * directions**2).reshape(directions, 2 * directions)
    centres_AK = stream.signed(rows * len(places)).reshape(rows, len(places))
    groups_AK = stream.take(rows * len(places)).reshape(rows, len(places))
    if groups_AK.max() >= GROUPS:
        raise ValueError(f"a group of {groups_AK.max()}")
    ranked_AV = np.zeros((rows, vocab_size), np.int16)
    for group in np.unique(groups_AK[groups_AK > 0]).tolist():
        segments = np.argwhere(groups_AK == group).tolist()
        sizes = [places[column].stop - places[column].start for _, column in segments]
        parts = np.split(stream.codes(sum(sizes), group), np.cumsum(sizes)[:-1])
        for (row, column), part in zip(segments, parts, strict=True):
            ranked_AV[row, places[column]] = part
    stream.end()
    basis = Basis(np.empty_like(ranked_AV), class_V.copy(), scale_A, weights_R2R, centres_AK)
    basis.codes_AV[:, basis.order()] = ranked_AV
    return basis
