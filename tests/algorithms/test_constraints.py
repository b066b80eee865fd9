"""The adapters search where the constraints are kept."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.algorithms.nevergrad_adapter import CmaEs
from evomerge.algorithms.optuna_adapter import Nsga2, Optuna, Tpe
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.objective import Bound, Constraint, Objective, Objectives
from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.errors import ConfigError
from evomerge.seeding import generator

SPACE = SearchSpace(
    "linear", ("base", "x"), "global", 1, (SearchedParam("weights", 2, True, 0.0, 1.0, 0.5),)
)
BASE = Recipe("linear", ("base", "x"), {"weights": np.array([[0.5, 0.2]])})
GAIN = Objective("gain", {"gain": 1.0})
# The guard falls as the gain rises: without the constraint a search goes where it is 0.
FIXED = Objectives((GAIN,), (Constraint(Objective("guard", {"guard": 1.0}), Bound(0.7)),))
RELATIVE = Objectives(
    (GAIN,), (Constraint(Objective("guard", {"guard": 1.0}), Bound(-0.1, 1.0, "base")),)
)
MAKERS = {
    "cma_es": CmaEs,
    "nsga2": lambda: Nsga2(population_size=8),
    "tpe": Tpe,
    "gp": lambda: Optuna(sampler="GPSampler", options={"n_startup_trials": 6}),
}


def scores(recipe):
    gain, other = recipe.params["weights"][0]
    return {
        "gain": np.full(3, gain - 0.1 * (other - 0.5) ** 2, np.float32),
        "guard": np.full(3, 1.0 - gain, np.float32),
    }


def late_gains(algorithm, objectives, n, *, origin="founder: mean"):
    algorithm.start(SPACE, objectives, generator(3))
    algorithm.tell(Evaluation(Candidate(0, BASE, origin=origin), scores(BASE)))
    gains = []
    for number in range(n):
        recipe = algorithm.ask().recipe
        algorithm.tell(Evaluation(Candidate(number + 1, recipe), scores(recipe)))
        gains.append(recipe.params["weights"][0, 0])
    return np.array(gains[-n // 3 :])


@pytest.mark.parametrize("name", MAKERS)
def test_the_search_gathers_below_the_bound(name):
    n = 15 if name == "gp" else 90
    free = late_gains(MAKERS[name](), Objectives((GAIN,)), n)
    guarded = late_gains(MAKERS[name](), FIXED, n)
    assert np.median(free) > 0.75
    assert 0.1 < np.median(guarded) < 0.4
    relative = late_gains(MAKERS[name](), RELATIVE, n, origin="founder: base")
    assert np.median(relative) < 0.7  # base: 0.5, so the bound on the guard is 0.4


@pytest.mark.parametrize("name", ["cma_es", "tpe"])
def test_an_unknown_bound_counts_as_kept(name):
    free = late_gains(MAKERS[name](), Objectives((GAIN,)), 30)
    unknown = late_gains(MAKERS[name](), RELATIVE, 30)
    np.testing.assert_array_equal(unknown, free)


def test_failures_do_not_disturb_the_constraints():
    for make in MAKERS.values():
        algorithm = make()
        algorithm.start(SPACE, FIXED, generator(0))
        for number in range(12):
            recipe = algorithm.ask().recipe
            failed = number % 3 == 0
            told = Evaluation(
                Candidate(number, recipe),
                {} if failed else scores(recipe),
                "no" if failed else None,
            )
            algorithm.tell(told)


def test_the_constraints_function_is_not_an_option():
    with pytest.raises(ConfigError, match=r"options.constraints_func"):
        Optuna(sampler="TPESampler", options={"constraints_func": "x"})
