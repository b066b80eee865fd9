"""Picking several members, each at most once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.core.selection import elites, spin, tournament
from evomerge.seeding import generator

FITNESS = hnp.arrays(float, st.integers(1, 12), elements=st.floats(-5.0, 5.0))


@given(FITNESS, st.data())
@settings(deadline=None, max_examples=50)
def test_nobody_is_picked_twice(fitness, data):
    n = data.draw(st.integers(0, len(fitness)))
    for picked in (spin(fitness, n, generator(1)), tournament(fitness, n, 3, generator(1))):
        assert len(picked) == len(set(picked)) == n
        assert all(0 <= index < len(fitness) for index in picked)


def test_the_wheel_turns_in_proportion_to_fitness():
    rng = generator(2)
    first = [spin(np.array([1.0, 3.0, 0.0]), 1, rng)[0] for _ in range(4000)]
    shares = np.bincount(first, minlength=3) / len(first)
    np.testing.assert_allclose(shares, [0.25, 0.75, 0.0], atol=0.03)


def test_members_without_fitness_come_last_and_all_alike():
    rng = generator(3)
    spins = [spin(np.array([0.0, 2.0, 0.0]), 3, rng) for _ in range(400)]
    assert all(picked[0] == 1 for picked in spins)
    assert 100 < sum(picked[1] == 0 for picked in spins) < 300


def test_negative_fitness_is_shifted_so_that_the_worst_has_none():
    rng = generator(4)
    first = [spin(np.array([-3.0, -2.0, -1.0]), 1, rng)[0] for _ in range(3000)]
    shares = np.bincount(first, minlength=3) / len(first)
    np.testing.assert_allclose(shares, [0.0, 1.0 / 3.0, 2.0 / 3.0], atol=0.04)


def test_a_tournament_of_all_picks_the_fittest_in_order():
    fitness = np.array([1.0, 5.0, 5.0, 2.0])
    assert tournament(fitness, 4, 4, generator(0)) == [1, 2, 3, 0]


def test_the_worst_cannot_win_a_tournament_while_three_others_are_left():
    fitness = np.arange(6.0)
    for seed in range(50):
        assert tournament(fitness, 1, 3, generator(seed))[0] >= 2


def test_elites_are_the_fittest_and_ties_go_to_the_lowest_index():
    assert elites(np.array([1.0, 3.0, 3.0, 2.0]), 3) == [1, 2, 3]


def test_more_than_there_are_is_refused():
    with pytest.raises(ValueError, match="3 different members of 2"):
        spin(np.ones(2), 3, generator(0))
