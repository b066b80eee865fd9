"""Fronts, crowding and hypervolume against brute force."""

from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.core.pareto import (
    MAX_MEMBERS,
    FrontArchive,
    ParetoFront,
    crowding_distance,
    frozen_reference,
    hypervolume,
    non_dominated_mask,
    non_dominated_sort,
)

# Few distinct values, so that ties and duplicates are common.
points_of = st.tuples(st.integers(0, 12), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(-2, 4).map(float))
)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a >= b).all() and (a > b).any())


def brute_mask(points: np.ndarray) -> np.ndarray:
    return np.array([not any(dominates(q, p) for q in points) for p in points], dtype=bool)


def brute_volume(points: np.ndarray, reference: np.ndarray) -> float:
    """Inclusion-exclusion over all subsets of boxes."""
    heights = np.maximum(points - reference, 0.0)
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in combinations(range(len(points)), size):
            total -= (-1) ** size * float(np.prod(heights[list(subset)].min(axis=0)))
    return total


@given(points_of)
def test_the_mask_agrees_with_pairwise_comparison(points):
    np.testing.assert_array_equal(non_dominated_mask(points), brute_mask(points))


@given(points_of)
def test_sorting_peels_the_front_off_again_and_again(points):
    ranks = non_dominated_sort(points)
    left = np.arange(len(points))
    level = 0
    while len(left):
        mask = brute_mask(points[left])
        assert (ranks[left[mask]] == level).all()
        left, level = left[~mask], level + 1


@given(points_of, st.randoms(use_true_random=False))
def test_fronts_do_not_depend_on_the_order_or_on_monotone_rescaling(points, random):
    order = list(range(len(points)))
    random.shuffle(order)
    ranks = non_dominated_sort(points)
    np.testing.assert_array_equal(non_dominated_sort(points[order]), ranks[order])
    np.testing.assert_array_equal(non_dominated_sort(np.exp(points) * 3.0), ranks)


def test_equal_points_share_a_front_and_zero_equals_minus_zero():
    points = np.array([[1.0, 0.0], [1.0, -0.0], [0.0, 0.0]])
    np.testing.assert_array_equal(non_dominated_mask(points), [True, True, False])
    np.testing.assert_array_equal(non_dominated_sort(points), [0, 0, 1])


@pytest.mark.parametrize("m", [1, 2, 3])
def test_no_points_give_an_empty_front(m):
    empty = np.zeros((0, m))
    assert non_dominated_mask(empty).shape == (0,)
    assert non_dominated_sort(empty).shape == (0,)
    assert crowding_distance(empty).shape == (0,)
    assert hypervolume(empty, np.zeros(m)) == 0.0


@pytest.mark.parametrize("function", [non_dominated_mask, non_dominated_sort, crowding_distance])
def test_values_that_are_not_finite_are_refused(function):
    with pytest.raises(ValueError, match="point 1 holds"):
        function(np.array([[0.0, 0.0], [np.nan, 1.0]]))
    with pytest.raises(ValueError, match=r"shape \(n, M\)"):
        function(np.zeros(3))


@given(points_of)
def test_a_front_keeps_the_first_id_of_equal_points(points):
    ids = np.arange(len(points))[::-1] + 10
    front = ParetoFront.of(ids, points)
    assert (np.diff(front.candidate_ids) > 0).all()
    kept = {tuple(row) for row in points[brute_mask(points)]}
    assert {tuple(row) for row in front.objectives} == kept
    assert len(front) == len(kept)
    for candidate, row in zip(front.candidate_ids, front.objectives, strict=True):
        same = (points == row).all(axis=1)
        assert candidate == ids[same].min()


def test_ids_and_objectives_must_have_one_length():
    with pytest.raises(ValueError, match="candidate ids"):
        ParetoFront.of([1, 2], np.zeros((3, 2)))


# --- crowding -----------------------------------------------------------------------------


def test_crowding_is_the_normalised_gap_between_neighbours():
    points = np.array([[0.0, 4.0], [1.0, 3.0], [4.0, 0.0], [3.0, 0.5]])
    expected = [np.inf, 3 / 4 + 3.5 / 4, np.inf, 3 / 4 + 3 / 4]
    np.testing.assert_allclose(crowding_distance(points), expected)


def test_crowding_skips_an_objective_without_range():
    points = np.array([[0.0, 7.0], [1.0, 7.0], [2.0, 7.0], [4.0, 7.0]])
    np.testing.assert_allclose(crowding_distance(points), [np.inf, 0.5, 0.75, np.inf])
    np.testing.assert_array_equal(crowding_distance(np.ones((3, 2))), np.zeros(3))


@given(points_of, st.floats(0.1, 100.0), st.floats(-5.0, 5.0))
def test_crowding_does_not_depend_on_scale(points, scale, shift):
    np.testing.assert_allclose(
        crowding_distance(points * scale + shift), crowding_distance(points), rtol=1e-6, atol=1e-9
    )


# --- hypervolume --------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.integers(0, 7), st.integers(1, 5)).flatmap(
        lambda shape: arrays(
            np.float64, shape, elements=st.one_of(st.integers(-1, 3).map(float), st.floats(-1, 3))
        )
    )
)
def test_hypervolume_agrees_with_inclusion_exclusion(points):
    reference = np.linspace(-0.5, 0.25, points.shape[1])
    above = points[(points > reference).all(axis=1)]
    expected = brute_volume(above, reference)
    assert hypervolume(points, reference) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("m", [2, 3, 4, 5, 6])
