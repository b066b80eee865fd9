from __future__ import annotations

import contextlib
import random

import numpy as np
import pytest

from evomerge.algorithms.nevergrad_adapter import (
    UNUSABLE,
    CmaEs,
    Nevergrad,
    PrivateGlobalStreams,
    optimizer_class,
)
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.seeding import generator
from evomerge.testing import linear_problem

PROBLEM = linear_problem()


def started(algorithm, space=PROBLEM.space):
    algorithm.start(space, PROBLEM.objectives, generator(0))
    return algorithm


def run(algorithm, n):
    for number in range(n):
        proposal = algorithm.ask()
        candidate = Candidate(number, proposal.recipe)
        algorithm.tell(Evaluation(candidate, PROBLEM.scores(proposal.recipe)))
        yield PROBLEM.objectives.values(Evaluation(candidate, PROBLEM.scores(proposal.recipe)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("OnePlusTwo", "no optimizer 'OnePlusTwo'. Did you mean 'OnePlusOne'"),
        ("NelderMead", "one candidate after the other"),
        ("Cobyla", "one candidate after the other"),
        ("PymooNSGA2", "one candidate after the other"),
        ("ParaPortfolio", "waits for ever"),
    ],
)
def test_optimizers_that_cannot_work_are_refused_at_config_time(name, message):
    with pytest.raises(ConfigError, match=message):
        Nevergrad(optimizer=name)


def test_unknown_optimizers_are_unknown_names():
    with pytest.raises(UnknownNameError):
        Nevergrad(optimizer="CMA-ES")


def test_the_list_of_unusable_optimizers_is_not_stale():
    import nevergrad as ng

    assert set(UNUSABLE) <= set(ng.optimizers.registry)


@pytest.mark.parametrize(
    "config",
    [
        {"num_workers": 0},
        {"budget_hint": 0},
        {"weights": {"frist": 1.0}},
        {"weights": {"first": -1.0}},
    ],
)
def test_bad_fields_are_refused(config):
    with pytest.raises(ConfigError, match=r"frist|num_workers|budget_hint|non-negative"):
        started(Nevergrad(**config))


@pytest.mark.parametrize("name", ["NGOpt", "LHSSearch"])
def test_an_optimizer_that_needs_a_budget_says_so_at_the_start(name):
    with pytest.raises(ConfigError, match="set it to the run's budget"):
        started(Nevergrad(optimizer=name))
    list(run(started(Nevergrad(optimizer=name, budget_hint=20)), 20))


def test_going_past_the_budget_of_a_one_shot_design_is_explained():
    algorithm = started(Nevergrad(optimizer="LHSSearch", budget_hint=5))
    with pytest.raises(ConfigError, match="broke at proposal 6 with budget_hint=5"):
        list(run(algorithm, 6))


def test_cma_es_climbs():
    values = np.array(list(run(started(CmaEs()), 150))).mean(axis=1)
    assert values[-30:].mean() > values[:30].mean() + 0.05
    assert values[75:].max() >= values[:30].max()


def test_cma_es_uses_a_diagonal_above_a_hundred_dimensions():
    def space(groups):
        return SearchSpace("linear", ("a", "b", "c"), "layer", groups,
                           (SearchedParam("weights", 2, True, 0.0, 1.0, 0.5),))  # fmt: skip

    assert started(CmaEs(), space(50)).ask().origin == "CMA"
    assert started(CmaEs(), space(51)).ask().origin == "DiagonalCMA"


def test_founders_are_told_without_being_asked():
    algorithm = started(CmaEs())
    for number, founder in enumerate(PROBLEM.space.founders):
        algorithm.tell(
            Evaluation(Candidate(number, founder.recipe), PROBLEM.scores(founder.recipe))
        )
    assert algorithm._engine.num_tell_not_asked == 4
    assert algorithm._engine.num_ask == 0


def test_one_objective_can_be_singled_out():
    proposals = []
    for weights in (None, {"first": 2.0}, {"first": 1.0}, {"second": 1.0}):
        algorithm = started(Nevergrad(optimizer="DE", weights=weights))
        list(run(algorithm, 120))
        proposals.append(algorithm.ask().recipe.digest())
    assert proposals[1] == proposals[2]
    assert len(set(proposals)) == 3


def test_failures_are_worse_than_everything_told():
    algorithm = started(Nevergrad(optimizer="OnePlusOne"))
    list(run(algorithm, 5))
    proposal = algorithm.ask()
    algorithm.tell(Evaluation(Candidate(9, proposal.recipe), error="no memory"))
    losses = [item.mean for item in algorithm._engine.archive.values()]
    assert max(losses) == losses[-1] == algorithm._bad_loss()


def test_private_streams_go_on_and_leave_the_process_alone():
    def draw():
        return np.random.rand(), random.random()  # noqa: NPY002

    streams = PrivateGlobalStreams(1)
    with streams:
        first = draw()
    with streams:
        second = draw()
    again = PrivateGlobalStreams(1)
    with contextlib.suppress(RuntimeError), again:
        assert draw() == first
        raise RuntimeError("streams must come back all the same")
    before = random.getstate()
    with again:
        assert draw() == second
    assert random.getstate() == before


def test_the_global_streams_stay_untouched_by_an_optimizer_that_draws_from_them():
    before, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    list(run(started(Nevergrad(optimizer="OLNDiscreteOnePlusOne")), 20))
    after = np.random.get_state()  # noqa: NPY002
    assert before[2:] == after[2:]
    np.testing.assert_array_equal(before[1], after[1])
    assert random.getstate() == python


def test_every_accepted_optimizer_is_a_nevergrad_class():
    assert optimizer_class("CMA").no_parallelization is False
