"""The merge method itself is searched: who finds the one that is worth it, and how optuna asks."""

from dataclasses import replace

import numpy as np
import pytest

from evomerge.algorithms.algorithm import search_algorithms
from evomerge.algorithms.optuna_parameters import OptunaParameters
from evomerge.core.choice_space import METHOD, ChoiceSpace
from evomerge.core.search_space import SearchedParam
from evomerge.errors import ConfigError

from .driving import Run, closeness, task_space

PLAIN = task_space()
TIES = replace(
    PLAIN,
    operator="ties",
    searched=(*PLAIN.searched, SearchedParam("density", 1, False, 0.0, 1.0, 0.5)),
    settings={},
)
SPACE = ChoiceSpace(
    (PLAIN, TIES, replace(PLAIN, operator="sce", settings={})), ("plain", "ties", "sce")
)
SCORE = closeness([0.9, 0.1, 0.6])


def only_ties(recipe):
    """TIES can have it all; the others stop at 0.4."""
    return SCORE(recipe) if recipe.operator == "ties" else 0.4 * SCORE(recipe)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("cma_es", {}),
        ("tpe", {}),
        ("nsga2", {}),
        ("auto", {}),
        ("genome", {"population_size": 12}),
    ],
)
def test_the_method_that_is_worth_it_is_found(name, config):
    run = Run(search_algorithms.get(name)(**config), SPACE, only_ties)
    found = run.step({"auto": 60, "tpe": 90}.get(name, 200))
    tail = [proposal.recipe.operator for proposal in found[-20:]]
    assert tail.count("ties") >= 12, tail
    assert max(only_ties(proposal.recipe) for proposal in found) > 0.75


def test_all_methods_are_tried_at_first():
    for name in ("cma_es", "tpe", "nsga2", "random"):
        found = Run(search_algorithms.get(name)(), SPACE, only_ties).step(20)
        assert {proposal.recipe.operator for proposal in found} == {*SPACE.methods}


@pytest.mark.parametrize(
    ("sampler", "names"),
    [
        ("TPESampler", {METHOD, "x006", "x007", "x008", "x009"}),
        ("NSGAIISampler", {METHOD, *(f"x{i:03d}" for i in range(3, 13))}),
        ("CmaEsSampler", {f"x{i:03d}" for i in range(13)}),
    ],
)
def test_each_sampler_is_told_of_the_parameters_it_can_use(sampler, names):
    import optuna

    parameters = OptunaParameters(SPACE, sampler)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    recipe = TIES.decode(np.array([0.2, 0.4, 0.6, 0.8]))
    vector = SPACE.encode(recipe)
    study.enqueue_trial(parameters.point(vector))
    trial, asked = parameters.ask(study)
    assert set(trial.params) == names
    assert SPACE.decode(asked).digest() == recipe.digest()
    assert trial.params["x009"] == 0.8
    assert parameters.is_conditional == (sampler == "TPESampler")


def test_tpe_models_the_numbers_of_each_method_together():
    parameters = OptunaParameters(SPACE, "TPESampler")
    assert parameters.options_for({"multivariate": True}) == {"group": True, "multivariate": True}
    assert parameters.options_for({"multivariate": True, "group": False})["group"] is False
    assert parameters.options_for({}) == {}
    assert OptunaParameters(PLAIN, "TPESampler").options_for({"multivariate": True}) == {
        "multivariate": True
    }


def test_errors_name_the_algorithm_of_the_config():
    fixed = replace(PLAIN, searched=())
    for name in ("nsga2", "tpe", "optuna", "cma_es", "genome_plus"):
        with pytest.raises(ConfigError, match=f"algorithm '{name}' has nothing to search"):
            Run(search_algorithms.get(name)(), fixed, only_ties)
