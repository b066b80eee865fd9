"""`modules: search`: groups that go back to the base."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import evomerge.merging  # noqa: F401  (registers the methods)
from evomerge.algorithms.algorithm import search_algorithms
from evomerge.config.merge_space import build_space
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.objective import Objective, Objectives
from evomerge.core.search_space import SWITCH
from evomerge.errors import ConfigError
from evomerge.merging.derived import derive_for
from evomerge.merging.materialize import materialize
from evomerge.merging.operator import merge_operators
from evomerge.seeding import generator
from tests.merging.memory_source import make_sources
from tests.merging.memory_source import space_of as model_of

SOURCES = make_sources(2)
MODEL = model_of(SOURCES)


def space_of(**body):
    return build_space(
        {"groups": "kind", SWITCH: "search"} | body, MODEL, founders="all", span=None
    )


def takes_switches(name):
    try:
        space_of(name=name)
    except ConfigError:
        return False
    return True


METHODS = [name for name in merge_operators.names() if takes_switches(name)]


def test_the_methods_on_task_vectors_take_switches():
    assert {"task_arithmetic", "ties", "dare_linear", "della", "breadcrumbs"} <= set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_what_is_switched_off_is_the_base_bit_for_bit(name):
    space, _ = space_of(name=name)
    vector = space.initial()
    vector[-space.n_groups :] = 0.0
    derived = derive_for(merge_operators.get(name), MODEL, SOURCES)
    base = next(iter(SOURCES.values()))
    for tensor_name, tensor in materialize(space.decode(vector), MODEL, SOURCES, derived):
        assert torch.equal(tensor, base.read(tensor_name)), tensor_name


def test_one_gene_per_group_and_the_section_says_so():
    space, resolved = space_of(name="task_arithmetic")
    plain, _ = build_space(
        {"name": "task_arithmetic", "groups": "kind"}, MODEL, founders="all", span=None
    )
    assert space.dimension == plain.dimension + space.n_groups
    assert resolved[SWITCH] == "search"
    again, _ = build_space(resolved, MODEL, founders="all", span=None)
    assert again.searched == space.searched
    encoded = [space.encode(p.recipe) is not None for p in space.founders]
    assert encoded == [plain.encode(p.recipe) is not None for p in plain.founders]
    assert any(encoded)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"name": "task_arithmetic", SWITCH: True}, "expected 'search'"),
        ({"name": "linear"}, "'linear' as configured is none"),
        ({"name": "norm_share"}, "by weights of 0, but norm_share"),
        ({"name": "task_arithmetic", "normalize": True}, "would divide by that"),
        ({"name": "task_arithmetic", "weights": 0.5}, "whose weights are searched"),
        (
            {"name": "task_arithmetic", "groups": "layer", "weights": {"curve": 2}},
            "a curve cannot be switched off",
        ),
    ],
)
def test_what_cannot_be_switched_is_refused(body, message):
    with pytest.raises(ConfigError, match=message):
        space_of(**body)


@pytest.mark.parametrize("name", ["random", "cma_es", "tpe", "nsga2", "cycle_qd", "evo_merging"])
def test_algorithms_search_switches(name):
    space, _ = space_of(name="ties", density="search")
    tasks = Objectives(tuple(Objective(n, {n: 1.0}) for n in ("first", "second")))
    algorithm = search_algorithms.get(name)()
    algorithm.start(space, tasks, generator(0))

    def told(number, recipe):
        weights = recipe.params.get("weights", np.zeros((1, 2)))
        values = {
            "first": np.array([-np.square(weights - 0.3).sum()], np.float32),
            "second": np.array([(weights == 0.0).sum()], np.float32),
        }
        algorithm.tell(Evaluation(Candidate(number, recipe), values))

    for number, founder in enumerate(space.founders):
        told(number, founder.recipe)
    n_off = 0
    for number in range(40):
        recipe = algorithm.ask().recipe
        assert space.encode(recipe) is not None
        n_off += int((recipe.params["weights"] == 0.0).all(axis=1).sum())
        told(number + 100, recipe)
    assert n_off > 0 or name in ("cycle_qd", "evo_merging")  # these move little in 40 steps
