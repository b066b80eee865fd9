"""`{curve: N}`: a line of few knots over the depth of the model."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from evomerge.algorithms.algorithm import search_algorithms
from evomerge.config.layer_curve import split_curve, with_curve
from evomerge.config.merge_space import build_space
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.corners import corners
from evomerge.core.model_space import SourceHeader, TensorSpec, align
from evomerge.core.objective import Objective, Objectives
from evomerge.core.sample_design import single_parents
from evomerge.core.search_space import SearchedParam
from evomerge.errors import ConfigError
from evomerge.seeding import generator

NAMES = ("model.embed_tokens.weight",
         *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(6)), "lm_head.weight")  # fmt: skip


def space_of(body, founders="all"):
    headers = [
        SourceHeader(
            source,
            "Llama",
            {name: TensorSpec(name, "F32", (2, 2)) for name in NAMES},
            {name: f"{source}:{name}" for name in NAMES},
        )
        for source in ("base", "x", "y")
    ]
    return build_space(body, align(headers, has_base=True), founders=founders, span=None)


def test_knots_lie_at_even_depths_and_ends_extend():
    space, resolved = space_of(
        {"name": "task_arithmetic", "groups": "layer", "weights": {"curve": 3, "low": 0, "high": 1}}
    )
    assert resolved["weights"] == {"low": 0.0, "high": 1.0, "initial": 0.5, "curve": 3}
    assert space.dimension == 3 * 2
    vector = np.array([0.0, 1.0, 1.0, 1.0, 0.0, 1.0])  # x: 0, 1, 0; y: 1
    weights = space.decode(vector).params["weights"]
    np.testing.assert_allclose(weights[:, 0], [0, 0, 0.4, 0.8, 0.8, 0.4, 0, 0], atol=1e-12)
    np.testing.assert_allclose(weights[:, 1], 1.0)
    again, _ = space_of(
        {"name": "task_arithmetic", "groups": "layer", "weights": resolved["weights"]}
    )
    assert again.searched == space.searched, "the resolved section means the same"


def test_founders_become_points_of_the_curve():
    space, _ = space_of({"name": "task_arithmetic", "groups": "layer", "weights": {"curve": 4}})
    for founder in space.founders:
        if founder.recipe.operator == "task_arithmetic":
            assert space.encode(founder.recipe) is not None, founder.origin
    assert space.encode(space.founders[1].recipe) is not None
    for points in (corners(space), single_parents(space)):
        assert points.shape == (2, space.dimension)
        weights = space.decode(points[0]).params["weights"]
        np.testing.assert_allclose(weights, np.tile([1.0, 0.0], (8, 1)), atol=1e-12)


def test_densities_may_follow_a_curve_and_blocks_too():
    space, _ = space_of({"name": "ties", "groups": "block:3", "density": {"curve": 2}})
    density = space.decode(np.ones(space.dimension)).params["density"]
    assert density.shape == (5,)
    assert density.max() <= 1.0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"groups": "global", "weights": {"curve": 2}}, "set merge.groups to 'layer'"),
        ({"groups": "layer", "weights": {"curve": 7}}, "there are 6 layers"),
        ({"groups": "layer", "weights": {"curve": 1}}, "expected a number of knots"),
        ({"groups": "layer", "weights": {"curve": True}}, "expected a number of knots"),
        ({"groups": "layer", "weights": {"curve": 2, "values": [1, 1]}}, "`curve` or `values`"),
        ({"groups": "layer", "weights": {"curve": 2, "lo": 0}}, "expected low, high"),
    ],
)
def test_wrong_curves_are_refused(body, message):
    with pytest.raises(ConfigError, match=message):
        space_of({"name": "task_arithmetic", **body})


def test_shares_sum_to_one_at_any_depth():
    for n_layers in range(2, 40):
        labels = ("embed", *(f"layer.{i}" for i in range(n_layers)), "head")
        for n_knots in range(2, n_layers + 1, 3):
            param = SearchedParam("weights", 1, False, 0.0, 1.0, 0.5)
            shares = np.array(with_curve(param, n_knots, labels, "here").curve)
            np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-12)
            assert np.linalg.matrix_rank(shares) == n_knots


def test_a_section_without_a_curve_stays_as_it_is():
    assert split_curve([0, 1], "here") == (None, [0, 1])
    assert split_curve("search", "here") == (None, "search")


@pytest.mark.parametrize("name", ["random", "cma_es", "tpe", "nsga2", "cycle_qd", "evo_merging"])
def test_algorithms_search_curves(name):
    space, _ = space_of({"name": "task_arithmetic", "groups": "layer", "weights": {"curve": 3}})
    tasks = Objectives(tuple(Objective(n, {n: 1.0}) for n in ("first", "second")))
    algorithm = functools.partial(search_algorithms.get(name))()
    algorithm.start(space, tasks, generator(0))

    def told(number, recipe):
        weights = recipe.params.get("weights", np.zeros((1, 2)))
        values = {
            "first": np.array([-np.square(weights - 0.3).sum()], np.float32),
            "second": np.array([weights.sum()], np.float32),
        }
        algorithm.tell(Evaluation(Candidate(number, recipe), values))

    for number, founder in enumerate(space.founders):
        told(number, founder.recipe)
    for number in range(30):
        proposal = algorithm.ask()
        assert space.encode(proposal.recipe) is not None
        told(number + 100, proposal.recipe)
