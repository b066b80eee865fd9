"""Evo-Merging's two stages."""

import dataclasses

import numpy as np
import pytest

from evomerge.algorithms.evo_merging import EvoMergingSearch, l1_loss
from evomerge.core.candidate import Proposal
from evomerge.core.objective import Objective, Objectives
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.errors import ConfigError
from evomerge.testing import LinearProblem, check_search_algorithm
from tests.algorithms.driving import Run, task_space, weights

ALPHA = SearchedParam("alpha", 2, True, 0.0, 1.0, 1.0)
BETA = SearchedParam("beta", 2, True, -1.5, 1.5, 0.5)
SPACE = SearchSpace("evo_merging", ("base", "x", "y"), "global", 1, (ALPHA, BETA))


def score(recipe):
    alpha, beta = recipe.params["alpha"][0], recipe.params["beta"][0]
    return float(
        np.exp(-np.square(alpha - [0.4, 0.8]).sum()) * np.exp(-np.square(beta - [1.0, -0.5]).sum())
    )


def search(space=SPACE, seed=0, scored=score, **config) -> Run:
    settings = {"budget_hint": 180, "population_size": 10, "sigma": 0.2, "first_penalty": 0.0}
    return Run(EvoMergingSearch(**(settings | config)), space, scored, seed=seed)


def test_the_penalty_is_the_mean_size_of_the_parameters():
    assert l1_loss(0.7, np.array([-1.0, 0.5]), 0.05) == pytest.approx(-0.7 + 0.05 * 0.75)


def test_the_first_stage_moves_alpha_only_and_takes_its_share_of_the_budget():
    run = search()
    first = [run.batch() for _ in range(6)]
    assert all(len(batch) == 10 for batch in first)
    proposals = [item for batch in first for item in batch]
    np.testing.assert_allclose(weights(proposals, "beta"), 0.5)
    assert len(np.unique(weights(proposals, "alpha"), axis=0)) == 60
    assert {item.origin for item in proposals} == {"stage 1 of 2"}
    assert run.batch()[0].origin == "stage 2 of 2"


def test_the_second_stage_freezes_the_best_alpha_and_moves_beta():
    run = search()
    for _ in range(6):
        run.batch()
    best = max(run.proposals, key=lambda item: score(item.recipe))
    second = [item for _ in range(3) for item in run.batch()]
    expected = np.tile(best.recipe.params["alpha"], (30, 1))
    np.testing.assert_allclose(weights(second, "alpha"), expected, atol=1e-12)
    assert len(np.unique(weights(second, "beta"), axis=0)) == 30


def test_the_penalty_decides_between_equally_good_values():
    run = search(scored=lambda recipe: 0.5, first_penalty=0.1)
    for _ in range(6):
        run.batch()
    smallest = weights(run.proposals, "alpha").mean(axis=1).min()
    run.batch()
    assert run.algorithm._fixed[:2].mean() == pytest.approx(smallest)


def test_the_second_stage_does_not_compete_with_the_loss_of_the_first():
    run = search(second_penalty=5.0)
    for _ in range(7):
        run.batch()
    run.algorithm.ask()
    best = min(
        l1_loss(np.float32(score(item.recipe)), item.recipe.params["beta"], 5.0)
        for item in run.proposals[60:]
    )
    assert run.algorithm._best_loss == pytest.approx(best, abs=1e-6)


def test_both_stages_together_find_signs_and_shares():
    run = search(budget_hint=400, first_share=0.4, second_penalty=0.0)
    while run.asked < 400:
        run.batch()
    best = max(run.proposals, key=lambda item: score(item.recipe)).recipe
    np.testing.assert_allclose(best.params["alpha"][0], [0.4, 0.8], atol=0.05)
    np.testing.assert_allclose(best.params["beta"][0], [1.0, -0.5], atol=0.05)


def test_a_founder_with_the_frozen_values_counts():
    founder = SPACE.decode(np.array([0.4, 0.8, *SPACE.initial()[2:]]))
    run = search(dataclasses.replace(SPACE, founders=(Proposal(founder),))).founders()
    while run.batch()[0].origin == "stage 1 of 2":
        pass
    np.testing.assert_allclose(run.algorithm._fixed[:2], [0.4, 0.8])


@pytest.mark.parametrize("searched", [(ALPHA,), (BETA,)])
def test_with_one_kind_of_parameter_there_is_one_stage(searched):
    space = dataclasses.replace(SPACE, searched=searched)
    run = search(space, scored=lambda recipe: 0.0)
    assert {run.batch()[0].origin for _ in range(10)} == {"stage 1 of 1"}


def test_a_generation_that_failed_altogether_is_drawn_anew():
    run = search(scored=lambda recipe: None)
    for _ in range(8):
        run.batch()
    np.testing.assert_allclose(run.algorithm._fixed[:2], 1.0)  # where stage 1 began


def test_many_parameters_get_a_diagonal_covariance():
    for groups, diagonal in ((10, False), (51, True)):
        space = dataclasses.replace(SPACE, grouping="layer", n_groups=groups)
        run = search(space, scored=lambda recipe: 0.0)
        run.algorithm.ask()
        assert bool(run.algorithm._engine.opts["CMA_diagonal"]) == diagonal


def test_converged_engines_are_replaced():
    run = search(task_space(), scored=lambda recipe: 0.0, population_size=4)
    for _ in range(150):
        run.batch()
    assert len(np.unique(weights(run.proposals), axis=0)) > 500


class Problem(LinearProblem):
    """Two parameters; scores depend on both."""

    def scores(self, recipe):
        return {"o0": np.array([score(recipe)], np.float32)}


def test_two_stages_keep_the_contract():
    problem = Problem(SPACE, Objectives((Objective("o0", {"o0": 1.0}),)), np.zeros((3, 1)))
    check_search_algorithm(
        lambda: EvoMergingSearch(budget_hint=60, population_size=5, sigma=0.1), problem
    )


@pytest.mark.parametrize(
    "config",
    [{"first_share": 0.0}, {"first_penalty": -1.0}, {"population_size": 2}, {"budget_hint": 0}],
)
def test_values_that_cannot_work_are_refused(config):
    with pytest.raises(ConfigError, match=f"algorithm.{next(iter(config))}"):
        EvoMergingSearch(**config)
