"""Layer swapping: who gets which layer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.merging.layer_swap import LayerSwap
from evomerge.merging.materialize import materialize
from tests.merging.memory_source import make_sources, space_of
from tests.merging.tensors import inputs_of, random_tensors, relative_error


def owner(operator, name, n_layers):
    """Share of the second model in a tensor of this name."""
    inputs = inputs_of(torch.full((2,), 9.0), [torch.zeros(2), torch.ones(2)])
    inputs = dataclasses.replace(inputs, name=name, n_layers=n_layers)
    return float(operator.merge(inputs)[0])


def shares(operator, n_layers):
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in range(n_layers)]
    return [owner(operator, name, n_layers) for name in names]


def test_the_papers_layers_of_32():
    expected = [0.0] * 5 + [0.5] + [1.0] * 23 + [0.5] + [0.0] * 2
    assert shares(LayerSwap(), 32) == expected


@pytest.mark.parametrize(
    ("changes", "n_layers", "expected"),
    [
        ({"bottom": 0.0, "top": 0.0, "bottom_blend": 0, "top_blend": 0}, 3, [1, 1, 1]),
        ({"bottom": 1.0}, 3, [0, 0, 0]),
        ({"bottom": 0.5, "top": 0.5}, 4, [0, 0, 0, 0]),
        ({"bottom": 0.25, "top": 0.25, "bottom_blend": 2, "top_blend": 0}, 6, [0, 0, 0.5, 0.5, 0, 0]),
        ({"bottom": 0.2, "top": 0.0, "bottom_blend": 0, "top_blend": 1}, 4, [0, 1, 1, 0.5]),
        ({}, 1, [0.5]),
    ],
)  # fmt: skip
def test_fractions_are_rounded_to_whole_layers(changes, n_layers, expected):
    assert shares(LayerSwap(**changes), n_layers) == expected


@pytest.mark.parametrize(
    "name", ["model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"]
)
def test_tensors_outside_the_layers_are_the_first_experts(name):
    assert owner(LayerSwap(bottom=0.0, top=0.0), name, 4) == 0.0


def test_swapped_tensors_are_bit_exact_and_blended_ones_the_mean():
    sources = make_sources(2, dtype=torch.bfloat16)
    space = space_of(sources)
    params = {"bottom": np.array([0.5]), "top": np.array([0.0])}
    settings = {"bottom_blend": 0, "top_blend": 0}
    recipe = Recipe("layer_swap", space.sources, params, settings=settings)
    for name, merged in materialize(recipe, space, sources):
        source = "e2" if ".layers.1." in name else "e1"
        assert torch.equal(merged, sources[source].tensors[name]), name
    blended = Recipe("layer_swap", space.sources, params)
    for name, merged in materialize(blended, space, sources):
        if ".layers.1." in name:
            mean = 0.5 * sum(sources[e].tensors[name].double() for e in ("e1", "e2"))
            assert relative_error(merged, mean) < 2.0**-8


def test_a_base_with_one_expert_are_two_models():
    base, (a,) = random_tensors((2, 2), 1)
    inputs = dataclasses.replace(inputs_of(base, [a]), name="h.1.mlp.c_fc.weight", n_layers=3)
    assert torch.equal(LayerSwap(bottom=0.0, top=0.0, bottom_blend=0, top_blend=0).merge(inputs), a)
    assert torch.equal(LayerSwap(bottom=1.0).merge(inputs), base)


def test_what_cannot_be_merged_is_refused():
    base, experts = random_tensors((2, 2), 3)
    with pytest.raises(ConfigError, match="two models, got 4"):
        LayerSwap().merge(inputs_of(base, experts))
    inputs = dataclasses.replace(inputs_of(base, experts[:2]), name="h.0.ln_1.weight")
    with pytest.raises(ConfigError, match="needs the number of layers"):
        LayerSwap().merge(inputs)
    with pytest.raises(ConfigError, match="count layers from 0 up"):
        LayerSwap(top_blend=-1)
    with pytest.raises(ConfigError, match="bottom is 2, must be at most 1"):
        LayerSwap(bottom=2.0)
