"""MAP-Elites keeps the best of every cell; GA is M2N2 without niches."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.algorithms.ga import Ga
from evomerge.algorithms.m2n2 import M2N2
from evomerge.algorithms.map_elites import MapElites
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.objective import Objective, Objectives
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from evomerge.testing import linear_problem


def started(**config) -> MapElites:
    problem, algorithm = linear_problem(), MapElites(**config)
    algorithm.start(problem.space, problem.objectives, generator(0))
    return algorithm


def tell(algorithm, number, founder, first, second) -> None:
    recipe = linear_problem().space.founders[founder].recipe
    scores = {"first": np.full(16, first, np.float32), "second": np.full(8, second, np.float32)}
    algorithm.tell(Evaluation(Candidate(number, recipe), scores))


def test_a_cell_keeps_its_best_and_the_newer_of_equals():
    algorithm = started(bins=2)
    tell(algorithm, 0, 0, 0.1, 0.1)
    tell(algorithm, 1, 1, 0.3, 0.2)  # better, same cell
    tell(algorithm, 2, 2, 0.0, 0.0)  # worse
    tell(algorithm, 3, 3, 0.3, 0.2)  # equal
    tell(algorithm, 4, 0, 1.0, -5.0)  # another, off the grid on one side
    assert algorithm.n_cells == 2
    assert {algorithm.ask().parents for _ in range(40)} == {(3, 4), (4, 3)}


def test_one_objective_is_split_into_two_halves_of_its_examples():
    problem, algorithm = linear_problem(), MapElites(bins=2)
    one = Objectives((Objective("first", {"first": 1.0}),))
    algorithm.start(problem.space, one, generator(0))
    for number, scores in enumerate(([1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 1, 1], [1])):
        candidate = Candidate(number, problem.space.founders[number % 4].recipe)
        algorithm.tell(Evaluation(candidate, {"first": np.array(scores, np.float32)}))
    assert algorithm.n_cells == 3


@pytest.mark.parametrize(
    "config", [{"bins": 1}, {"low": 1.0}, {"angle_scope": "layer"}, {"max_segments": 1}]
)
def test_impossible_settings_are_refused(config):
    with pytest.raises(ConfigError, match=next(iter(config))):
        MapElites(**config)


def test_ga_is_m2n2_without_sharing_and_attraction():
    problem = linear_problem()
    proposals = []
    for algorithm in (Ga(), M2N2(alpha=0.0, attraction=False, capacity="one")):
        algorithm.start(problem.space, problem.objectives, generator(4))
        digests = []
        for number in range(40):
            recipe = algorithm.ask().recipe
            digests.append(recipe.digest())
            algorithm.tell(Evaluation(Candidate(number, recipe), problem.scores(recipe)))
        assert algorithm.champion is not None
        proposals.append(digests)
    assert proposals[0] == proposals[1]


def test_warm_up_merges_random_sources_first():
    problem, algorithm = linear_problem(), M2N2(warm_up=5)
    algorithm.start(problem.space, problem.objectives, generator(4))
    for number, founder in enumerate(problem.space.founders):
        scores = problem.scores(founder.recipe)
        algorithm.tell(Evaluation(Candidate(number, founder.recipe), scores))
    origins = [algorithm.ask().origin for _ in range(8)]
    assert origins == ["warm-up"] * 5 + ["crossover"] * 3
