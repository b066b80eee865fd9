from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.quadratic_surrogate import (
    LINKS,
    QuadraticSurrogate,
    check_link,
    fit_quadratic,
    n_features,
    quadratic_features,
    suitable_link,
)
from evomerge.errors import ConfigError

SQUASH = {
    "identity": lambda eta: eta,
    "sigmoid": lambda eta: 1.0 / (1.0 + np.exp(-eta)),
    "softplus": lambda eta: np.log1p(np.exp(eta)),
}


def truth(link, d, seed=0, size=1.0):
    """A random quadratic behind a link, as a function of points."""
    coefficients = size * np.random.default_rng(seed).normal(size=n_features(d))
    return lambda points: SQUASH[link](quadratic_features(points) @ coefficients)


def r2(surrogate, function, d, seed=9):
    points = np.random.default_rng(seed).random((2000, d))
    values = function(points)
    residual = np.square(surrogate.predict(points) - values).sum()
    return 1.0 - residual / np.square(values - values.mean()).sum()


def test_features_are_all_monomials_up_to_degree_two():
    x = np.array([0.25, 0.75])
    u, v = 2 * x - 1
    np.testing.assert_allclose(quadratic_features(x[None])[0], [1, u, v, u * u, u * v, v * v])
    assert quadratic_features(np.zeros((4, 5))).shape == (4, n_features(5)) == (4, 21)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("d", [1, 2, 4])
def test_a_quadratic_behind_its_link_is_recovered(link, d):
    function = truth(link, d)
    points = np.random.default_rng(1).random((2 * n_features(d), d))
    surrogate = fit_quadratic(points, function(points), link)
    assert r2(surrogate, function, d) > 0.9999


@pytest.mark.parametrize("link", LINKS)
def test_the_wrong_link_is_worse(link):
    function = truth("sigmoid", 2, size=4.0)
    points = np.random.default_rng(1).random((30, 2))
    right = r2(fit_quadratic(points, function(points), "sigmoid"), function, 2)
    assert right > 0.999
    if link != "sigmoid":
        assert r2(fit_quadratic(points, function(points), link), function, 2) < right - 0.01


def test_negated_losses_are_fitted_by_a_softplus():
    losses = truth("softplus", 2, seed=3, size=2.0)
    points = np.random.default_rng(2).random((20, 2))
    surrogate = fit_quadratic(points, -losses(points), "softplus")
    assert surrogate.sign == -1.0
    assert r2(surrogate, lambda x: -losses(x), 2) > 0.9999
    assert surrogate.predict(np.random.default_rng(3).random((100, 2))).max() <= 0.0


@pytest.mark.parametrize("link", LINKS)
def test_noise_is_averaged_out_and_measured(link):
    function = truth(link, 2, seed=4)
    rng = np.random.default_rng(5)
    points = rng.random((200, 2))
    sigma = 0.03
    values = function(points) + sigma * rng.normal(size=200)
    surrogate = fit_quadratic(points, values, link)
    assert np.sqrt(surrogate.noise) == pytest.approx(sigma, rel=0.2)
    grid = np.random.default_rng(6).random((500, 2))
    error = surrogate.predict(grid) - function(grid)
    assert np.sqrt(np.square(error).mean()) < 0.3 * sigma
    # The stated uncertainty is about as large as the error is.
    ratio = np.abs(error) / surrogate.std(grid)
    assert 0.3 < np.sqrt(np.square(ratio).mean()) < 2.0


@pytest.mark.parametrize("n", [1, 2, 5, 9])
@pytest.mark.parametrize("link", LINKS)
def test_fewer_points_than_coefficients_give_a_tame_fit(link, n):
    function = truth(link, 4, seed=7, size=0.5)
    points = np.random.default_rng(8).random((n, 4))
    values = function(points)
    surrogate = fit_quadratic(points, values, link)
    found = surrogate.predict(np.random.default_rng(9).random((500, 4)))
    assert np.isfinite(found).all()
    spread = max(np.ptp(values), 0.1)
    assert found.min() > values.min() - 5 * spread
    assert found.max() < values.max() + 5 * spread
    assert np.isfinite(surrogate.std(points)).all()


def test_ridge_learns_a_plane_from_few_points():
    points = np.random.default_rng(1).random((20, 6))  # of 28 coefficients
    slope = np.array([1.0, -1.0, 0.5, 0.0, 0.0, 2.0])
    surrogate = fit_quadratic(points, points @ slope, "identity")
    assert r2(surrogate, lambda x: x @ slope, 6) > 0.75


