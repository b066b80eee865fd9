"""Population: append-only arrays."""

from __future__ import annotations

import time

import numpy as np
import pytest

from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.population import Population
from evomerge.core.recipe import Recipe

RECIPE = Recipe("linear", ("a", "b"), {})


def told(candidate_id: int, error: str | None = None) -> Evaluation:
    return Evaluation(Candidate(candidate_id, RECIPE), error=error)


def test_an_empty_population_has_shapes():
    population = Population(3)
    assert len(population) == 0
    assert population.objectives().shape == (0, 3)
    assert population.candidate_ids.shape == (0,)


def test_candidates_stay_in_the_order_they_were_told():
    rng = np.random.default_rng(0)
    values = rng.random((300, 2))
    ids = rng.permutation(300)
    population = Population(2)
    for candidate, row in zip(ids, values, strict=True):
        population.add(told(int(candidate)), row)
    np.testing.assert_array_equal(population.objectives(), values)
    np.testing.assert_array_equal(population.candidate_ids, ids)


def test_failures_are_counted_and_not_stored():
    population = Population(1)
    population.add(told(0, error="out of memory"), None)
    population.add(told(1), np.array([0.5]))
    assert population.failures == 1
    assert population.candidate_ids.tolist() == [1]


@pytest.mark.parametrize("values", [None, np.array([1.0]), np.array([1.0, np.nan])])
def test_a_scored_candidate_needs_finite_values(values):
    with pytest.raises(ValueError, match="candidate 4: expected 2 finite"):
        Population(2).add(told(4), values)


def test_views_cannot_be_written_to():
    population = Population(1)
    population.add(told(1), np.array([0.5]))
    with pytest.raises(ValueError, match="read-only"):
        population.objectives()[0, 0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        population.candidate_ids[0] = 1
    population.add(told(2), np.array([0.7]))
    assert population.objectives().tolist() == [[0.5], [0.7]]


def test_a_population_needs_an_objective():
    with pytest.raises(ValueError, match="at least 1"):
        Population(0)


def test_fifty_thousand_adds_take_seconds_at_most():
    population = Population(2)
    values = np.random.default_rng(0).random((50_000, 2))
    evaluation = told(1)
    start = time.perf_counter()
    for row in values:
        population.add(evaluation, row)
    assert time.perf_counter() - start < 10.0
    assert len(population) == 50_000
