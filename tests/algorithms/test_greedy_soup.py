"""Greedy soup: order, the keep rule, and what follows."""

import dataclasses

import numpy as np

from evomerge.algorithms.greedy_soup import GreedySoup
from evomerge.core.candidate import Proposal
from tests.algorithms.driving import Run, closeness, task_space, weights


def run_soup(score, **changes) -> Run:
    return Run(GreedySoup(), task_space(4, **changes), score)


def by_weights(table, default=0.0):
    """Return a score that looks a row of weights up."""

    def score(recipe):
        row = tuple(np.round(recipe.params["weights"][0], 6))
        return table.get(row, default)

    return score


MODELS = {(1, 0, 0, 0): 0.2, (0, 1, 0, 0): 0.8, (0, 0, 1, 0): 0.5, (0, 0, 0, 1): 0.6}


def test_models_are_tried_from_best_to_worst_and_kept_when_the_mean_is_as_good():
    table = MODELS | {
        (0, 0.5, 0, 0.5): 0.8,  # as good: kept
        (0, 0.333333, 0.333333, 0.333333): 0.7,  # worse: left out
        (0.333333, 0.333333, 0, 0.333333): 0.9,  # better: kept
    }
    run = run_soup(by_weights(table))
    np.testing.assert_allclose(weights(run.batch()), np.eye(4))
    tried = [weights(run.batch())[0] for _ in range(3)]
    third = 1.0 / 3.0
    expected = [[0, 0.5, 0, 0.5], [0, third, third, third], [third, third, 0, third]]
    np.testing.assert_allclose(tried, expected)
    run.algorithm.ask()
    assert [point.id for point in run.algorithm._soup] == [1, 3, 0]


def test_a_soup_names_its_ingredients():
    run = run_soup(by_weights(MODELS))
    run.batch()
    assert run.batch()[0].parents == (1, 3)


def test_models_scored_as_founders_are_not_scored_again():
    space = task_space(4)
    founders = tuple(Proposal(space.decode(row)) for row in np.eye(4))
    run = Run(GreedySoup(), dataclasses.replace(space, founders=founders), by_weights(MODELS))
    origins = [item.origin for item in run.founders().step(4)]
    assert origins == ["soup"] * 3 + ["random soup"]


def test_failed_models_and_soups_are_left_out():
    table = MODELS | {(0, 0, 1, 0): None, (0, 0.5, 0, 0.5): None, (0.5, 0.5, 0, 0): 0.8}
    run = run_soup(by_weights(table))
    run.batch()
    rows = [weights(run.batch())[0] for _ in range(2)]
    np.testing.assert_allclose(rows, [[0, 0.5, 0, 0.5], [0.5, 0.5, 0, 0]])
    assert run.batch()[0].origin == "random soup"
    assert [point.id for point in run.algorithm._soup] == [1, 0]


def test_random_soups_follow_when_everything_failed():
    run = run_soup(lambda recipe: None)
    run.batch()
    rows = weights(run.batch())
    np.testing.assert_allclose(rows.sum(axis=1), 1.0)
    assert len(np.unique(rows, axis=0)) == 4


def test_the_soup_is_no_worse_than_the_best_model():
    run = run_soup(closeness([0.4, 0.3, 0.2, 0.1]))
    run.batch()
    models = [run.score(item.recipe) for item in run.proposals]
    for _ in range(3):
        run.batch()
    run.algorithm.ask()
    assert run.algorithm._value >= max(models) - 1e-6
