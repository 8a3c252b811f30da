"""The tail's mass between its nodes: exact against float64 sums, linear, and refused where the nodes do not reach."""

from __future__ import annotations

import numpy as np
import pytest
from cache_records import cut_head, log_mass, log_softmax
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from cache.tail import BETA_RANGE, NODE_STEP, NODES, ONE, node_weights

TEMPERATURES = (0.7, 0.75, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 1.8, 2.0, 2.4, 2.8, 3.3, 4.0, 4.5, 5.0)


def tail_mass_errors(logits_PV: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """|tail probability from the nodes - true one| at every temperature and position."""
    logp_PV = log_softmax(logits_PV)
    order_PV, head_PV, tail_PV = cut_head(logp_PV, np.full(len(logp_PV), size))
    sorted_PV = np.take_along_axis(logp_PV, order_PV, 1)
    head_PV = np.where(head_PV, sorted_PV, -np.inf)
    knots = np.stack([np.full(len(logp_PV), np.log(tail_PV.shape[1] - size)), *(log_mass(tail_PV, b) for b in NODES)])
    errors = []
    for temperature in TEMPERATURES:
        beta = 1 / temperature
        kept_P = log_mass(head_PV, beta)
        ours_P, true_P = node_weights(beta) @ knots, log_mass(tail_PV, beta)
        errors.append(abs(1 / (1 + np.exp(kept_P - ours_P)) - 1 / (1 + np.exp(kept_P - true_P))))
    return np.array(errors)


def distributions(kind: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Logits [40, 5000]: the shapes a language model's rows take, and ruder ones."""
    noise = rng.normal(size=(40, 5000))
    if kind == "flat":
        return 0.3 * noise
    if kind == "bell":
        return 2.5 * noise
    if kind == "zipf":
        return -1.2 * np.log(1 + rng.permuted(np.tile(np.arange(5000.0), (40, 1)), axis=1)) + 0.5 * noise
    if kind == "peaked":  # one certain token over a bell: the tail is all that is left
        noise[:, 7] += rng.uniform(8, 25, 40)
        return 2.0 * noise
    noise[:, :30] += rng.uniform(2, 6, (40, 30))  # spiked: a plateau of rivals, half of them in the tail
    return 2.0 * noise


# Found (seed 0, head sizes 1, 8, 16): 2.1e-9, 2.3e-4, 5.9e-4, 3.4e-5, 1.7e-3. The bounds are less than twice that.
BOUNDS = {"flat": 4e-9, "bell": 4e-4, "zipf": 1e-3, "peaked": 6e-5, "spiked": 2.5e-3}


@pytest.mark.parametrize("kind", list(BOUNDS))
def test_tail_mass_error_is_bounded_at_every_temperature(kind: str) -> None:
    worst = max(
        float(tail_mass_errors(distributions(kind, np.random.default_rng(0)), size).max()) for size in (1, 8, 16)
    )
    assert worst <= BOUNDS[kind]


def test_the_bound_is_the_nodes_doing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A straight line instead of the spline is 10 times worse: the bounds above can fail."""
    knots = (0.0, *NODES)
    straight = lambda beta: np.array([np.interp(beta, knots, row) for row in np.eye(len(knots))])  # noqa: E731
    monkeypatch.setattr("test_cache_tail.node_weights", straight)
    assert tail_mass_errors(distributions("bell", np.random.default_rng(0)), 8).max() > 10 * BOUNDS["bell"]


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_cubic_polynomials_are_reproduced(degree: int) -> None:
    coefficients = np.random.default_rng(degree).normal(size=degree + 1)
    knots = np.polyval(coefficients, (0.0, *NODES))
    for beta in np.linspace(*BETA_RANGE, 97):
        assert node_weights(beta) @ knots == pytest.approx(np.polyval(coefficients, beta), abs=1e-12)


def test_weights_are_those_of_the_not_a_knot_spline_of_the_textbook() -> None:
    knots = np.random.default_rng(5).normal(size=1 + len(NODES))
    spline = CubicSpline((0.0, *NODES), knots, bc_type="not-a-knot")
    for beta in np.linspace(*BETA_RANGE, 61):
        assert node_weights(beta) @ knots == pytest.approx(float(spline(beta)), abs=1e-12)


def test_a_node_gets_its_own_value_and_no_other() -> None:
    for place, node in enumerate((0.0, *NODES)):
        np.testing.assert_allclose(node_weights(node), np.eye(1 + len(NODES))[place], atol=1e-13)


def test_nodes_are_steps_apart_and_hold_one() -> None:
    assert NODES[ONE] == 1.0
    steps = (np.array(NODES) - NODES[0]) / NODE_STEP
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)


@pytest.mark.parametrize("temperature", [0.5, 0.68, 1 / 1.4501])
def test_a_temperature_colder_than_the_nodes_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"the cache holds the tail's mass for T >= 0\.69$"):
        node_weights(1 / temperature)


@pytest.mark.parametrize("beta", [-0.1, float("nan"), float("inf")])
def test_what_is_no_inverse_temperature_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="the cache holds"):
        node_weights(beta)
