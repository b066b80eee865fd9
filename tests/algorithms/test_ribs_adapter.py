from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from evomerge.algorithms.ribs_adapter import EMITTERS, Ribs
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from evomerge.testing import linear_problem

PROBLEM = linear_problem()
INSTALLED = importlib.util.find_spec("ribs") is not None
needs_ribs = pytest.mark.skipif(not INSTALLED, reason="pyribs, an extra, is not installed")


def started(algorithm):
    algorithm.start(PROBLEM.space, PROBLEM.objectives, generator(0))
    return algorithm


def tell(algorithm, number, recipe, error=None):
    scores = {} if error else PROBLEM.scores(recipe)
    algorithm.tell(Evaluation(Candidate(number, recipe), scores, error))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"emitter": "GausianEmitter"}, "Did you mean 'GaussianEmitter'"),
        ({"emitters": 0}, "emitters is 0"),
        ({"batch_size": 1}, "batch_size is 1"),
        ({"sigma": 0.0}, "sigma is 0"),
        ({"cells": 0}, "cells is 0"),
        ({"low": 1.0}, "no range"),
    ],
)
def test_bad_fields_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        Ribs(**config)


def test_without_the_package_the_start_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'evomerge\[ribs\]'"):
        started(Ribs())


@needs_ribs
def test_a_grid_that_cannot_be_held_is_refused():
    with pytest.raises(ConfigError, match="use fewer"):
        started(Ribs(cells=2000))


@needs_ribs
def test_options_that_pyribs_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="refuses"):
        started(Ribs(options={"rankr": "imp"}))


@needs_ribs
@pytest.mark.parametrize(
    "emitter",
    # pyribs compiles its CMA-ES for several seconds.
    [
        pytest.param(name, marks=pytest.mark.slow if name == EMITTERS[0] else ())
        for name in EMITTERS
    ],
)
def test_every_emitter_fills_the_archive(emitter):
    algorithm = started(Ribs(emitter=emitter, emitters=2, batch_size=6))
    for number, founder in enumerate(PROBLEM.space.founders):
        tell(algorithm, number, founder.recipe)
    seeds = algorithm._archive.stats.num_elites
    assert seeds > 0
    for number in range(120):
        tell(algorithm, number, algorithm.ask().recipe)
    assert algorithm._archive.stats.num_elites > seeds


@needs_ribs
def test_the_archive_holds_what_was_scored():
    algorithm = started(Ribs(emitters=1, batch_size=8, sigma=1.0))
    for number in range(40):
        tell(algorithm, number, algorithm.ask().recipe)
    for elite in algorithm._archive:
        assert ((elite["solution"] >= 0) & (elite["solution"] <= 1)).all()
        recipe = PROBLEM.space.decode(elite["solution"])
        evaluation = Evaluation(Candidate(0, recipe), PROBLEM.scores(recipe))
        np.testing.assert_allclose(PROBLEM.objectives.values(evaluation), elite["measures"])


@needs_ribs
def test_it_waits_only_while_every_emitter_waits():
    algorithm = started(Ribs(emitters=2, batch_size=3))
    waiting = []
    while (proposal := algorithm.ask()) is not None:
        waiting.append(proposal.recipe)
    assert len(waiting) == 6
    for number, recipe in enumerate(waiting[:3]):
        assert algorithm.ask() is None
        tell(algorithm, number, recipe)
    assert algorithm.ask() is not None


@needs_ribs
def test_a_batch_that_failed_as_a_whole_is_dropped():
    algorithm = started(Ribs(emitters=1, batch_size=4))
    for number in range(40):
        tell(algorithm, number, algorithm.ask().recipe, error="no memory")
    assert algorithm._archive.empty
    for number in range(40):
        tell(algorithm, number, algorithm.ask().recipe, error="no" if number % 2 else None)
    assert not algorithm._archive.empty
