"""LiNeS: its methods scaled layer by layer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.merging.lines import Lines
from evomerge.merging.materialize import materialize, plan_paths
from evomerge.merging.task_arithmetic import TaskArithmetic
from evomerge.merging.ties import Ties
from tests.merging.memory_source import make_sources, space_of
from tests.merging.tensors import inputs_of
from tests.merging.test_properties import FINITE, cases, error_of, fast, weights_for

METHODS = {"task_arithmetic": TaskArithmetic, "ties": Ties}


@pytest.mark.parametrize("method", METHODS)
@fast
@given(cases(max_experts=8), st.data())
def test_alpha_one_and_beta_zero_give_the_method_itself(method, inputs, data):
    weights = data.draw(weights_for(FINITE, len(inputs.experts)))
    lines = Lines(weights=weights, alpha=1.0, beta=0.0, method=method)
    assert torch.equal(lines.merge(inputs), METHODS[method](weights=weights).merge(inputs))


@pytest.mark.parametrize("method", METHODS)
@fast
@given(cases(max_experts=8), st.data())
def test_alpha_and_beta_zero_give_the_base_bit_for_bit(method, inputs, data):
    weights = data.draw(weights_for(FINITE, len(inputs.experts)))
    inputs = dataclasses.replace(inputs, name="layers.2.w", n_layers=3)
    lines = Lines(weights=weights, alpha=0.0, beta=0.0, method=method)
    assert torch.equal(lines.merge(inputs), inputs.base)


@pytest.mark.parametrize("method", METHODS)
@fast
@given(cases(max_experts=8, dtypes=st.just(torch.float32)), st.integers(0, 4), st.data())
def test_task_vectors_grow_in_a_line_from_alpha(method, inputs, layer, data):
    weights = data.draw(weights_for(FINITE, len(inputs.experts)))
    inputs = dataclasses.replace(inputs, name=f"layers.{layer}.w", n_layers=5)
    plain = METHODS[method](weights=weights).merge(inputs).double() - inputs.base
    expected = inputs.base.double() + (0.3 + 0.8 * layer / 4) * plain
    merged = Lines(weights=weights, alpha=0.3, beta=0.8, method=method).merge(inputs)
    assert error_of(merged, expected, inputs) < 1e-6 * (2.0 + sum(map(abs, weights)))


def test_tensors_outside_the_layers_use_alpha():
    sources = make_sources(2)
    space = space_of(sources)
    params = {
        "weights": np.array([[0.5, 0.25]]),
        "alpha": np.array([0.25]),
        "beta": np.array([1.0]),
    }
    for name, merged in materialize(Recipe("lines", space.sources, params), space, sources):
        scale = 1.25 if ".layers.1." in name else 0.25
        base, one, two = (sources[s].tensors[name].double() for s in space.sources)
        expected = base + scale * (0.5 * (one - base) + 0.25 * (two - base))
        torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=1e-6, msg=name)


def test_the_index_of_an_expert_is_not_a_layer():
    base = torch.zeros(2, 2)
    lines = Lines(weights=(1.0,), alpha=0.5, beta=1.0)
    name = "model.layers.0.mlp.experts.7.w1.weight"
    inputs = dataclasses.replace(inputs_of(base, [base + 1.0]), name=name, n_layers=2)
    assert torch.equal(lines.merge(inputs), base + 0.5)


def test_a_model_of_one_layer_uses_alpha():
    base = torch.zeros(2, 2)
    inputs = dataclasses.replace(inputs_of(base, [base + 1.0]), name="h.0.w", n_layers=1)
    assert torch.equal(Lines(weights=(1.0,), alpha=0.5, beta=1.0).merge(inputs), base + 0.5)
    unknown = dataclasses.replace(inputs, n_layers=0)
    with pytest.raises(ConfigError, match="lines needs the number of layers"):
        Lines(weights=(1.0,), alpha=0.5, beta=1.0).merge(unknown)


def test_the_manifest_says_which_tensors_ties_exempts():
    space = space_of(make_sources(2))
    params = {"weights": np.array([[1.0, 1.0]]), "alpha": np.array([1.0]), "beta": np.array([0.0])}
    paths = plan_paths(Recipe("lines", space.sources, params, settings={"method": "ties"}), space)
    assert "without trim" in paths["model.norm.weight"]
    plain = plan_paths(Recipe("lines", space.sources, params), space)
    assert plain["model.norm.weight"] == "merged"
