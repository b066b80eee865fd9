"""Per-example scores -> objectives."""

import numpy as np
import pytest

from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.objective import Objective, Objectives
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError

SCORES = {"a": np.array([0, 1, 1, 1], np.float32), "b": np.array([0.25, 0.25], np.float32)}


def test_an_objective_is_the_weighted_mean_of_task_means_not_of_examples():
    assert Objective("o", {"a": 1.0}).value(SCORES) == 0.75
    assert Objective("o", {"a": 1.0, "b": 1.0}).value(SCORES) == 0.5
    assert Objective("o", {"a": 3.0, "b": 1.0}).value(SCORES) == 0.625


def test_only_the_ratio_of_the_weights_counts():
    one, other = Objective("o", {"a": 3.0, "b": 1.0}), Objective("o", {"a": 0.3, "b": 0.1})
    assert one.value(SCORES) == pytest.approx(other.value(SCORES), abs=1e-15)


def test_the_mean_is_taken_in_float64():
    many = {"a": np.full(3_000_001, 0.1, np.float32)}
    assert Objective("o", {"a": 1.0}).value(many) == pytest.approx(np.float32(0.1), abs=1e-12)


@pytest.mark.parametrize("weights", [{}, {"a": 0.0}, {"a": -1.0}, {"a": 1.0, "b": 0.0}])
def test_an_objective_that_measures_nothing_is_refused(weights):
    with pytest.raises(ConfigError, match="objective 'o': task weights must be positive"):
        Objective("o", weights)


def test_objectives_keep_their_order():
    objectives = Objectives((Objective("second", {"b": 1.0}), Objective("first", {"a": 1.0})))
    assert objectives.names == ("second", "first")
    assert len(objectives) == 2
    candidate = Candidate(0, Recipe("linear", ("s",), {"weights": np.ones((1, 1))}))
    np.testing.assert_array_equal(objectives.values(Evaluation(candidate, SCORES)), [0.25, 0.75])
    assert objectives.index("first") == 1


def test_an_unknown_objective_names_the_nearest():
    objectives = Objectives((Objective("math", {"a": 1.0}), Objective("code", {"b": 1.0})))
    with pytest.raises(ConfigError, match=r"'maths' is not an objective. Did you mean 'math'\?"):
        objectives.index("maths")


def test_an_empty_or_ambiguous_list_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        Objectives(())
    with pytest.raises(ConfigError, match="names repeat"):
        Objectives((Objective("o", {"a": 1.0}), Objective("o", {"b": 1.0})))


def test_flat_scores_join_the_tasks_by_name():
    candidate = Candidate(0, Recipe("linear", ("s",), {"weights": np.ones((1, 1))}))
    backwards = dict(reversed(SCORES.items()))
    flat = Evaluation(candidate, backwards).flat_scores()
    np.testing.assert_array_equal(flat, np.array([0, 1, 1, 1, 0.25, 0.25], np.float32))
    assert Evaluation(candidate, error="no").flat_scores().shape == (0,)
