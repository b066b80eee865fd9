from __future__ import annotations

import logging

import numpy as np
import pytest

from evomerge.algorithms.optuna_adapter import Nsga2, Optuna, Tpe
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.seeding import generator
from evomerge.testing import linear_problem

PROBLEM = linear_problem()


def started(algorithm):
    algorithm.start(PROBLEM.space, PROBLEM.objectives, generator(0))
    return algorithm


def tell(algorithm, number, recipe):
    algorithm.tell(Evaluation(Candidate(number, recipe), PROBLEM.scores(recipe)))


def test_unknown_samplers_name_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'NSGAIISampler'"):
        Optuna(sampler="NSGA2Sampler")


@pytest.mark.parametrize(
    "name", ["GridSampler", "BruteForceSampler", "BaseSampler", "PartialFixedSampler"]
)
def test_samplers_that_enumerate_are_refused(name):
    with pytest.raises(ConfigError, match="cannot search a continuous space"):
        Optuna(sampler=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 3}, "The run's seed decides it"),
        ({"n_startup": 3}, "Did you mean 'n_startup_trials'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Optuna(sampler="TPESampler", options=options)


def test_bad_option_values_are_refused_at_the_start():
    with pytest.raises(ConfigError, match="refuses 2 objective"):
        started(Optuna(sampler="NSGAIISampler", options={"population_size": 0}))


def test_a_sampler_that_needs_a_missing_package_says_so(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package cmaes"):
        Optuna(sampler="CmaEsSampler")


def test_a_sampler_for_one_objective_is_refused_before_the_founders(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ConfigError, match="refuses 2 objective"):
        started(Optuna(sampler="CmaEsSampler"))


def test_bad_presets_are_refused():
    with pytest.raises(ConfigError, match="population_size is 1"):
        Nsga2(population_size=1)
    with pytest.raises(ConfigError, match="startup_evaluations is -1"):
        Tpe(startup_evaluations=-1)


@pytest.mark.parametrize("make", [Nsga2, Tpe])
def test_founders_become_trials_with_their_own_values(make):
    algorithm = started(make())
    for number, founder in enumerate(PROBLEM.space.founders):
        tell(algorithm, number, founder.recipe)
    trials = algorithm._study.trials
    assert len(trials) == 4
    for trial, founder in zip(trials, PROBLEM.space.founders, strict=True):
        expected = PROBLEM.space.encode(founder.recipe)
        np.testing.assert_allclose([trial.params[f"x{i:03d}"] for i in range(3)], expected)
        evaluation = Evaluation(Candidate(0, founder.recipe), PROBLEM.scores(founder.recipe))
        np.testing.assert_allclose(trial.values, PROBLEM.objectives.values(evaluation))


def test_nsga2_breeds_from_founders():
    algorithm = started(Nsga2(population_size=4))
    for number, founder in enumerate(PROBLEM.space.founders):
        tell(algorithm, number, founder.recipe)
    weights = np.array([algorithm.ask().recipe.params["weights"][0] for _ in range(12)])
    # Uniform crossover of four founders and rare mutation: many genes are a founder's.
    known = np.array([founder.recipe.params["weights"][0] for founder in PROBLEM.space.founders])
    inherited = np.isclose(weights[:, None, :], known[None], atol=1e-9).any(axis=1)
    assert inherited.mean() > 0.4


def test_failures_become_failed_trials():
    algorithm = started(Tpe())
    proposal = algorithm.ask()
    algorithm.tell(Evaluation(Candidate(0, proposal.recipe), error="no memory"))
    assert [trial.state.name for trial in algorithm._study.trials] == ["FAIL"]


def test_optuna_says_nothing_and_its_own_verbosity_stays(caplog, capsys):
    import optuna

    level = optuna.logging.get_verbosity()
    algorithm = started(Tpe())
    for number in range(15):
        tell(algorithm, number, algorithm.ask().recipe)
    assert optuna.logging.get_verbosity() == level
    assert logging.getLogger("optuna").level == level
    assert capsys.readouterr() == ("", "")


def test_tpe_climbs():
    algorithm = started(Tpe())
    values = []
    for number in range(80):
        recipe = algorithm.ask().recipe
        tell(algorithm, number, recipe)
        evaluation = Evaluation(Candidate(number, recipe), PROBLEM.scores(recipe))
        values.append(PROBLEM.objectives.values(evaluation).mean())
    assert np.mean(values[-30:]) > np.mean(values[:10])
