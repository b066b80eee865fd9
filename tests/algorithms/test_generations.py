"""The batch loop that several algorithms share."""

import numpy as np
import pytest

from evomerge.algorithms.generations import GenerationAlgorithm, Point, best_of
from evomerge.core.candidate import Candidate, Evaluation, Proposal
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from tests.algorithms.driving import Run, closeness, objectives, task_space, weights


class Thirds(GenerationAlgorithm):
    """Asks for the same three points again and again, and notes what came back."""

    def _begin(self):
        self.seen = []

    def _next_batch(self, done):
        self.seen.append([point.value for point in done])
        return [self._point(np.full(3, x), "third") for x in (0.0, 0.5, 2.0)]


def test_a_batch_keeps_the_order_of_the_asks_whatever_the_order_of_the_tells():
    run = Run(Thirds(), task_space(), lambda recipe: float(recipe.params["weights"].mean()))
    asked = [run.algorithm.ask() for _ in range(3)]
    assert run.algorithm.ask() is None
    for proposal in (asked[2], asked[0], asked[1]):
        run.tell(proposal)
    assert run.algorithm.ask() is not None
    assert run.algorithm.seen == [[], [0.0, 0.5, 1.0]]


def test_a_failure_has_no_value():
    run = Run(Thirds(), task_space(), lambda recipe: None)
    run.step(4)
    assert run.algorithm.seen == [[], [None, None, None]]


def test_points_are_clipped_to_the_search_space():
    run = Run(Thirds(), task_space(), lambda recipe: 0.0)
    np.testing.assert_allclose(weights(run.step(3))[2], 1.0)


def test_founders_that_the_space_can_express_are_kept_others_are_not():
    space = task_space()
    own = space.decode(np.array([0.2, 0.4, 0.6]))
    other = task_space(low=-1.0, high=2.0).decode(np.zeros(3))
    run = Run(Thirds(), space, closeness([0, 0, 0]))
    run.tell(Proposal(own))
    run.tell(Proposal(other))
    assert [point.id for point in run.algorithm._founders] == [0]
    np.testing.assert_allclose(run.algorithm._founders[0].vector, [0.2, 0.4, 0.6])


def test_the_value_is_the_weighted_mean_of_the_objectives():
    algorithm = Thirds(weights={"o0": 3.0, "o1": 1.0})
    run = Run(algorithm, task_space(), lambda recipe: (1.0, 0.0), n_objectives=2)
    run.step(4)
    assert algorithm.seen[1] == [0.75] * 3


def test_an_unknown_objective_is_refused():
    with pytest.raises(ConfigError, match="o7"):
        Thirds(weights={"o7": 1.0}).start(task_space(), objectives(), generator(0))


def test_the_best_is_the_first_among_equals_and_never_a_failure():
    points = [Point(np.zeros(1), str(i), value=v) for i, v in enumerate((None, 1.0, 1.0, -2.0))]
    assert best_of(points).origin == "1"


def test_a_told_evaluation_that_was_never_asked_does_not_end_a_batch():
    run = Run(Thirds(), task_space(), closeness([0, 0, 0]))
    for _ in range(3):
        run.algorithm.ask()
    stranger = Candidate(50, task_space().decode(np.full(3, 0.123)))
    run.algorithm.tell(Evaluation(stranger, {"o0": np.ones(1, np.float32)}))
    assert run.algorithm.ask() is None
