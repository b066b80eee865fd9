"""Rounds of coefficient search over a basis of elites."""

import numpy as np
import pytest

from evomerge.algorithms.basis_refresh import SMALLEST_SPREAD, BasisRefresh, transport
from evomerge.errors import ConfigError
from tests.algorithms.driving import Run, closeness, task_space, weights


def test_transport_takes_the_losers_moments_to_the_winners():
    rng = np.random.default_rng(0)
    winners = 0.2 * rng.standard_normal((40, 3)) + [0.3, 0.0, -0.2]
    losers = 0.3 * rng.standard_normal((60, 3))
    carried = transport(losers, winners, losers)
    np.testing.assert_allclose(carried.mean(axis=0), winners.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(carried.std(axis=0), winners.std(axis=0), atol=1e-12)


def test_transport_keeps_a_least_spread():
    winners, losers = np.full((2, 1), 0.5), np.array([[-1.0], [1.0]])
    carried = transport(np.array([[-1.0], [0.0], [1.0]]), winners, losers)
    np.testing.assert_allclose(carried, [[0.5 - SMALLEST_SPREAD], [0.5], [0.5 + SMALLEST_SPREAD]])


def test_pushed_points_without_noise_are_the_transported_ones_inside_the_cube():
    run = run_rounds(noise=0.0)
    run.batch()
    run.batch()
    scores = np.array([run.score(item.recipe) for item in run.proposals[:6]])
    rows = np.vstack([np.full(3, 1 / 3), np.eye(3), weights(run.proposals[4:6])])
    rows = rows[np.argsort(-scores, kind="stable")]
    expected = transport(rows, rows[:2], rows[2:]).clip(-1.0, 1.0)
    np.testing.assert_allclose(weights(run.proposals[6:12]), expected, atol=1e-9)


def test_coefficients_on_which_losers_agree_go_to_the_winners_mean():
    carried = transport(np.array([[0.7]]), np.array([[0.1], [0.3]]), np.zeros((3, 1)))
    np.testing.assert_allclose(carried, [[0.2]])


def run_rounds(**config) -> Run:
    space = task_space(low=-1.0, high=1.0)
    return Run(BasisRefresh(**config), space, closeness([0.5, -0.4, 0.3]))


def test_a_round_begins_with_the_mean_the_basis_and_uniform_points():
    run = run_rounds()
    rows = weights(run.batch())
    np.testing.assert_allclose(rows[0], 1.0 / 3.0)
    np.testing.assert_allclose(rows[1:4], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(rows[4:], run.algorithm._asked[4:], atol=1e-12)


def test_the_best_of_a_round_are_the_next_basis_and_are_not_scored_again():
    run = run_rounds(iterations=2)
    for _ in range(3):
        run.batch()
    scores = [run.score(item.recipe) for item in run.proposals]
    best = weights([run.proposals[i] for i in np.argsort(scores)[::-1][:3]])
    second = run.batch()
    assert [item.origin for item in second] == ["mean", "uniform", "uniform"]
    basis = np.stack([point.vector for point in run.algorithm._basis]) * 2.0 - 1.0
    np.testing.assert_allclose(basis, best, atol=1e-6)
    np.testing.assert_allclose(weights(second)[0], best.mean(axis=0), atol=1e-6)


def test_refreshed_coordinates_collapse_to_coefficients_over_the_models():
    run = run_rounds(iterations=1)
    for _ in range(2):
        run.batch()
    rows = weights(run.batch())
    basis = np.stack([point.vector for point in run.algorithm._basis]) * 2.0 - 1.0
    uniform = run.algorithm._asked[4:]
    np.testing.assert_allclose(rows[1:], (uniform @ basis).clip(-1.0, 1.0), atol=1e-9)


def test_a_round_in_which_nearly_all_failed_is_opened_again():
    run = run_rounds()
    run.score = lambda recipe: None
    run.batch()
    again = [item.origin for item in run.batch()]
    assert again == ["mean"] + ["basis"] * 3 + ["uniform"] * 2


@pytest.mark.parametrize("seed", range(3))
def test_rounds_improve_on_the_first_points(seed):
    space = task_space(low=-1.0, high=1.0)
    run = Run(BasisRefresh(), space, closeness([0.5, -0.4, 0.3]), seed=seed)
    run.step(150)
    scores = [run.score(item.recipe) for item in run.proposals]
    assert max(scores) > max(scores[:6]) + 0.05


@pytest.mark.parametrize("config", [{"iterations": 0}, {"winners": 0.0}])
def test_values_that_cannot_work_are_refused(config):
    with pytest.raises(ConfigError, match=f"algorithm.{next(iter(config))}"):
        BasisRefresh(**config)
