"""Paired dominance against tests written out example by example."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.core.confidence import standard_errors, unbeaten
from evomerge.core.objective import Objective

ONE = (Objective("a", {"a": 1.0}),)
TWO = (Objective("a", {"a": 1.0}), Objective("b", {"b": 1.0}))
binary = st.integers(2, 6).flatmap(
    lambda p: st.integers(1, 24).flatmap(
        lambda n: st.tuples(
            arrays(np.float32, (p, n), elements=st.integers(0, 1).map(float)),
            arrays(np.float32, (p, n), elements=st.integers(0, 1).map(float)),
        )
    )
)


def sign_test_beats(a, b, delta):
    wins, losses = int((a > b).sum()), int((b > a).sum())
    n = wins + losses
    chance = sum(math.comb(n, k) for k in range(wins, n + 1)) / 2**n
    return chance <= delta


@settings(deadline=None, max_examples=80)
@given(binary, st.sampled_from([0.6, 0.9, 0.95, 0.99]))
def test_right_and_wrong_answers_get_the_exact_sign_test(tables, confidence):
    a, b = tables
    beaten = [
        any(
            all(sign_test_beats(table[i], table[j], 1 - confidence) for table in (a, b))
            for i in range(len(a))
        )
        for j in range(len(a))
    ]
    found = unbeaten({"a": a, "b": b}, TWO, confidence)
    np.testing.assert_array_equal(found, ~np.array(beaten))


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 7), st.integers(2, 30), st.integers(0, 10**6))
def test_real_scores_get_the_normal_test_on_paired_differences(p, n, seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(p, n)).astype(np.float32) + rng.normal(size=(p, 1)).astype(np.float32)
    b = rng.normal(size=(p, n + 3)).astype(np.float32)
    mixed = (Objective("mixed", {"a": 2.0, "b": 1.0}),)
    z = NormalDist().inv_cdf(0.9)

    def beats(i, j):
        parts = [(2 / 3, (a[i] - a[j]).astype(float)), (1 / 3, (b[i] - b[j]).astype(float))]
        gap = sum(w * d.mean() for w, d in parts)
        error = math.sqrt(sum(w**2 * d.var(ddof=1) / len(d) for w, d in parts))
        return gap > 0 and gap >= z * error

    expected = [not any(beats(i, j) for i in range(p) if i != j) for j in range(p)]
    np.testing.assert_array_equal(unbeaten({"a": a, "b": b}, mixed, 0.9), expected)


def test_a_small_lead_proves_nothing_and_a_large_one_does():
    better, worse = np.zeros(40, np.float32), np.zeros(40, np.float32)
    better[:4] = 1
    scores = {"a": np.stack([better, worse])}
    assert unbeaten(scores, ONE, 0.95).tolist() == [True, True]  # 4 : 0 has p = 1/16
    better[:5] = 1
    scores = {"a": np.stack([better, worse])}
    assert unbeaten(scores, ONE, 0.95).tolist() == [True, False]  # 5 : 0 has p = 1/32


def test_a_lead_in_one_objective_alone_beats_nobody():
    strong, weak = np.ones(50, np.float32), np.zeros(50, np.float32)
    scores = {"a": np.stack([strong, weak]), "b": np.stack([weak, strong])}
    assert unbeaten(scores, TWO, 0.95).all()


def test_one_example_proves_nothing():
    scores = {"a": np.array([[0.9], [0.1], [0.4]], np.float32)}
    assert unbeaten(scores, ONE, 0.95).all()


def test_more_candidates_than_fit_in_one_table():
    rng = np.random.default_rng(0)
    scores = {"a": (rng.random((600, 30)) < np.linspace(0, 1, 600)[:, None]).astype(np.float32)}
    found = unbeaten(scores, ONE, 0.95)
    expected = [
        not any(sign_test_beats(scores["a"][i], scores["a"][j], 0.05) for i in (599, 598, 590))
        for j in range(0, 600, 50)
    ]
    assert not (found[::50] & ~np.array(expected)).any()
    assert found[-1]
    assert not found[0]


@pytest.mark.parametrize("confidence", [0.5, 1.0, 0.0, float("nan")])
def test_confidence_must_be_a_probability_above_one_half(confidence):
    with pytest.raises(ValueError, match="confidence must be"):
        unbeaten({"a": np.zeros((2, 3), np.float32)}, ONE, confidence)


def test_standard_errors_are_those_of_weighted_means():
    rng = np.random.default_rng(1)
    a, b = rng.random((3, 50)).astype(np.float32), rng.random((3, 1)).astype(np.float32)
    errors = standard_errors({"a": a, "b": b}, (*ONE, Objective("m", {"a": 3.0, "b": 1.0})))
    plain = a.astype(float).std(axis=1, ddof=1) / math.sqrt(50)
    np.testing.assert_allclose(errors, np.stack([plain, 0.75 * plain], axis=1))