def test_hypervolume_agrees_with_monte_carlo(m):
    rng = np.random.default_rng(m)
    points = rng.random((25, m))
    samples = rng.random((40_000, m))
    inside = (points[:, None, :] >= samples).all(axis=2).any(axis=0).mean()
    # 4 standard errors of a fraction
    tolerance = 4 * np.sqrt(inside * (1 - inside) / len(samples))
    assert hypervolume(points, np.zeros(m)) == pytest.approx(inside, abs=tolerance)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_hypervolume_ignores_order_duplicates_and_dominated_points(m):
    rng = np.random.default_rng(m)
    points = rng.random((12, m))
    reference = np.full(m, -0.1)
    volume = hypervolume(points, reference)
    more = np.concatenate([points, points[:4], points - 0.05, np.full((1, m), -3.0)])
    assert hypervolume(more[rng.permutation(len(more))], reference) == pytest.approx(volume)
    axes = rng.permutation(m)
    assert hypervolume(points[:, axes], reference[axes]) == pytest.approx(volume)
    assert hypervolume(points * 2 + 1, reference * 2 + 1) == pytest.approx(volume * 2**m)


def test_hypervolume_grows_when_a_point_enters_the_front():
    points = np.array([[1.0, 0.0], [0.0, 1.0]])
    reference = np.array([-1.0, -1.0])
    assert hypervolume(points, reference) == 3.0
    assert hypervolume(np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]), reference) == 3.25


def test_a_point_on_or_below_the_reference_adds_nothing():
    assert hypervolume(np.array([[5.0, 0.0], [-1.0, 9.0]]), np.zeros(2)) == 0.0


def test_more_than_six_objectives_are_refused():
    with pytest.raises(ValueError, match="at most 6 objectives, got 7"):
        hypervolume(np.ones((1, 7)), np.zeros(7))


def test_a_reference_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="reference"):
        hypervolume(np.ones((1, 2)), np.zeros(3))
    with pytest.raises(ValueError, match="reference"):
        hypervolume(np.ones((1, 2)), np.array([0.0, np.nan]))


def test_the_reference_lies_a_tenth_of_the_range_below_the_founders():
    founders = np.array([[0.2, 10.0], [0.6, 30.0]])
    np.testing.assert_allclose(frozen_reference(founders), [0.16, 8.0])


def test_an_objective_on_which_founders_agree_keeps_the_volume_positive():
    reference = frozen_reference(np.array([[0.5, 0.0], [0.7, 0.0]]))
    assert hypervolume(np.array([[0.7, 0.0]]), reference) > 0.0
    with pytest.raises(ValueError, match="founder"):
        frozen_reference(np.zeros((0, 2)))


# --- the archive --------------------------------------------------------------------------


@given(points_of)
def test_the_archive_holds_the_front_of_everything_added(points):
    m = points.shape[1]
    archive = FrontArchive(np.full(m, -3.0), n_objectives=m)
    for i, point in enumerate(points):
        before = {tuple(row) for row in archive.front().objectives}
        volume = archive.hypervolume()
        changed = archive.add(i, point)
        after = {tuple(row) for row in archive.front().objectives}
        assert changed == (before != after)
        assert archive.hypervolume() >= volume
        expected = ParetoFront.of(range(i + 1), points[: i + 1])
        np.testing.assert_array_equal(archive.front().candidate_ids, expected.candidate_ids)
        np.testing.assert_array_equal(archive.front().objectives, expected.objectives)
    assert archive.hypervolume() == pytest.approx(hypervolume(points, np.full(m, -3.0)))


def test_the_archive_keeps_the_first_of_equal_points():
    archive = FrontArchive(n_objectives=2)
    assert archive.add(7, np.array([1.0, 0.0]))
    assert not archive.add(3, np.array([1.0, 0.0]))
    assert archive.front().candidate_ids.tolist() == [7]


def test_the_archive_has_no_hypervolume_before_its_reference():
    archive = FrontArchive(n_objectives=2)
    archive.add(0, np.array([1.0, 2.0]))
    assert archive.hypervolume() is None
    archive.set_reference(np.zeros(2))
    assert archive.hypervolume() == 2.0
    with pytest.raises(ValueError, match="reference"):
        archive.set_reference(np.zeros(3))


def test_a_front_taken_from_the_archive_does_not_change_later():
    archive = FrontArchive(n_objectives=2)
    archive.add(0, np.array([1.0, 2.0]))
    front = archive.front()
    archive.add(1, np.array([2.0, 3.0]))
    assert front.objectives.tolist() == [[1.0, 2.0]]


def test_the_archive_refuses_bad_values():
    archive = FrontArchive(n_objectives=2)
    with pytest.raises(ValueError, match="candidate 4"):
        archive.add(4, np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match="expected 2"):
        archive.add(4, np.array([1.0]))


def test_fifty_thousand_adds_take_seconds_at_most():
    values = np.random.default_rng(0).normal(size=(50_000, 3))
    archive = FrontArchive(np.full(3, -6.0), n_objectives=3)
    start = time.perf_counter()
    for i, row in enumerate(values):
        archive.add(i, row)
        archive.hypervolume()
    assert time.perf_counter() - start < 20.0  # 0.3 s on an idle core


def test_a_large_front_of_five_objectives_is_left_to_the_estimate():
    rng = np.random.default_rng(0)
    points = np.abs(rng.normal(size=(MAX_MEMBERS + 1, 5)))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    archive = FrontArchive(np.zeros(5), n_objectives=5)
    for index, point in enumerate(points[:-1]):
        archive.add(index, point)
    assert archive.hypervolume() is not None
    archive.add(MAX_MEMBERS, points[-1])
    assert archive.hypervolume() is None
