"""The sampled hypervolume against the exact one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.hypervolume_estimate import VolumeEstimate, estimate_hypervolume
from evomerge.core.pareto import hypervolume


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 10**6))
def test_it_is_close_to_the_exact_volume(n, m, seed):
    rng = np.random.default_rng(seed)
    points, reference = rng.normal(size=(n, m)), np.full(m, -0.5)
    exact = hypervolume(points, reference)
    found = estimate_hypervolume(points, reference, rng, n_samples=4000)
    assert found.low <= found.value <= found.high
    assert abs(found.value - exact) <= 3.0 * (found.high - found.low) + 1e-12


def test_the_interval_holds_the_exact_volume_nineteen_times_in_twenty():
    rng = np.random.default_rng(0)
    points, reference = rng.random((12, 4)), np.zeros(4)
    exact = hypervolume(points, reference)
    hits = 0
    for seed in range(400):
        found = estimate_hypervolume(points, reference, np.random.default_rng(seed), n_samples=500)
        hits += found.low <= exact <= found.high
    assert 0.91 <= hits / 400 <= 0.99


def test_many_objectives_do_not_make_it_vague():
    rng = np.random.default_rng(3)
    found = estimate_hypervolume(rng.random((40, 12)), np.zeros(12), rng)
    assert (found.high - found.low) / found.value < 0.03


def test_one_box_is_exact_and_the_rest_is_zero():
    rng = np.random.default_rng(0)
    box = estimate_hypervolume(np.array([[2.0, 3.0]]), np.zeros(2), rng)
    assert (box.low, box.value, box.high) == (6.0, 6.0, 6.0)
    below = estimate_hypervolume(np.array([[2.0, 0.0]]), np.zeros(2), rng)
    assert below == VolumeEstimate(0.0, 0.0, 0.0)


def test_equal_seeds_give_equal_estimates():
    points = np.random.default_rng(5).random((20, 7))
    once, again = (
        estimate_hypervolume(points, np.zeros(7), np.random.default_rng(1)) for _ in range(2)
    )
    assert once == again


@pytest.mark.parametrize(
    ("points", "reference", "n_samples"),
    [
        (np.zeros((2, 3)), np.zeros(2), 10),
        (np.zeros(3), np.zeros(3), 10),
        (np.full((2, 2), np.nan), np.zeros(2), 10),
        (np.ones((2, 2)), np.array([0.0, np.inf]), 10),
        (np.ones((2, 2)), np.zeros(2), 1),
    ],
)
def test_bad_input_is_refused(points, reference, n_samples):
    with pytest.raises(ValueError, match=r"points|n_samples"):
        estimate_hypervolume(points, reference, np.random.default_rng(0), n_samples=n_samples)