def test_values_at_the_ends_of_a_link_are_fitted():
    points = np.random.default_rng(0).random((40, 2))
    steps = (points[:, 0] > 0.5).astype(float)
    surrogate = fit_quadratic(points, steps, "sigmoid")
    assert np.abs(surrogate.predict(points) - steps).max() < 0.3
    assert np.isfinite(fit_quadratic(points, np.zeros(40), "softplus").predict(points)).all()


def test_constant_values_stay_constant():
    points = np.random.default_rng(0).random((9, 2))
    for link in LINKS:
        surrogate = fit_quadratic(points, np.full(9, 0.4), link)
        np.testing.assert_allclose(surrogate.predict(points), 0.4, atol=1e-6)


def test_uncertainty_falls_where_points_are_and_joint_covariance_agrees():
    rng = np.random.default_rng(3)
    points = 0.3 * rng.random((30, 2))
    values = truth("sigmoid", 2)(points) + 0.01 * rng.normal(size=30)
    surrogate = fit_quadratic(points, values, "sigmoid")
    near, far = surrogate.std(np.array([[0.15, 0.15], [1.0, 1.0]]))
    assert near < far
    some = rng.random((5, 2))
    covariance = surrogate.covariance(surrogate.gradients(some))
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), surrogate.std(some), rtol=1e-6)
    assert np.linalg.eigvalsh(covariance).min() > -1e-10


def test_gradients_are_those_of_the_prediction():
    points = np.random.default_rng(0).random((12, 2))
    for link in LINKS:
        surrogate = fit_quadratic(points, truth(link, 2)(points), link)
        step = 1e-6
        for k in range(n_features(2)):
            moved = surrogate.coefficients.copy()
            moved[k] += step
            other = QuadraticSurrogate(
                link, surrogate.sign, surrogate.offset, moved, points, 1.0, 1.0
            )
            slope = (other.predict(points) - surrogate.predict(points)) / step
            np.testing.assert_allclose(slope, surrogate.gradients(points)[:, k], atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 25),
    d=st.integers(1, 4),
    link=st.sampled_from(LINKS),
    seed=st.integers(0, 1000),
    copies=st.integers(1, 3),
)
def test_json_round_trip_and_finite_everywhere(n, d, link, seed, copies):
    rng = np.random.default_rng(seed)
    points = np.repeat(rng.random((n, d)), copies, axis=0)  # equal points too
    values = rng.random(len(points)).round(1)
    surrogate = fit_quadratic(points, values, link)
    again = QuadraticSurrogate.from_json(json.loads(json.dumps(surrogate.to_json())), points)
    there = rng.random((7, d))
    np.testing.assert_array_equal(again.predict(there), surrogate.predict(there))
    np.testing.assert_array_equal(again.std(there), surrogate.std(there))
    assert np.isfinite(surrogate.predict(there)).all()
    assert (surrogate.std(there) >= 0.0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"link": "probit"}, "unknown link"),
        ({"coefficients": [1.0]}, "coefficients for 2 dimensions"),
        ({"noise": float("nan")}, "not finite"),
        ({"ridge": 0.0}, "ridge is not positive"),
    ],
)
def test_damaged_json_is_refused(change, message):
    points = np.random.default_rng(0).random((9, 2))
    body = fit_quadratic(points, points[:, 0], "sigmoid").to_json() | change
    with pytest.raises(ValueError, match=message):
        QuadraticSurrogate.from_json(body, points)


def test_shapes_and_numbers_are_checked():
    with pytest.raises(ValueError, match="values for points"):
        fit_quadratic(np.zeros((3, 2)), np.zeros(4), "identity")
    with pytest.raises(ValueError, match="values for points"):
        fit_quadratic(np.zeros((0, 2)), np.zeros(0), "identity")
    with pytest.raises(ValueError, match="finite"):
        fit_quadratic(np.zeros((2, 2)), np.array([0.0, np.nan]), "identity")


def test_links_are_chosen_and_checked_by_the_range_of_the_values():
    assert suitable_link(np.array([0.0, 1.0])) == "sigmoid"
    assert suitable_link(np.array([-3.0, -1.0])) == "softplus"
    assert suitable_link(np.array([0.5, 7.0])) == "softplus"
    assert suitable_link(np.array([-0.5, 0.5])) == "identity"
    check_link("identity", np.array([-5.0, 5.0]), "x")
    check_link("softplus", np.array([0.1, 0.9]), "x")
    with pytest.raises(ConfigError, match=r"x has values from -1 to 0.5, and link 'sigmoid'"):
        check_link("sigmoid", np.array([-1.0, 0.5]), "x")
    with pytest.raises(ConfigError, match="one side of 0"):
        check_link("softplus", np.array([-1.0, 0.5]), "x")
