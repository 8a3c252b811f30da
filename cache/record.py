"""One cached window: what the teacher believed at every position of it, in plain numpy arrays.

The meaning of each part is DESIGN section 4 and cache/FORMAT.md; how the parts become bytes is cache/encoding.py.
Shapes: P positions = tokens - 1, E head entries of all positions together, N = len(NODES), R coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cache.tail import NODES


@dataclass(frozen=True, slots=True)
class CachedWindow:
    """The teacher's next-token distributions over one window. Position t sees tokens[: t + 1] and predicts tokens[t + 1].

    Attributes:
        id: 16 hex characters, the hash of the window's tokens and prompt length.
        document: name of the document it was cut from.
        prompt_tokens: leading tokens that are prompt; a student may leave them out of its loss.
        tokens: int32 [P + 1].
        head_sizes_P: int32 [P], each >= 1.
        head_ids_E: int32 [E], concatenated by position, most likely first.
        head_logprobs_E: float32 [E], natural log at T = 1.
        tail_PN: float32 [P, N], f(beta) = log sum_{tail} exp(beta * l) at cache.tail.NODES; -inf where there is no tail.
        gold_P: float32 [P], log-probability of tokens[t + 1] at T = 1.
        coords_PR: float32 [P, R], the hidden state's coordinates that shape the tail; R = 0 where the cache keeps none.
    """

    id: str
    document: str
    prompt_tokens: int
    tokens: NDArray[np.int32]
    head_sizes_P: NDArray[np.int32]
    head_ids_E: NDArray[np.int32]
    head_logprobs_E: NDArray[np.float32]
    tail_PN: NDArray[np.float32]
    gold_P: NDArray[np.float32]
    coords_PR: NDArray[np.float32]

    def __post_init__(self) -> None:
        positions = len(self.tokens) - 1
        assert positions >= 1, "a window predicts at least one token"
        assert self.head_sizes_P.shape == self.gold_P.shape == (positions,)
        assert self.tail_PN.shape == (positions, len(NODES))
        assert self.coords_PR.shape[0] == positions
        assert self.head_ids_E.shape == self.head_logprobs_E.shape == (int(self.head_sizes_P.sum()),)
