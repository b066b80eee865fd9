"""auto: what it models, what it proposes, and that it finds optima with few evaluations."""

from dataclasses import replace

import numpy as np
import pytest

from evomerge.algorithms.auto import MAX_POINTS, MAX_TARGETS, Auto, _binned
from evomerge.algorithms.task_model import logits
from evomerge.core.candidate import Candidate, Evaluation, Proposal
from evomerge.core.objective import Bound, Constraint, Objective, Objectives
from evomerge.core.search_space import SearchedParam
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from evomerge.testing import check_search_algorithm
from tests.algorithms.driving import Run, closeness, task_space, weights


def best(run: Run) -> float:
    return max(run.score(item.recipe) for item in run.proposals)


def test_comes_near_a_smooth_optimum_in_few_evaluations():
    goal = [0.5, -0.4, 0.3, 0.1, 0.8]
    run = Run(Auto(), task_space(5, low=-1.0, high=1.0), closeness(goal))
    rows = weights(run.step(45))
    assert np.abs(rows[-10:] - goal).max(axis=1).min() < 0.1


def test_learns_for_all_layers_at_once():
    space = replace(
        task_space(4, low=-1.0, high=1.0), grouping="layer", n_groups=12, fixed={"lambda_": np.ones(12)}
    )  # fmt: skip
    goal = np.array([0.4, -0.2, 0.6, 0.0])

    def score(recipe):
        return float(np.exp(-((recipe.params["weights"] - goal) ** 2).sum() / 6.0))

    run = Run(Auto(), space, score)
    run.step(50)
    assert best(run) > 0.6  # 48 dimensions; a random point scores 0.03


def test_hundreds_of_dimensions():
    space = replace(
        task_space(40), grouping="layer", n_groups=8, fixed={"lambda_": np.ones(8)}
    )  # fmt: skip
    run = Run(Auto(), space, lambda recipe: float(recipe.params["weights"].mean()))
    run.step(12)
    assert best(run) > run.score(space.decode(space.initial()))


def test_every_kind_of_parameter():
    searched = (*task_space().searched, SearchedParam("density", 1, False, 0.1, 1.0, 0.5))
    space = replace(task_space(searched=searched), operator="ties")
    check = Run(Auto(), space, lambda recipe: -float((recipe.params["density"][0] - 0.9) ** 2))
    check.step(25)
    assert best(check) > -0.01  # and scores below 0 are modelled as they are


def test_graded_scores_are_modelled_one_by_one_and_votes_by_their_mean():
    graded = np.array([[0.1, 0.9], [0.0, 0.4], [1.0, 0.5]])
    targets, soft = logits(graded, True)
    np.testing.assert_allclose(targets, np.log((graded + soft) / (1.0 - graded + soft)))
    mean = graded.round().mean(axis=1, keepdims=True)
    targets, soft = logits(mean, False)
    np.testing.assert_allclose(targets, np.log((mean + soft) / (1.0 - mean + soft)))
    targets, soft = logits(graded - 2.0, True)
    assert soft is None
    np.testing.assert_array_equal(targets, graded - 2.0)


def test_many_examples_are_modelled_in_bins():
    scores = np.random.default_rng(0).random(3 * MAX_TARGETS).astype(np.float32)
    assert _binned(scores).shape == (MAX_TARGETS,)
    assert _binned(scores).mean() == pytest.approx(scores.mean(), rel=1e-6)


def test_long_runs_model_the_best_and_the_latest():
    algorithm = Run(Auto(), task_space(), closeness([0.5, 0.5, 0.5])).algorithm
    n = MAX_POINTS + 50
    algorithm._points = [np.zeros(3)] * n
    algorithm._values = [1.0 if i == 3 else 0.0 for i in range(n)]
    rows = algorithm._rows()
    assert {3, n - 1} <= {*rows}
    assert 240 not in rows
    assert len(rows) <= MAX_POINTS


def test_pending_points_are_not_asked_again():
    run = Run(Auto(), task_space(), closeness([0.5, 0.2, 0.9]))
    run.step(6)
    rows = weights([run.algorithm.ask() for _ in range(8)])
    assert len(np.unique(rows.round(6), axis=0)) == 8


