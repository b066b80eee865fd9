"""Search algorithms on the space of layer sequences."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest

import evomerge.algorithms  # noqa: F401
from evomerge.algorithms.algorithm import search_algorithms
from evomerge.core.candidate import Candidate, Evaluation, Proposal
from evomerge.core.layer_plan import LayerPlan
from evomerge.core.layer_sequence import plan_of, recipe_of
from evomerge.core.layer_sequence_space import (
    LayerSequenceSpace,
    SequenceRules,
    layer_sequence_space,
)
from evomerge.core.objective import Objective, Objectives
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from evomerge.testing import check_search_algorithm

DEPTHS = {"a": 12, "b": 12}
WANTED = [("a", i) for i in range(7)] + [("b", i) for i in range(5, 12)]


@dataclass(frozen=True)
class SequenceProblem:
    """Steps of one sequence, and scales below 1; what `check_search_algorithm` asks of a problem.

    A model alone has six of the thirteen steps that are wanted.
    """

    space: LayerSequenceSpace
    objectives: Objectives

    def scores(self, recipe):
        slots = plan_of(recipe, DEPTHS).layers
        path = [(slot.source, slot.layer) for slot in slots]
        steps = set(pairwise(path))
        found = np.array([step in steps for step in pairwise(WANTED)], np.float32)
        scale = np.exp(-abs(np.log([slot.scale for slot in slots]) + 0.2).mean())
        return {
            "first": found * np.float32(min(1.0, len(WANTED) / len(path))),
            "second": np.full(3, scale, np.float32),
        }


def problem(**rules):
    space = layer_sequence_space(("a", "b"), DEPTHS, SequenceRules(**rules))
    whole = LayerPlan(LayerPlan.whole("b", 12).layers, "a", "a")
    start = LayerPlan.whole("a", 12)
    founders = tuple(Proposal(recipe_of(plan, space.sources)) for plan in (start, whole))
    names = ("first", "second")
    objectives = Objectives(tuple(Objective(name, {name: 1.0}) for name in names))
    return SequenceProblem(replace(space, founders=founders), objectives)


def made(name, **options):
    return search_algorithms.get(name)(**options)


SLOW = [
    ("cma_es", {}),
    ("tpe", {}),
    ("nsga2", {"population_size": 6}),
    ("nevergrad", {"optimizer": "DE"}),
]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("random", {}),
        ("genome", {"population_size": 4}),
        ("cycle_qd", {"cells": 2}),
        ("pso_merging", {}),
        *(pytest.param(*item, marks=pytest.mark.slow) for item in SLOW),
    ],
)
def test_an_algorithm_keeps_its_contract_on_layer_sequences(name, options):
    sequences = problem(repeats=1, scaling="layer")
    check_search_algorithm(lambda: made(name, **options), sequences)


def best_of(name, sequences, n_evaluations, seed):
    """Return the best score in "first" of a search that tells each result at once."""
    algorithm = made(name)
    algorithm.start(sequences.space, sequences.objectives, generator(seed, "algorithm"))
    for number, founder in enumerate(sequences.space.founders):
        candidate = Candidate(number, founder.recipe)
        algorithm.tell(Evaluation(candidate, sequences.scores(founder.recipe)))
    best = 0.0
    for number in range(n_evaluations):
        recipe = algorithm.ask().recipe
        scores = sequences.scores(recipe)
        best = max(best, float(scores["first"].mean()))
        algorithm.tell(Evaluation(Candidate(2 + number, recipe), scores))
    return best


def test_cma_es_finds_better_sequences_than_the_models_and_than_chance():
    sequences = problem(repeats=2)
    assert sequences.scores(sequences.space.founders[0].recipe)["first"].mean() < 0.47
    found = [best_of("cma_es", sequences, 250, seed) for seed in range(3)]
    assert min(found) > 0.5
    assert min(found) > max(best_of("random", sequences, 250, seed) for seed in range(3))


@pytest.mark.slow
def test_auto_finds_better_sequences_than_the_models():
    assert best_of("auto", problem(repeats=1), 100, 0) > 0.5


def test_the_first_points_of_cma_es_spread_as_asked_for():
    sequences = problem(repeats=2, scaling="layer")
    for options, sigma in (({}, 1 / 6), ({"initial_sigma": 0.05}, 0.05)):
        algorithm = made("cma_es", num_workers=200, **options)
        algorithm.start(sequences.space, sequences.objectives, generator(0, "algorithm"))
        w = np.array(
            [algorithm.ask().recipe.params["scale"][1] for _ in range(200)]
        )  # of the second step, which nearly always is layer 1 of a
        assert np.log(w).std() == pytest.approx(2 * sigma * np.log(1.25), rel=0.2)
    with pytest.raises(ConfigError, match="initial_sigma is 0, must be above 0"):
        made("cma_es", initial_sigma=0.0)
