from __future__ import annotations

import functools
import importlib.util
import inspect
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
from pydantic import TypeAdapter

import evomerge.algorithms  # noqa: F401
from evomerge.algorithms.algorithm import search_algorithms
from evomerge.core.candidate import Proposal
from evomerge.core.objective import Objectives
from evomerge.core.search_space import SearchSpace
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from evomerge.testing import check_search_algorithm, choice_problem, linear_problem

CONFIGS = [
    *((name, {}) for name in search_algorithms.names()),
    ("amortized_pareto", {"variant": "bayesian"}),
    ("amortized_pareto", {"variant": "nested", "samples_per_merge": 5}),
    ("amortized_pareto", {"samples": 3, "batch_size": 1, "link": "identity", "generations": 5}),
    ("m2n2", {"split_point": False, "attraction": False, "population_size": 3}),
    ("m2n2", {"angle_scope": "segment", "capacity": "one", "alpha": 0.0, "max_segments": 4}),
    ("m2n2", {"angle_scope": "tensor"}),
    ("map_elites", {"angle_scope": "tensor"}),
    ("nevergrad", {"optimizer": "DE"}),
    ("nevergrad", {"optimizer": "PSO", "num_workers": 4}),
    ("nevergrad", {"optimizer": "OnePlusOne"}),
    ("nevergrad", {"optimizer": "NGOpt", "budget_hint": 60, "num_workers": 4}),
    ("nevergrad", {"optimizer": "OLNDiscreteOnePlusOne"}),  # draws from the global streams
    ("optuna", {"sampler": "NSGAIIISampler", "options": {"population_size": 8}}),
    ("optuna", {"sampler": "RandomSampler"}),
    ("basis_refresh", {"iterations": 1, "weights": {"second": 1.0}}),
    ("cycle_qd", {"cells": 1}),
    ("evo_merging", {"first": "weights", "population_size": 4}),
    ("frank_wolfe", {"iterations": 1}),
    ("m2n2", {"mutation": 0.05, "max_noise": 2, "population_size": 5}),
    ("m2n2", {"mutation": 0.05, "max_segments": 3, "angle_scope": "segment"}),
    ("genome", {"population_size": 2, "patience": 1}),
    ("genome_plus", {"population_size": 3, "patience": 1, "elites": 0}),
    ("model_swarms", {"population_size": 2, "patience": 2, "restart_patience": 1}),
    ("pso_merging", {"moves": 1}),
    ("ribs", {"emitter": "GaussianEmitter", "emitters": 1, "batch_size": 4}),
    ("ribs", {"emitter": "IsoLineEmitter", "cells": 3}),
    ("optuna", {"sampler": "QMCSampler"}),
    # Its model takes minutes for the suite's hundreds of points; test_constraints.py fits it.
    ("optuna", {"sampler": "GPSampler", "options": {"n_startup_trials": 60}}),
]


NEEDS_RIBS = pytest.mark.skipif(
    importlib.util.find_spec("ribs") is None, reason="pyribs, an extra, is not installed"
)
NEEDS_CMAES = pytest.mark.skipif(
    importlib.util.find_spec("cmaes") is None, reason="the package cmaes is not installed"
)


def named(names):
    """Names as test parameters; those that need an extra skip without it."""
    return [pytest.param(n, marks=NEEDS_RIBS if n == "ribs" else ()) for n in names]


def marks_of(name, config):
    """What a case needs; pyribs compiles its CMA-ES for several seconds."""
    if name != "ribs":
        return ()
    return (NEEDS_RIBS,) if config else (NEEDS_RIBS, pytest.mark.slow)


def marked(configs):
    return [pytest.param(n, config, marks=marks_of(n, config)) for n, config in configs]


def label(value):
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items())


@pytest.mark.parametrize(("name", "config"), marked(CONFIGS), ids=label)
def test_algorithm_keeps_the_contract(name, config):
    check_search_algorithm(functools.partial(search_algorithms.get(name), **config))


@NEEDS_CMAES
def test_optunas_cma_es_keeps_the_contract_on_the_one_objective_it_can_have():
    problem = linear_problem()
    (first, _) = problem.objectives.items
    alone = replace(problem, objectives=Objectives((first,)))
    cls = search_algorithms.get("optuna")
    check_search_algorithm(functools.partial(cls, sampler="CmaEsSampler"), alone)


CHOICES = [
    *((name, {}) for name in search_algorithms.names()),
    ("amortized_pareto", {"variant": "nested", "samples_per_merge": 5}),
    ("nevergrad", {"optimizer": "DE"}),
    ("optuna", {"options": {"multivariate": True}}),
    ("optuna", {"sampler": "NSGAIIISampler", "options": {"population_size": 8}}),
    ("optuna", {"sampler": "RandomSampler"}),
    ("optuna", {"sampler": "QMCSampler"}),
    ("ribs", {"emitter": "IsoLineEmitter", "cells": 3}),
]


@pytest.mark.parametrize(("name", "config"), marked(CHOICES), ids=label)
def test_algorithm_keeps_the_contract_where_the_method_is_searched_too(name, config):
    cls = search_algorithms.get(name)
    if getattr(cls, "needs_span", False):
        problem = choice_problem()
        with pytest.raises(ConfigError, match=f"{name!r}.*'linear or task_arithmetic or magmax'"):
            cls(**config).start(problem.space, problem.objectives, generator(0))
        return
    check_search_algorithm(functools.partial(cls, **config), choice_problem())


@pytest.mark.parametrize("name", search_algorithms.names())
def test_config_fields_are_exactly_the_keywords(name):
    cls = search_algorithms.get(name)
    assert all(item.init for item in fields(cls))
    assert all(item.kw_only for item in fields(cls))
    assert cls.__doc__
    made = TypeAdapter(cls).validate_python({})
    assert made == cls()
    assert list(inspect.signature(cls).parameters) == [item.name for item in fields(cls)]


@pytest.mark.parametrize(
    "name", sorted(set(search_algorithms.names()) - {"m2n2", "ga", "map_elites"})
)
def test_a_space_without_dimensions_is_refused(name):
    problem = linear_problem()
    empty = SearchSpace("linear", problem.space.sources, "global", 1, ())
    with pytest.raises(ConfigError, match=f"algorithm '{name}' has nothing to search"):
        search_algorithms.get(name)().start(empty, problem.objectives, generator(0))


@pytest.mark.parametrize("name", named(search_algorithms.names()))
def test_one_searched_number_is_enough(name):
    problem = linear_problem()
    space = problem.space
    item = space.searched[0]
    one = SearchSpace(
        "linear",
        space.sources,
        "global",
        1,
        (type(item)("scale", 1, False, 0.0, 1.0, 0.5),),
        fixed={"weights": np.array([[0.2, 0.3, 0.5]])},
        span=space.span,
    )
    algorithm = search_algorithms.get(name)() if name != "nevergrad" else None
    if algorithm is None:
        with pytest.raises(ConfigError, match="at least two"):
            search_algorithms.get(name)().start(one, problem.objectives, generator(0))
        algorithm = search_algorithms.get(name)(optimizer="OnePlusOne")
    algorithm.start(one, problem.objectives, generator(0))
    assert isinstance(algorithm.ask(), Proposal)


def test_importing_the_algorithms_loads_no_heavy_package():
    code = (
        "import sys, evomerge.algorithms;"
        "print([m for m in ('torch','ray','transformers','nevergrad','optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