def test_a_constraint_keeps_proposals_where_it_is_met():
    limit = Constraint(Objective("size", {"size": 1.0}), Bound(0.5), is_minimum=False)
    objectives = Objectives((Objective("o0", {"o0": 1.0}),), (limit,))
    space, algorithm = task_space(2), Auto()
    algorithm.start(space, objectives, generator(0))
    sizes = []
    for number in range(40):
        proposal = algorithm.ask()
        mean = float(proposal.recipe.params["weights"].mean())
        scores = {"o0": np.array([mean], np.float32), "size": np.array([mean], np.float32)}
        algorithm.tell(Evaluation(Candidate(number, proposal.recipe), scores))
        sizes.append(mean)
    assert np.mean(sizes[-10:]) == pytest.approx(0.5, abs=0.08)


def test_front_share_spreads_two_objectives():
    def ends(share: float) -> float:
        def score(recipe):
            row = recipe.params["weights"][0]
            return [float(1.0 - row[0] ** 2), float(1.0 - (1.0 - row[0]) ** 2)]

        run = Run(Auto(front_share=share), task_space(2), score, n_objectives=2)
        return float(np.ptp(weights(run.step(40))[10:, 0]))

    assert ends(1.0) > ends(0.0)


def test_founders_outside_the_space_are_left_out():
    run = Run(Auto(), task_space(2), closeness([0.5, 0.5]))
    outside = task_space(2, low=-5.0, high=5.0).decode(np.array([0.9, 0.1]))
    run.tell(Proposal(outside))
    assert run.algorithm._points == []


@pytest.mark.parametrize(("field", "value"), [("optimism", -1.0), ("front_share", 1.5)])
def test_bad_config(field, value):
    with pytest.raises(ConfigError, match=f"algorithm.{field}"):
        Auto(**{field: value})


def test_contract_with_a_front():
    check_search_algorithm(lambda: Auto(front_share=0.5))


def told(algorithm, space, n, *, margins=True, hidden=False, seed=0, start=0):
    """Tell n random points whose 40 margins fall with the distance from 0.3, or their scores."""
    rng = np.random.default_rng(seed)
    levels = np.linspace(-1.0, 1.0, 40)
    for number in range(start, start + n):
        recipe = space.decode(rng.random(space.dimension))
        leads = (levels - np.abs(recipe.params["weights"] - 0.3).sum()).astype(np.float32)
        scores = {"o0": (leads > 0.0).astype(np.float32)}
        if hidden:
            leads[::2] = np.nan
        given = {"o0": leads} if margins else {}
        algorithm.tell(Evaluation(Candidate(number, recipe), scores, margins=given))


@pytest.mark.parametrize(
    ("groups", "is_modelled"),
    [
        ([{"n": 12}], True),
        ([{"n": 20, "margins": False}, {"n": 3}], False),  # a warm start without margins
        ([{"n": 2, "margins": False}, {"n": 30}], True),
        ([{"n": 11}, {"n": 1, "hidden": True}], False),  # a race
    ],
)
def test_margins_are_modelled_where_nearly_all_points_have_all(groups, is_modelled):
    space, algorithm = task_space(2), Auto()
    objectives = Objectives((Objective("o0", {"o0": 1.0}),))
    algorithm.start(space, objectives, generator(0))
    start = 0
    for seed, group in enumerate(groups):
        told(algorithm, space, **group, seed=seed, start=start)
        start += group["n"]
    model = algorithm._models()["o0"]
    assert (model.width is not None) == is_modelled
    assert len(model.processes[0]._points) == (30 if start == 32 else start)
    assert np.isfinite(algorithm.ask().recipe.params["weights"]).all()


def test_a_task_under_a_constraint_is_modelled_by_its_share():
    limit = Constraint(Objective("o0", {"o0": 1.0}), Bound(0.5), is_minimum=True)
    space, algorithm = task_space(2), Auto()
    objectives = Objectives((Objective("o0", {"o0": 1.0}),), (limit,))
    algorithm.start(space, objectives, generator(0))
    told(algorithm, space, 12)
    assert algorithm._models()["o0"].width is None


def test_answers_that_are_all_alike_are_modelled_by_their_mean():
    space, algorithm = task_space(2), Auto()
    algorithm.start(space, Objectives((Objective("o0", {"o0": 1.0}),)), generator(0))
    for number in range(5):
        recipe = space.decode(np.full(space.dimension, number / 5))
        margins = {"o0": np.full(30, 2.0, np.float32)}
        scores = {"o0": np.ones(30, np.float32)}
        algorithm.tell(Evaluation(Candidate(number, recipe), scores, margins=margins))
    assert algorithm._models()["o0"].width is None
