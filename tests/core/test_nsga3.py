from __future__ import annotations

import numpy as np
import pytest

from evomerge.core.directions import spread_directions
from evomerge.core.nsga3 import nsga3
from evomerge.core.pareto import hypervolume
from evomerge.seeding import generator

LOW, HIGH = np.full(6, -1.0), np.full(6, 2.0)


def sphere_front(points):
    """DTLZ2 with 3 objectives, negated: its front is the negative octant of the unit sphere."""
    x = (points - LOW) / (HIGH - LOW)
    g = 1.0 + ((x[:, 2:] - 0.5) ** 2).sum(axis=1)
    a, b = 0.5 * np.pi * x[:, 0], 0.5 * np.pi * x[:, 1]
    return -np.stack([g * np.cos(a) * np.cos(b), g * np.cos(a) * np.sin(b), g * np.sin(a)], axis=1)


def chord(points):
    return np.stack([points[:, 0], 1.0 - points[:, 0] - np.square(points[:, 1:]).sum(axis=1)], 1)


def test_three_objectives_reach_the_sphere_evenly():
    directions = spread_directions(3, 91)
    points, values = nsga3(sphere_front, LOW, HIGH, directions, generator(0), generations=150)
    radius = np.linalg.norm(values, axis=1)
    assert np.median(radius) < 1.02
    reached = values / radius[:, None]
    wanted = -directions / np.linalg.norm(directions, axis=1, keepdims=True)
    gap = np.linalg.norm(wanted[:, None] - reached[None], axis=2).min(axis=1)
    assert np.mean(gap < 0.1) > 0.9
    np.testing.assert_array_equal(values, sphere_front(points))


def test_two_objectives_cover_the_whole_chord():
    points, values = nsga3(
        chord, np.zeros(3), np.ones(3), spread_directions(2, 50), generator(1), generations=60
    )
    assert hypervolume(values, np.zeros(2)) > 0.48  # of 0.5
    assert points.min() >= 0.0
    assert points.max() <= 1.0


def test_one_objective_is_maximised():
    def hill(points):
        return -np.square(points - 0.3).sum(axis=1, keepdims=True)

    points, _ = nsga3(
        hill, np.zeros(2), np.ones(2), spread_directions(1, 20), generator(2), generations=150
    )
    assert np.abs(points - 0.3).max() < 0.1


def test_a_fixed_dimension_and_equal_objectives_do_no_harm():
    def flat(points):
        return np.stack([points[:, 0], points[:, 0], np.zeros(len(points))], axis=1)

    low, high = np.array([0.0, 0.5]), np.array([1.0, 0.5])
    points, values = nsga3(flat, low, high, spread_directions(3, 20), generator(3))
    np.testing.assert_array_equal(points[:, 1], 0.5)
    assert values[:, 0].max() > 0.99


def test_equal_seeds_give_equal_populations():
    run = [
        nsga3(chord, np.zeros(2), np.ones(2), spread_directions(2, 11), generator(s))[0]
        for s in (4, 4, 5)
    ]
    np.testing.assert_array_equal(run[0], run[1])
    assert not np.array_equal(run[0], run[2])


@pytest.mark.parametrize("n", [3, 500])
def test_a_start_is_taken_up_and_kept_inside(n):
    start = np.tile([5.0, 0.0], (n, 1))
    points, values = nsga3(
        chord, np.zeros(2), np.ones(2), spread_directions(2, 10), generator(6), start=start
    )
    assert points.max() <= 1.0
    assert values[:, 0].max() == 1.0
