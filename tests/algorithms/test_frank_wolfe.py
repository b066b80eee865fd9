"""Frank-Wolfe with finite differences."""

import numpy as np
import pytest

from evomerge.algorithms.frank_wolfe import FrankWolfe, step_size, towards
from evomerge.errors import ConfigError
from tests.algorithms.driving import Run, closeness, task_space, weights


def test_step_sizes_of_the_paper():
    assert [step_size(t, 0.1) for t in range(3)] == pytest.approx([0.1, 0.2 / 3.0, 0.05])


def test_towards_is_on_the_line():
    np.testing.assert_allclose(
        towards(np.array([0.2, 0.8]), np.array([1.0, 0.0]), 0.25), [0.4, 0.6]
    )


def test_a_step_scores_the_point_and_a_probe_towards_every_model():
    run = Run(FrankWolfe(probe=0.2), task_space(), closeness([0.0, 0.0, 1.0]))
    rows = weights(run.batch())
    start = np.full(3, 1.0 / 3.0)
    np.testing.assert_allclose(rows[0], start)
    np.testing.assert_allclose(rows[1:], 0.8 * start + 0.2 * np.eye(3))


def test_the_step_goes_to_the_model_with_the_steepest_slope():
    run = Run(FrankWolfe(eta=0.5), task_space(), closeness([0.0, 0.0, 1.0]))
    start = weights(run.batch())[0]
    after = weights(run.batch())[0]
    np.testing.assert_allclose(after, 0.5 * start + 0.5 * np.eye(3)[2])
    np.testing.assert_allclose(weights(run.batch())[0], after * 2 / 3 + np.eye(3)[2] / 3)


def test_the_chosen_model_is_the_one_the_gradient_chooses():
    goal = np.array([0.1, 0.7, 0.4])
    run = Run(FrankWolfe(probe=1e-3), task_space(), closeness(goal))
    run.score = lambda recipe: float(-np.square(recipe.params["weights"][0] - goal).sum())
    start = weights(run.batch())[0]
    gradient = -2.0 * (start - goal)
    move = weights(run.batch())[0] - start
    chosen = int(np.argmax(move))
    assert chosen == int(np.argmax(gradient @ np.eye(3)))


def test_it_starts_anew_when_no_probe_beats_the_point():
    run = Run(FrankWolfe(), task_space(), closeness([1 / 3, 1 / 3, 1 / 3]))
    run.batch()
    fresh = run.batch()
    assert [item.origin for item in fresh] == ["start"] + ["probe"] * 3
    assert weights(fresh)[0].sum() == pytest.approx(1.0)


def test_it_starts_anew_after_its_iterations():
    run = Run(FrankWolfe(iterations=2, eta=0.01), task_space(), closeness([0.0, 0.0, 1.0]))
    assert [run.batch()[0].origin for _ in range(4)] == ["start", "step", "step", "start"]


def test_failed_probes_are_not_chosen():
    def score(recipe):
        row = recipe.params["weights"][0]
        return None if row.argmax() == 2 and row.max() > 0.34 else float(row[0] - row[1])

    run = Run(FrankWolfe(eta=1.0), task_space(), score)
    run.batch()
    np.testing.assert_allclose(weights(run.batch())[0], [1.0, 0.0, 0.0])


@pytest.mark.parametrize("config", [{"iterations": 0}, {"eta": 0.0}, {"probe": 2.0}])
def test_values_that_cannot_work_are_refused(config):
    with pytest.raises(ConfigError, match=f"algorithm.{next(iter(config))}"):
        FrankWolfe(**config)
