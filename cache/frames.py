"""One window of a shard, or a part of a basis: bytes in one zstd frame that carries its size.

Not for what the bytes mean: that is cache/encoding.py. HDF5's own zstd filter reads the same frames; ours decode outside
h5py's lock. Frames carry no checksum of zstd's: a window's CRC-32 stands in the shard's index and is compared before a
frame is decoded at all, which costs less and finds a whole frame in the wrong place too (HDF5's plugin ignores zstd's own:
it returns 200 of 200 flipped bits as data).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zstandard
from numpy.typing import NDArray

SEARCH = zstandard.ZstdCompressionParameters(
    window_log=20,
    hash_log=12,
    chain_log=6,
    search_log=1,
    min_match=7,
    target_length=0,
    strategy=zstandard.STRATEGY_FAST,
    write_checksum=False,
    write_content_size=True,
)
"""As quick as level 1, but without matches shorter than 7 bytes: those hide small numbers from the entropy coder, which does
better. Level 19 saves about 1 % for 40 times the time."""


NOISE = 2048


def new_compressor() -> zstandard.ZstdCompressor:
    """Frames with content size (HDF5's plugin needs it)."""
    return zstandard.ZstdCompressor(compression_params=SEARCH)


def compress(
    sections: Sequence[NDArray[np.uint8]], padded: int, compressor: zstandard.ZstdCompressor
) -> tuple[bytes, list[int]]:
    """One frame of all sections, one after another, zeros up to `padded` bytes; and what each section takes of it.

    Each begins a block, so that each has a table of symbols of its own; the last one, mostly noise, is cut into blocks so
    short that a table pays only where it saves a twentieth: what is stored as it is decodes seven times as fast. The last
    figure is header and padding.
    """
    stream, last = compressor.compressobj(size=padded), sections[-1].tobytes()
    parts = [_block(stream, section.tobytes()) for section in sections[:-1]]
    parts.append(b"".join(_block(stream, last[start : start + NOISE]) for start in range(0, len(last), NOISE)))
    end = stream.compress(bytes(padded - sum(map(len, sections)))) + stream.flush()
    frame = b"".join([*parts, end])
    header, sizes = zstandard.frame_header_size(frame[:18]), [len(part) for part in parts]
    sizes[0] -= header
    return frame, [*sizes, len(end) + header]


def _block(stream: zstandard.ZstdCompressionObj, raw: bytes) -> bytes:
    return stream.compress(raw) + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)


def decompress(frame: bytes, size: int, decompressor: zstandard.ZstdDecompressor) -> NDArray[np.uint8]:
    """A frame's `size` bytes, read-only.

    Raises:
        ValueError: the frame is damaged, or declares another size (checked before any allocation).
    """
    try:
        declared = zstandard.frame_content_size(frame)
        if declared != size:
            raise ValueError(f"zstd frame of {declared} bytes where the chunk has {size}")
        raw = decompressor.decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"zstd frame damaged ({error})") from None
    return np.frombuffer(raw, np.uint8)
