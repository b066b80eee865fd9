from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from evomerge.core.recipe import SEGMENTS, Recipe
from evomerge.merging.adapter_change import AdapterChange
from evomerge.merging.materialize import materialize
from tests.merging.low_rank_cases import random_factors
from tests.merging.memory_source import MemorySource, make_sources, space_of

Q0, Q1 = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))


@dataclass
class Adapter(MemorySource):
    """A model in memory that knows some task vectors as products."""

    parts: dict = field(default_factory=dict)

    def factors(self, name):
        part = self.parts.get(name)
        return None if part is None else (part.a, part.b, part.is_transposed)


@pytest.fixture
def sources():
    base = make_sources(0)["base"]
    found = {"base": base}
    for seed, (key, touched) in enumerate({"x": (Q0, Q1), "y": (Q0,)}.items()):
        parts = dict(zip(touched, random_factors(4, 5, [2] * len(touched), seed=seed), strict=True))
        deltas = {name: part.product() for name, part in parts.items()}
        tensors = {n: t + deltas[n] if n in deltas else t for n, t in base.tensors.items()}
        found[key] = Adapter(key, tensors, deltas, parts=parts)
    return found


def changes(recipe, sources):
    """Return the exact factors of every merged tensor, after checking them against the merge."""
    space = space_of(sources)
    change = AdapterChange(recipe, space, sources)
    merged = dict(materialize(recipe, space, sources))
    found = {}
    for tensor in space.merged:
        name = tensor.spec.name
        found[name] = change.factors(tensor)
        if found[name] is not None:
            product = found[name].product()
            expected = merged[name] - sources["base"].tensors[name]
            torch.testing.assert_close(product, expected, rtol=1e-5, atol=2e-6)
    return found


def linear(weights, *, order=("base", "x", "y"), normalize=False):
    return Recipe("linear", order, {"weights": np.array([weights])}, "global", None,
                  {"normalize": normalize})  # fmt: skip


def test_an_adapter_that_leaves_a_tensor_alone_counts_as_zero(sources):
    found = changes(linear((0.2, 0.5, 0.3)), sources)
    assert {name: part.rank for name, part in found.items()} == {Q0: 4, Q1: 2}


def test_a_mean_of_adapters_without_the_base_is_exact_too(sources):
    found = changes(linear((0.6, 0.4), order=("x", "y")), sources)
    assert {name: part.rank for name, part in found.items()} == {Q0: 4, Q1: 2}


def test_weights_that_scale_the_base_are_no_adapter(sources):
    assert changes(linear((0.5, 0.5, 0.3)), sources) == {Q0: None, Q1: None}
    found = changes(linear((0.5, 0.5, 0.3), normalize=True), sources)
    assert None not in found.values()


def test_a_full_fine_tune_among_the_experts_is_no_adapter(sources):
    full = make_sources(1)["e1"].tensors
    tensors = sources["base"].tensors | {Q1: full[Q1]}
    sources["z"] = MemorySource("z", tensors)
    recipe = linear((0.1, 0.2, 0.3, 0.4), order=("base", "x", "y", "z"))
    found = changes(recipe, sources)
    assert found[Q0] is not None
    assert found[Q1] is None


def test_other_methods_are_no_adapter(sources):
    params = {"weights": np.ones((1, 2)), "density": np.ones(1), "lambda_": np.ones(1)}
    recipe = Recipe("ties", ("base", "x", "y"), params, "global", None, {"threshold": "tensor"})
    change = AdapterChange(recipe, space_of(sources), sources)
    assert [change.factors(tensor) for tensor in space_of(sources).merged] == [None, None]


def test_a_merge_scaled_by_layer_is_still_an_adapter(sources):
    params = {"weights": np.array([[0.5, 0.3]]), "layer_scale.alpha": np.array([0.25])}
    recipe = Recipe("task_arithmetic", ("base", "x", "y"), params)
    found = changes(recipe, sources)
    assert {name: part.rank for name, part in found.items()} == {Q0: 4, Q1: 2}


@pytest.mark.parametrize(("split", "exact"), [(20, {Q0, Q1}), (13, {Q1}), (33, {Q0})])
def test_a_tensor_that_segments_divide_is_no_adapter(split, exact, sources):
    weights = np.array([[0.2, 0.5, 0.3], [0.1, 0.9, 0.0]])
    recipe = replace(
        linear((1.0, 0.0, 0.0)),
        grouping=SEGMENTS,
        breaks=np.array([0, split, 40]),
        params={"weights": weights},
    )
    found = changes(recipe, sources)
    assert {name for name, part in found.items() if part is not None} == exact
