"""Model Swarms and PSO-Merging."""

import dataclasses

import numpy as np
import pytest

from evomerge.algorithms.generations import Point
from evomerge.algorithms.model_swarms import ModelSwarms
from evomerge.algorithms.pso_merging import PsoMerging
from evomerge.algorithms.swarm import Particle, Pulls, blended_velocity, inertial_velocity
from evomerge.core.candidate import Proposal
from evomerge.core.search_space import SearchedParam
from evomerge.errors import ConfigError
from tests.algorithms.driving import Run, closeness, task_space, weights


def particle(position=(1.0, 0.0), velocity=(0.5, 0.5), best=(0.0, 1.0)):
    here = Point(np.array(position), "", value=0.0)
    return Particle(here, np.array(velocity), Point(np.array(best), "", value=1.0))


def test_the_blended_velocity_of_a_hand_computed_step():
    # shares .1 .2 .3 .2 of .8: (.05 -.2 -.3 +.2, .05 +.2 +.6 +0) / .8
    found = blended_velocity(
        particle(),
        np.array([0.0, 2.0]),
        np.array([0.0, 0.0]),
        Pulls(inertia=0.2, cognitive=0.4, social=0.3, repel=0.8),
        np.array([0.5, 0.5, 1.0, 0.25]),
    )
    np.testing.assert_allclose(found, [-0.25 / 0.8, 0.85 / 0.8])


def test_without_any_draw_the_velocity_stays():
    found = blended_velocity(
        particle(), np.zeros(2), np.zeros(2), Pulls(1.0, 1.0, 1.0, 1.0), np.zeros(4)
    )
    np.testing.assert_array_equal(found, [0.5, 0.5])


def test_the_inertial_velocity_of_a_hand_computed_step():
    # .2 (.5 .5) + 2 .5 (-1 1) + 2 .25 (-1 2)
    found = inertial_velocity(
        particle(),
        np.array([0.0, 2.0]),
        inertia=0.2,
        cognitive=2.0,
        social=2.0,
        draws=np.array([0.5, 0.25]),
    )
    np.testing.assert_allclose(found, [0.1 - 1.0 - 0.5, 0.1 + 1.0 + 1.0])


def test_a_particle_remembers_its_best_and_stays_where_a_move_failed():
    item = particle()
    better, worse = (Point(np.zeros(2), "", value=value) for value in (2.0, 0.5))
    item.arrive(better)
    assert (item.best, item.position, item.stale) == (better, better, 0)
    item.arrive(worse)
    item.arrive(Point(np.zeros(2), ""))
    assert (item.best, item.position, item.stale) == (better, worse, 2)


def swarm(score=None, *, space=None, **config):
    algorithm = ModelSwarms(**({"population_size": 5} | config))
    return Run(algorithm, space or task_space(), score or closeness([0.2, 0.3, 0.5]))


def test_a_swarm_starts_at_the_models_and_on_lines_through_two():
    run = swarm(space=task_space(low=-1.0, high=2.0))
    rows = weights(run.batch())
    np.testing.assert_allclose(rows[:3], np.eye(3), atol=1e-12)
    for row in rows[3:]:
        assert np.isclose(row, 0.0).sum() == 1
        assert row.sum() == pytest.approx(1.0)
        assert -1.0 <= row.min() <= row.max() <= 2.0


def test_models_scored_as_founders_are_not_scored_again():
    space = task_space()
    founders = tuple(Proposal(space.decode(row)) for row in np.eye(3))
    run = swarm(space=dataclasses.replace(space, founders=founders)).founders()
    assert [item.origin for item in run.batch()] == ["line through two"] * 2
    assert len(run.batch()) == 5


def test_every_particle_moves_by_step_times_velocity():
    run = swarm(step=0.5)
    run.batch()
    run.algorithm.ask()
    moved = run.algorithm._batch
    for item, point in zip(run.algorithm._particles, moved, strict=True):
        expected = (item.position.vector + 0.5 * item.velocity).clip(0.0, 1.0)
        np.testing.assert_allclose(point.vector, expected)


