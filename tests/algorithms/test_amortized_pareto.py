from __future__ import annotations

import json

import numpy as np
import pytest

from evomerge.algorithms.algorithm import HasSurrogate
from evomerge.algorithms.amortized_pareto import AmortizedPareto
from evomerge.algorithms.merging_tree import Scored, merge_up
from evomerge.algorithms.random_search import RandomSearch
from evomerge.core.candidate import Candidate, Evaluation, Proposal
from evomerge.core.objective import Objective, Objectives
from evomerge.core.pareto import hypervolume
from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.errors import ConfigError
from evomerge.seeding import generator

EXPERTS = ("a", "b", "c", "d")
NAMES = ("one", "two")
OBJECTIVES = Objectives(tuple(Objective(name, {name: 1.0}) for name in NAMES))


def space(n_experts=2, founders=True, high=1.0):
    sources = ("base", *EXPERTS[:n_experts])
    params = (SearchedParam("weights", n_experts, True, 0.0, high, 0.5),)
    bare = SearchSpace("task_arithmetic", sources, "global", 1, params)
    if not founders:
        return bare
    rows = [np.zeros(n_experts), *np.eye(n_experts)]
    recipes = [Recipe("task_arithmetic", sources, {"weights": row[None]}) for row in rows]
    return SearchSpace(
        "task_arithmetic",
        sources,
        "global",
        1,
        params,
        founders=tuple(Proposal(recipe, origin="founder") for recipe in recipes),
    )


def worth(weights):
    """Two accuracies over 4 examples each: odd experts are good at one, even ones at two."""
    w = np.resize(weights, 4)
    good = np.array([w[0] + w[2], w[1] + w[3]]) / max(len(weights) / 2, 1)
    harm = 0.8 * good[::-1]
    eta = 6.0 * good - 4.0 * harm**2 - 2.0
    accuracy = 1.0 / (1.0 + np.exp(-eta))
    shape = np.array([0.8, 0.9, 1.0, 0.95])
    return {name: (accuracy[m] * shape).astype(np.float32) for m, name in enumerate(NAMES)}


class Drive:
    """A run without models; founders are told first."""

    def __init__(self, algorithm, where=None, seed=0, fails=lambda number: False):
        self.space = space() if where is None else where
        self.algorithm = algorithm
        self.fails = fails
        algorithm.start(self.space, OBJECTIVES, generator(seed))
        self.number = 0
        self.values = []
        self.proposals = []
        for founder in self.space.founders:
            self.tell(founder.recipe)

    def tell(self, recipe):
        candidate = Candidate(self.number, recipe)
        self.number += 1
        if self.fails(candidate.id):
            self.algorithm.tell(Evaluation(candidate, error="planned"))
            return
        scores = worth(recipe.params["weights"][0])
        self.values.append([float(scores[name].mean(dtype=np.float64)) for name in NAMES])
        self.algorithm.tell(Evaluation(candidate, scores))

    def run(self, n):
        for _ in range(n):
            proposal = self.algorithm.ask()
            assert proposal is not None
            self.proposals.append(proposal)
            self.tell(proposal.recipe)
        return self

    def volume(self):
        return hypervolume(np.array(self.values), np.zeros(2))


def origins(drive):
    return [proposal.origin for proposal in drive.proposals]


def test_the_design_comes_first_and_counts_founders():
    drive = Drive(AmortizedPareto(batch_size=5)).run(24)
    assert origins(drive)[:9] == ["design"] * 9  # 12 samples, 3 founders
    assert origins(drive)[9:14] == ["front"] * 5
    assert set(origins(drive)[9:]) <= {"front", "near the front"}


def test_nothing_is_proposed_twice():
    drive = Drive(AmortizedPareto()).run(60)
    digests = {proposal.recipe.digest() for proposal in drive.proposals}
    digests |= {founder.recipe.digest() for founder in drive.space.founders}
    assert len(digests) == 63


