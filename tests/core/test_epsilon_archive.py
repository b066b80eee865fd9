"""The thin front: every candidate has a member within epsilon, and no box is held twice."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.core.epsilon_archive import EpsilonArchive

points_of = st.tuples(st.integers(1, 20), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-20, 20).map(lambda v: v / 8))
)


def filled(points, epsilon):
    archive = EpsilonArchive(epsilon)
    for index, point in enumerate(points):
        archive.add(index, point)
    return archive.front()


@settings(deadline=None, max_examples=100)
@given(points_of, st.sampled_from([0.25, 0.5, 1.0]))
def test_every_candidate_is_at_most_epsilon_better_than_some_member(points, width):
    front = filled(points, np.full(points.shape[1], width))
    reached = (front.objectives[None] >= points[:, None] - width).all(axis=2).any(axis=1)
    assert reached.all()


@settings(deadline=None, max_examples=100)
@given(points_of, st.sampled_from([0.25, 0.5, 1.0]))
def test_no_box_of_a_member_dominates_or_equals_another(points, width):
    front = filled(points, np.full(points.shape[1], width))
    boxes = np.floor(front.objectives / width)
    no_worse = (boxes[:, None] >= boxes[None]).all(axis=2)
    np.testing.assert_array_equal(no_worse, np.eye(len(front), dtype=bool))
    assert front.candidate_ids.tolist() == sorted(front.candidate_ids.tolist())
    np.testing.assert_array_equal(front.objectives, points[front.candidate_ids])


def test_in_one_box_the_dominating_then_the_nearer_then_the_first_stays():
    archive = EpsilonArchive([1.0, 1.0])
    assert archive.add(0, np.array([0.2, 0.2]))
    assert archive.add(1, np.array([0.3, 0.2]))  # dominates
    assert not archive.add(2, np.array([0.3, 0.2]))  # equal
    assert archive.add(3, np.array([0.1, 0.9]))  # nearer to (1, 1)
    assert not archive.add(4, np.array([0.9, 0.1]))  # as near
    assert archive.front().candidate_ids.tolist() == [3]
    assert len(archive) == 1


@pytest.mark.parametrize("epsilon", [[], [0.0], [1.0, -1.0], [np.nan], [[1.0]]])
def test_bad_widths_are_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon must be"):
        EpsilonArchive(epsilon)


@pytest.mark.parametrize("point", [[1.0], [1.0, np.nan]])
def test_bad_values_are_refused(point):
    with pytest.raises(ValueError, match="candidate 7"):
        EpsilonArchive([1.0, 1.0]).add(7, np.array(point))
