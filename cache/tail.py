"""The tail's mass at any temperature, from a few stored numbers a position.

With beta = 1/T and l the teacher's log-probabilities at T = 1, f(beta) = log sum_{tail} exp(beta * l). f(0) = log(V - head
size) is known without storing anything; f is stored at NODES and lies on a cubic spline between them. The spline is linear in
the stored values, so its weights are computed once a temperature and serve numpy and torch alike.

Not for the tail's shape (which token of the tail gets what): that is cache/shape's matter once coordinates are stored.

Why these nodes: benchmarks/cache_tail_nodes.py measures the worst error of the tail's probability for T in [0.7, 5] on real
logits, for these and for sparser sets. They are 0.15 apart (once 0.3), so that a chunk of logits needs two exponentials
and a product a node, not an exponential a node.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NODES = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.15, 1.45)
"""beta = 1/T at which f is stored. 1 / 1.45 = 0.69 and 1 / 0.25 = 4; T = 5 lies between the free f(0) and the first node."""

NODE_STEP = 0.15  # every node is the first one plus a whole number of these

ONE = NODES.index(1.0)
BETA_RANGE = (0.0, 1.45)  # temperatures from 0.69 up


def node_weights(beta: float) -> NDArray[np.float64]:
    """Weights w with f(beta) = w[0] * log(V - head size) + sum_i w[1 + i] * f(NODES[i]).

    The not-a-knot cubic spline (de Boor, A Practical Guide to Splines, chapter IV) through beta = 0 and NODES.

    Args:
        beta: 1 / temperature, inside BETA_RANGE.
    Returns:
        float64 [1 + len(NODES)].
    Raises:
        ValueError: the temperature is colder than the nodes reach.
    """
    if not BETA_RANGE[0] <= beta <= BETA_RANGE[1]:
        raise ValueError(
            f"temperature {1 / beta:.3g}: the cache holds the tail's mass for T >= {1 / BETA_RANGE[1]:.2f}"
        )
    knots = np.array((0.0, *NODES))
    piece = int(np.clip(np.searchsorted(knots, beta, side="right") - 1, 0, len(knots) - 2))
    width = knots[piece + 1] - knots[piece]
    right = (beta - knots[piece]) / width
    left = 1.0 - right
    weights = np.zeros(len(knots))
    weights[piece], weights[piece + 1] = left, right
    bends = _second_derivatives(knots)
    weights += width**2 / 6 * ((left**3 - left) * bends[piece] + (right**3 - right) * bends[piece + 1])
    return weights


def _second_derivatives(knots: NDArray[np.float64]) -> NDArray[np.float64]:
    """Matrix [n, n] that maps the values at the knots to the spline's second derivatives there."""
    count, steps = len(knots), np.diff(knots)
    system, values = np.zeros((count, count)), np.zeros((count, count))
    for row in range(1, count - 1):
        before, after = steps[row - 1], steps[row]
        system[row, row - 1 : row + 2] = before / 6, (before + after) / 3, after / 6
        values[row, row - 1 : row + 2] = 1 / before, -1 / before - 1 / after, 1 / after
    # Not-a-knot: the third derivative is continuous across the second and the last but one knot.
    system[0, :3] = -1 / steps[0], 1 / steps[0] + 1 / steps[1], -1 / steps[1]
    system[-1, -3:] = -1 / steps[-2], 1 / steps[-2] + 1 / steps[-1], -1 / steps[-1]
    return np.asarray(np.linalg.solve(system, values), dtype=np.float64)