@pytest.mark.parametrize("variant", ["plain", "bayesian", "nested"])
@pytest.mark.parametrize("n_experts", [2, 4])
def test_every_variant_beats_random_search(variant, n_experts):
    gains = []
    for seed in range(3):
        where = space(n_experts)
        mine = Drive(AmortizedPareto(variant=variant), where, seed).run(60).volume()
        gains.append(mine - Drive(RandomSearch(), where, seed).run(60).volume())
    assert np.mean(gains) > 0.0, gains


@pytest.mark.parametrize("variant", ["plain", "bayesian", "nested"])
def test_predictions_are_checked_against_what_was_measured(variant):
    drive = Drive(AmortizedPareto(variant=variant)).run(50)
    surrogate = drive.algorithm.surrogate()
    assert isinstance(drive.algorithm, HasSurrogate)
    assert len(surrogate.points) == 53
    error = surrogate.error()
    assert error["one"]["n"] == error["two"]["n"] >= 10
    assert error["one"]["predicted"] < 0.15
    assert error["two"]["fit"] < 0.04
    np.testing.assert_allclose(surrogate.measured[-1], surrogate.values[-1])
    json.dumps(surrogate.to_json())


def test_the_front_phase_waits_for_the_whole_design_only():
    algorithm = AmortizedPareto(samples=8, batch_size=3)
    algorithm.start(space(founders=False), OBJECTIVES, generator(0))
    design = [algorithm.ask() for _ in range(8)]
    assert all(design)
    assert algorithm.ask() is None
    for number, proposal in enumerate(reversed(design)):
        assert algorithm.ask() is None
        scores = worth(proposal.recipe.params["weights"][0])
        algorithm.tell(Evaluation(Candidate(number, proposal.recipe), scores))
    asked = [algorithm.ask() for _ in range(20)]  # untold batches pile up without waiting
    assert all(asked)
    assert len({proposal.recipe.digest() for proposal in [*design, *asked]}) == 28


def test_no_founders_and_no_surrogate_before_the_first_score():
    algorithm = AmortizedPareto()
    algorithm.start(space(founders=False), OBJECTIVES, generator(0))
    assert algorithm.surrogate() is None
    first = [algorithm.ask().recipe.params["weights"][0] for _ in range(3)]
    np.testing.assert_allclose(first, [[1, 0], [0, 1], [0.5, 0.5]])


@pytest.mark.parametrize("variant", ["plain", "bayesian", "nested"])
def test_a_run_of_failures_is_survived(variant):
    drive = Drive(AmortizedPareto(variant=variant), fails=lambda number: number < 40).run(90)
    assert np.isfinite(drive.volume())
    assert "front" in origins(drive)
    dead = Drive(AmortizedPareto(variant=variant), fails=lambda number: True).run(50)
    assert dead.algorithm.surrogate() is None


@pytest.mark.parametrize("variant", ["plain", "bayesian", "nested"])
def test_one_objective_is_enough(variant):
    algorithm = AmortizedPareto(variant=variant)
    single = Objectives((Objective("both", {"one": 1.0, "two": 1.0}),))
    algorithm.start(space(4), single, generator(0))
    best = 0.0
    for number in range(80):
        proposal = algorithm.ask()
        scores = worth(proposal.recipe.params["weights"][0])
        best = max(best, single.items[0].value(scores))
        algorithm.tell(Evaluation(Candidate(number, proposal.recipe), scores))
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 6)] * 4), -1).reshape(-1, 4)
    assert best > 0.97 * max(single.items[0].value(worth(w)) for w in grid)


def test_recipes_of_another_operator_teach_nothing():
    algorithm = AmortizedPareto()
    algorithm.start(space(), OBJECTIVES, generator(0))
    foreign = Recipe("ties", ("base", "a", "b"), {"weights": np.ones((1, 2))})
    algorithm.tell(Evaluation(Candidate(0, foreign), worth(np.ones(2))))
    assert algorithm.surrogate() is None