def test_the_step_of_the_swarm_shrinks_to_its_smallest():
    run = swarm(step=1.0, step_decay=0.5, smallest_step=0.2, patience=100)
    run.batch()
    steps = [run.batch() and run.algorithm._step for _ in range(4)]
    assert steps == [0.5, 0.25, 0.2, 0.2]


def test_a_stale_particle_returns_to_its_best_and_stands_still():
    run = swarm(
        lambda recipe: float(-run.asked), restart_patience=2, inertia=1.0, cognitive=0.0,
        social=0.0, repel=0.0, patience=100,
    )  # fmt: skip
    start = weights(run.batch())
    for _ in range(2):
        run.batch()
    np.testing.assert_allclose(weights(run.batch()), start, atol=1e-12)


def test_a_swarm_without_progress_is_made_anew():
    run = swarm(lambda recipe: 0.5, patience=2)
    kinds = [run.batch()[0].origin for _ in range(5)]
    assert kinds == ["model", "move", "move", "line through two", "move"]


@pytest.mark.parametrize("make", [ModelSwarms, PsoMerging])
def test_swarms_find_a_mixture_inside_the_simplex(make):
    run = Run(make(), task_space(), closeness([0.2, 0.3, 0.5]), seed=1)
    while run.asked < 150:
        run.batch()
    assert max(run.score(item.recipe) for item in run.proposals) > 0.9  # a model has 0.68


def test_pso_starts_at_base_models_and_mixtures():
    run = Run(PsoMerging(), task_space(), closeness([0.2, 0.3, 0.5]))
    rows = weights(run.batch())
    assert len(rows) == 2 * 3 + 1
    np.testing.assert_allclose(rows[:4], [[0.0] * 3, *np.eye(3)], atol=1e-12)
    np.testing.assert_allclose(rows[4:].sum(axis=1), 1.0)


def test_pso_sparsifies_the_models_where_density_is_searched():
    space = task_space()
    density = SearchedParam("density", 1, False, 0.1, 1.0, 0.5)
    space = dataclasses.replace(
        space, operator="dare_linear", searched=(*space.searched, density), settings={}
    )
    run = Run(PsoMerging(), space, closeness([0.2, 0.3, 0.5]))
    recipes = [item.recipe for item in run.batch()]
    np.testing.assert_allclose(
        [recipe.params["density"][0] for recipe in recipes], [1.0] * 4 + [0.2] * 3
    )
    np.testing.assert_allclose(
        [recipe.params["weights"][0] for recipe in recipes],
        [[0.0] * 3, *np.eye(3), *np.eye(3)],
        atol=1e-12,
    )


def test_pso_starts_a_new_swarm_after_its_moves_without_scoring_the_models_again():
    run = Run(PsoMerging(moves=2), task_space(), closeness([0.2, 0.3, 0.5]))
    kinds = [[item.origin for item in run.batch()] for _ in range(4)]
    assert kinds[0] == ["model"] * 4 + ["random pair"] * 3
    assert kinds[1] == kinds[2] == ["move"] * 7
    assert kinds[3] == ["random pair"] * 3


def test_pso_leaves_the_best_particle_at_rest_in_its_first_move():
    run = Run(PsoMerging(), task_space(), closeness([1.0, 0.0, 0.0]))
    run.batch()
    np.testing.assert_allclose(weights(run.batch())[1], [1.0, 0.0, 0.0], atol=1e-12)


@pytest.mark.parametrize(
    ("make", "config"),
    [
        (ModelSwarms, {"population_size": 1}),
        (ModelSwarms, {"smallest_step": 2.0}),
        (ModelSwarms, {"restart_patience": 0}),
        (PsoMerging, {"social": 0.0}),
        (PsoMerging, {"inertia": 1.5}),
    ],
)
def test_values_that_cannot_work_are_refused(make, config):
    with pytest.raises(ConfigError, match=f"algorithm.{next(iter(config))}"):
        make(**config)


def test_a_swarm_that_nothing_pulls_is_refused():
    with pytest.raises(ConfigError, match="nothing would move"):
        ModelSwarms(inertia=0.0, cognitive=0.0, social=0.0, repel=0.0)
