"""A Gaussian process of many outputs: against scikit-learn's, and as a guess."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import check_grad
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern, WhiteKernel

from search.surrogate import Kernel, Surrogate, _cost, _known, fit  # pyright: ignore

NUMBERS = [False, False, False]


def world(count: int, place: int = 0, outputs: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Points and smooth outputs of them; the third coordinate matters to none."""
    points = np.random.default_rng([1, place]).random((count, 3))
    chance = np.random.default_rng(0)
    slopes, turns = chance.standard_normal((2, outputs)), chance.random(outputs)
    return points, np.sin(2 * points[:, :2] @ slopes + turns)


def test_guesses_are_those_of_scikit_learn_under_the_same_kernel():
    points, outputs = world(30)
    lengths, noise = np.array([0.5, 0.8, 2.0]), 1e-2
    known = _known(Kernel(np.array(NUMBERS), lengths, noise), points, outputs, outputs.mean(0))
    kernel = Matern(lengths, "fixed", nu=2.5) + WhiteKernel(noise, "fixed")
    other = GaussianProcessRegressor(kernel, optimizer=None).fit(points, outputs - outputs.mean(0))
    queries, _ = world(50, place=1)
    means, unsure = known.guess(queries)
    theirs, spread = other.predict(queries, return_std=True)
    np.testing.assert_allclose(means - outputs.mean(0), theirs, atol=1e-6)
    np.testing.assert_allclose(unsure**2, np.asarray(spread)[:, 0] ** 2 - noise, atol=1e-6)


@given(st.integers(0, 50), st.integers(3, 12))
def test_the_gradient_is_the_costs_own(seed: int, count: int):
    points, outputs = world(count, seed)
    gaps = points[:, None] - points[None]
    residuals = outputs - outputs.mean(0)
    alike = residuals @ residuals.T
    alike *= count / np.trace(alike)
    usual = np.array([0.0, 0.1, -0.2, -6.0])
    at = usual + np.random.default_rng(seed).normal(size=4) * 0.5
    rest = (gaps * gaps, alike, 7, usual)
    slope = np.linalg.norm(_cost(at, *rest)[1])
    error = check_grad(lambda x: _cost(x, *rest)[0], lambda x: _cost(x, *rest)[1], at)
    assert error < 1e-4 * (1 + slope)


def test_what_does_not_matter_gets_a_long_scale_and_guesses_are_good():
    points, outputs = world(60)
    known = fit(points, outputs, NUMBERS, fitted=60)
    assert known.kernel.lengths[2] > 3 * known.kernel.lengths[:2].max()
    queries, truth = world(200, place=1)
    means, _ = known.guess(queries)
    assert 1 - ((means - truth) ** 2).sum() / ((truth - truth.mean(0)) ** 2).sum() > 0.98


def test_directions_vary_as_the_outputs_do():
    points, outputs = world(40, outputs=3)
    outputs[:, 1] = 2 * outputs[:, 0]
    known = fit(points, outputs, NUMBERS, fitted=40)
    off = known.directions(4000, np.random.default_rng(0))
    np.testing.assert_allclose(off[:, 1], 2 * off[:, 0], atol=1e-6)
    assert off.mean(0) == pytest.approx(np.zeros(3), abs=0.1 * off.std(0).max())


def test_what_is_believed_makes_sure_and_changes_no_guess():
    points, outputs = world(25)
    known = fit(points, outputs, NUMBERS, fitted=25)
    queries = np.random.default_rng(1).random((6, 3))
    before, unsure = known.guess(queries)
    believing = known.believing(queries[:2])
    after, surer = believing.guess(queries)
    np.testing.assert_allclose(before, after, atol=1e-6)
    assert (surer[:2] < 0.1 * unsure[:2] + 0.05).all()
    assert (surer <= unsure + 1e-9).all()


def test_two_options_are_as_far_apart_as_any_two():
    chance = np.random.default_rng(0)
    points = np.column_stack([chance.random(40), chance.integers(3, size=40).astype(float)])
    worth = np.array([0.0, 5.0, 0.2])
    outputs = (np.sin(3 * points[:, 0]) + worth[points[:, 1].astype(int)])[:, None]
    known = fit(points, outputs, [False, True], fitted=40)
    between = known.kernel.between(np.array([[0.5, 0.0]]), np.array([[0.5, 1.0], [0.5, 2.0]]))
    assert between[0, 0] == between[0, 1]
    means, _ = known.guess(np.array([[0.4, 0.0], [0.4, 1.0], [0.4, 2.0]]))
    assert means[:, 0] == pytest.approx(np.sin(1.2) + worth, abs=0.1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_or_equal_points_are_no_trouble(count: int):
    points = np.tile([[0.2, 0.4, 0.6]], (count, 1))
    known: Surrogate = fit(points, np.ones((count, 4)), NUMBERS, fitted=10)
    means, unsure = known.guess(np.array([[0.2, 0.4, 0.6], [0.9, 0.9, 0.9]]))
    assert means == pytest.approx(np.ones((2, 4)))
    assert unsure[0] < 0.1 < unsure[1]
