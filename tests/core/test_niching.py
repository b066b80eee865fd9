"""Fitness sharing and attraction against loops over the formulas of algorithms.md §1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.core.niching import attraction, lift, roulette, shared_fitness

SCORES = st.tuples(st.integers(2, 6), st.integers(1, 8)).flatmap(
    lambda shape: st.one_of(
        arrays(np.float64, shape, elements=st.sampled_from([0.0, 1.0])),
        arrays(np.float64, shape, elements=st.floats(0.0, 1.0, width=32, allow_subnormal=False)),
    )
)


def reference(scores, alpha, capacity):
    fitness = np.zeros(len(scores))
    for j in range(scores.shape[1]):
        z = sum(scores[:, j]) ** alpha
        c = max(scores[:, j]) if capacity == "auto" else 1.0
        for i in range(len(scores)):
            fitness[i] += c * scores[i, j] / (z if z else 1.0)
    return fitness


@given(SCORES, st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.sampled_from(["auto", "one"]))
@settings(max_examples=200, deadline=None)
def test_shared_fitness_follows_the_formula(scores, alpha, capacity):
    expected = reference(scores, alpha, capacity)
    found = shared_fitness(scores, alpha, capacity)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@given(SCORES)
@settings(max_examples=200, deadline=None)
def test_attraction_follows_the_formula(scores):
    for a in range(len(scores)):
        expected = np.zeros(len(scores))
        for j in range(scores.shape[1]):
            z, c = sum(scores[:, j]), max(scores[:, j])
            expected += c / (z if z else 1.0) * np.maximum(0.0, scores[:, j] - scores[a, j])
        found = attraction(scores, a)
        assert found[a] == 0.0
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_full_sharing_hands_out_every_solved_example_once():
    scores = (np.random.default_rng(0).random((5, 30)) < 0.3).astype(float)
    assert shared_fitness(scores, 1.0).sum() == pytest.approx(scores.any(axis=0).sum())


def test_alpha_zero_is_plain_accuracy():
    scores = (np.random.default_rng(0).random((5, 30)) < 0.3).astype(float)
    np.testing.assert_array_equal(shared_fitness(scores, 0.0), scores.sum(axis=1))


@given(SCORES, st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_equal_rows_have_exactly_equal_fitness(scores, row):
    doubled = np.vstack([scores, scores[row % len(scores)]])
    fitness = shared_fitness(doubled, 1.0)
    assert fitness[-1] == fitness[row % len(scores)]


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf])
def test_bad_scores_are_refused(bad):
    with pytest.raises(ValueError, match="finite and not negative"):
        shared_fitness(np.array([[0.0, bad], [1.0, 1.0]]), 1.0)
    with pytest.raises(ValueError, match="finite and not negative"):
        attraction(np.array([[0.0, bad], [1.0, 1.0]]), 0)


def test_lift_shifts_only_columns_with_negative_scores():
    scores = np.array([[-3.0, 0.5, -1.0], [-1.0, 0.25, 2.0]])
    np.testing.assert_array_equal(lift(scores), [[0.0, 0.5, 0.0], [2.0, 0.25, 3.0]])
    plain = np.array([[0.5], [1.0]])
    assert lift(plain) is plain


def test_roulette_draws_in_proportion():
    rng = np.random.default_rng(0)
    draws = [roulette(np.array([1.0, 0.0, 3.0]), rng) for _ in range(4000)]
    counts = np.bincount(draws, minlength=3) / 4000
    assert counts[1] == 0.0
    assert counts[2] == pytest.approx(0.75, abs=0.03)


def test_roulette_is_uniform_over_the_others_when_all_weights_are_zero():
    rng = np.random.default_rng(0)
    draws = [roulette(np.zeros(4), rng, exclude=1) for _ in range(3000)]
    np.testing.assert_allclose(
        np.bincount(draws, minlength=4) / 3000, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.03
    )
    assert {roulette(np.zeros(2), rng) for _ in range(50)} == {0, 1}


def test_roulette_never_draws_the_excluded_or_worthless():
    class AlmostOne:
        def random(self):
            return np.nextafter(1.0, 0.0)

    assert roulette(np.array([1.0, 2.0, 0.0]), AlmostOne()) == 1
    assert roulette(np.array([1.0, 2.0, 5.0]), AlmostOne(), exclude=2) == 1
    assert roulette(np.zeros(3), AlmostOne(), exclude=0) == 2
    assert roulette(np.zeros(3), AlmostOne(), exclude=2) == 1