def test_a_link_that_cannot_say_the_scores_is_refused_at_once():
    algorithm = AmortizedPareto(link="sigmoid")
    algorithm.start(space(), OBJECTIVES, generator(0))
    recipe = algorithm.ask().recipe
    scores = {"one": np.array([0.5], np.float32), "two": np.array([-2.0], np.float32)}
    with pytest.raises(ConfigError, match=r"algorithm.link: objective 'two' has values .* -2"):
        algorithm.tell(Evaluation(Candidate(0, recipe), scores))


def test_too_many_dimensions_for_the_budget_are_refused():
    wide = SearchSpace(
        "linear", ("x", "y"), "layer", 40, (SearchedParam("weights", 2, True, 0.0, 1.0, 0.5),)
    )
    with pytest.raises(ConfigError, match=r"3321 coefficients .* 80 searched numbers, with 400"):
        AmortizedPareto(budget_hint=400).start(wide, OBJECTIVES, generator(0))
    AmortizedPareto(budget_hint=900).start(wide, OBJECTIVES, generator(0))


def test_a_small_budget_shrinks_the_design():
    algorithm = AmortizedPareto(budget_hint=20)
    drive = Drive(algorithm, space(4)).run(20)
    assert origins(drive).count("design") == 12 - 5  # of 30 wanted, founders counted
    assert "front" in origins(drive)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"samples": 2}, "algorithm.samples is 2, must be at least 3"),
        ({"batch_size": 0}, "algorithm.batch_size is 0"),
        ({"optimism": float("nan")}, "algorithm.optimism is nan"),
        ({"population_size": 3}, "algorithm.population_size is 3"),
        ({"variant": "fast"}, "algorithm.variant is 'fast', must be one of"),
        ({"link": "probit"}, "algorithm.link is 'probit', must be one of"),
    ],
)
def test_bad_fields_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        AmortizedPareto(**config)


def test_nested_needs_a_weight_per_model():
    bare = SearchSpace(
        "magmax", ("b", "x"), "global", 1, (SearchedParam("lambda_", 1, False, 0.0, 1.0, 0.5),)
    )
    with pytest.raises(ConfigError, match="searches no weight per model; use plain"):
        AmortizedPareto(variant="nested").start(bare, OBJECTIVES, generator(0))


def climb(n_weights, behave, n_samples=6, fails=lambda w: False):
    """Drive `merge_up` to its end; return what it asked for, batch by batch."""
    known = {}

    def look_up(weights):
        return known.get(weights.round(9).tobytes())

    batches = []
    for batch in merge_up(n_weights, look_up, n_samples, generator(0)):
        batches.append(batch)
        for weights in batch:
            if not fails(weights):
                values, scores = behave(weights)
                known[weights.round(9).tobytes()] = Scored(values, np.asarray(scores, np.float32))
    return batches


def by_skill(weights):
    """Models 0 and 2 answer alike, and so do 1 and 3."""
    each = weights - 0.5 * weights**2
    skill = np.array([each[0] + each[2], each[1] + each[3]])
    values = skill / (2.0 + 0.5 * skill[::-1])
    return values, np.repeat(values, 4)


def test_the_tree_merges_models_that_behave_alike_first():
    batches = climb(4, by_skill)
    assert len(batches) == 1 + 2 * 3  # the parents; shares and the best merge, three times
    np.testing.assert_array_equal(batches[0], np.eye(4))
    pairs = [set(np.flatnonzero(batch.any(axis=0))) for batch in batches[1:]]
    assert {frozenset(pair) for pair in pairs[:4]} == {frozenset({0, 2}), frozenset({1, 3})}
    assert pairs[-1] == {0, 1, 2, 3}
    assert [len(batch) for batch in batches[1:]] == [6, 1, 6, 1, 6, 1]


def test_the_tree_survives_failures():
    without = climb(4, by_skill, fails=lambda w: w[1] > 0)
    assert all(not batch[:, 1].any() for batch in without[1:])
    assert climb(3, by_skill, fails=lambda w: True) == [pytest.approx(np.eye(3))]
    merges_fail = climb(4, by_skill, fails=lambda w: np.count_nonzero(w) > 1)
    assert len(merges_fail) == 7
