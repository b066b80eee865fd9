"""LiNeS after any merge method: one scale per layer of the merged task vector."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.merging.auto_scale import auto_alpha
from evomerge.merging.layer_scale import LayerScale, LayerScaled, layer_scales
from evomerge.merging.linear import Linear
from evomerge.merging.magmax import MagMax
from evomerge.merging.materialize import build_operators, materialize, plan_paths
from evomerge.merging.mergekit_rules import write_mergekit
from evomerge.merging.operator import merge_operators
from evomerge.merging.plan import tensor_keys
from evomerge.merging.task_arithmetic import TaskArithmetic
from evomerge.merging.ties import Ties
from tests.merging.memory_source import make_sources, space_of
from tests.merging.tensors import inputs_of
from tests.merging.test_properties import FINITE, cases, error_of, fast, weights_for

METHODS = {
    "task_arithmetic": TaskArithmetic,
    "ties": Ties,
    "magmax": lambda weights: MagMax(),
    "linear": lambda weights: Linear(weights=(0.5, *weights), normalize=False),
}
SOURCES = make_sources(2)
SPACE = space_of(SOURCES)
TWO = {"weights": np.array([[0.5, 0.25]])}


def scaled(method, weights, alpha, beta):
    return LayerScaled(METHODS[method](weights=weights), LayerScale(alpha=alpha, beta=beta))


def recipe_of(operator="task_arithmetic", params=TWO, **scale):
    own = {f"layer_scale.{name}": np.array([value]) for name, value in scale.items()}
    return Recipe(operator, SPACE.sources, {**params, **own})


def merge_all(recipe, space=SPACE, sources=SOURCES, **keys):
    return dict(materialize(recipe, space, sources, **keys))


@pytest.mark.parametrize("method", METHODS)
@fast
@given(cases(max_experts=8), st.integers(0, 2), st.data())
def test_alpha_one_and_beta_zero_give_the_method_itself(method, inputs, layer, data):
    weights = data.draw(weights_for(FINITE, len(inputs.experts)))
    inputs = dataclasses.replace(inputs, name=f"layers.{layer}.w", n_layers=3)
    merged = scaled(method, weights, 1.0, 0.0).merge(inputs)
    assert torch.equal(merged, METHODS[method](weights=weights).merge(inputs))


@pytest.mark.parametrize("method", METHODS)
@fast
@given(cases(max_experts=8), st.integers(0, 2), st.data())
def test_alpha_and_beta_zero_give_the_base_bit_for_bit(method, inputs, layer, data):
    weights = data.draw(weights_for(FINITE, len(inputs.experts)))
    inputs = dataclasses.replace(inputs, name=f"layers.{layer}.w", n_layers=3)
    assert torch.equal(scaled(method, weights, 0.0, 0.0).merge(inputs), inputs.base)


@pytest.mark.parametrize("method", METHODS)
@fast
@given(cases(max_experts=8, dtypes=st.just(torch.float32)), st.integers(0, 4), st.data())
def test_task_vectors_grow_in_a_line_from_alpha(method, inputs, layer, data):
    weights = data.draw(weights_for(FINITE, len(inputs.experts)))
    inputs = dataclasses.replace(inputs, name=f"layers.{layer}.w", n_layers=5)
    plain = METHODS[method](weights=weights).merge(inputs).double() - inputs.base
    expected = inputs.base.double() + (0.3 + 0.8 * layer / 4) * plain
    merged = scaled(method, weights, 0.3, 0.8).merge(inputs)
    assert error_of(merged, expected, inputs) < 1e-6 * (2.0 + sum(map(abs, weights)))


@pytest.mark.parametrize("name", merge_operators.names())
def test_every_merge_method_can_be_scaled(name):
    n_models = merge_operators.get(name).n_models or 3
    sources = make_sources(n_models)
    space = space_of(sources)
    over_sources = merge_operators.get(name).weights_over == "sources"
    width = len(space.sources) - (not over_sources)
    names = {item.name for item in dataclasses.fields(merge_operators.get(name))}
    params = {}
    for key in {"weights", "alpha", "beta"} & names:
        if key == "weights" or name == "evo_merging":
            params[key] = np.full((1, width), 0.4)
    plain = merge_all(Recipe(name, space.sources, params), space, sources)
    scale = {"layer_scale.alpha": np.array([0.5]), "layer_scale.beta": np.array([0.5])}
    recipe = Recipe(name, space.sources, {**params, **scale})
    for key, merged in merge_all(recipe, space, sources).items():
        base = sources["base"].tensors[key]
        if ".layers.1." in key:
            assert torch.equal(merged, plain[key]), key
        else:
            expected = base + 0.5 * (plain[key] - base)
            torch.testing.assert_close(merged, expected, rtol=1e-6, atol=1e-6, msg=key)


def test_tensors_outside_the_layers_use_alpha():
    for name, merged in merge_all(recipe_of(alpha=0.25, beta=1.0)).items():
        scale = 1.25 if ".layers.1." in name else 0.25
        base, one, two = (SOURCES[s].tensors[name].double() for s in SPACE.sources)
        expected = base + scale * (0.5 * (one - base) + 0.25 * (two - base))
        torch.testing.assert_close(merged.double(), expected, rtol=1e-6, atol=1e-6, msg=name)


def test_without_beta_the_last_layer_keeps_the_task_vector():
    assert layer_scales({"layer_scale.alpha": np.array([0.25, 1.0])}) == [
        LayerScale(alpha=0.25, beta=0.75),
        LayerScale(alpha=1.0, beta=0.0),
    ]
    plain, tied = merge_all(recipe_of()), merge_all(recipe_of(alpha=0.25))
    last = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(tied[last], plain[last])


def test_each_group_has_its_own_scale():
    params = {"weights": np.ones((4, 2)), "layer_scale.alpha": np.array([0.0, 0.0, 1.0, 0.0])}
    params["layer_scale.beta"] = np.zeros(4)
    recipe = Recipe("task_arithmetic", SPACE.sources, params, "layer")
    plain = merge_all(recipe_of(params={"weights": np.ones((1, 2))}))
    for name, merged in merge_all(recipe).items():
        other = plain if ".layers.1." in name else SOURCES["base"].tensors
        assert torch.equal(merged, other[name]), name


def test_segments_are_scaled_piece_by_piece():
    n = SPACE.n_elements
    weights = np.tile([0.2, 0.5, 0.3], (2, 1))
    scale = {"layer_scale.alpha": np.full(2, 0.5), "layer_scale.beta": np.full(2, 0.25)}
    fixed = {"settings": {"normalize": False}}
    breaks = np.array([0, 51, n])
    cut = Recipe(
        "linear", SPACE.sources, {"weights": weights, **scale}, "segments", breaks, **fixed
    )
    one = {name: value[:1] for name, value in {"weights": weights, **scale}.items()}
    whole = merge_all(Recipe("linear", SPACE.sources, one, **fixed))
    for name, merged in merge_all(cut).items():
        assert torch.equal(merged, whole[name]), name


def test_the_index_of_an_expert_is_not_a_layer():
    base = torch.zeros(2, 2)
    name = "model.layers.0.mlp.experts.7.w1.weight"
    inputs = dataclasses.replace(inputs_of(base, [base + 1.0]), name=name, n_layers=2)
    assert torch.equal(scaled("task_arithmetic", (1.0,), 0.5, 1.0).merge(inputs), base + 0.5)


def test_a_model_of_one_layer_uses_alpha():
    base = torch.zeros(2, 2)
    inputs = dataclasses.replace(inputs_of(base, [base + 1.0]), name="h.0.w", n_layers=1)
    operator = scaled("task_arithmetic", (1.0,), 0.5, 1.0)
    assert torch.equal(operator.merge(inputs), base + 0.5)
    with pytest.raises(ConfigError, match="layer_scale needs the number of layers, got 0"):
        operator.merge(dataclasses.replace(inputs, n_layers=0))


def test_fp16_results_stay_finite():
    base = torch.full((2, 2), 60000.0, dtype=torch.float16)
    inputs = dataclasses.replace(inputs_of(base, [base / 2]), name="h.0.w", n_layers=1)
    merged = scaled("task_arithmetic", (-0.5,), 0.9, 0.0).merge(inputs)
    assert torch.equal(merged, torch.full((2, 2), 65504.0, dtype=torch.float16))


def test_the_result_is_written_in_place_where_nothing_is_scaled():
    place = torch.empty(4, 5)
    name = "model.layers.1.self_attn.q_proj.weight"
    for beta, is_in_place in ((0.5, True), (0.25, False)):
        recipe = recipe_of(alpha=0.5, beta=beta)
        merged = merge_all(recipe, names=[name], into={name: place})[name]
        assert (merged.data_ptr() == place.data_ptr()) == is_in_place


def test_sources_are_not_written_to():
    before = {k: {n: t.clone() for n, t in s.tensors.items()} for k, s in SOURCES.items()}
    one_hot = recipe_of(params={"weights": np.array([[1.0, 0.0]])}, alpha=0.5, beta=0.1)
    merge_all(one_hot)
    for key, tensors in before.items():
        assert all(torch.equal(t, SOURCES[key].tensors[n]) for n, t in tensors.items())


def test_a_changed_scale_changes_the_keys():
    def keys(recipe):
        return tensor_keys(recipe, SPACE, build_operators(recipe, SPACE))

    name = "model.norm.weight"
    found = [keys(recipe_of(alpha=0.5, beta=beta))[name] for beta in (0.1, 0.1, 0.2)]
    assert found[0] == found[1] != found[2]
    assert keys(recipe_of())[name] not in found


def test_the_manifest_says_which_tensors_the_method_exempts():
    assert "without trim" in plan_paths(recipe_of("ties", alpha=0.5), SPACE)["model.norm.weight"]
    assert plan_paths(recipe_of(alpha=0.5), SPACE)["model.norm.weight"] == "merged"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layer_scale.beta": np.ones(1)}, "params.layer_scale.alpha is missing"),
        ({"layer_scale.alhpa": np.ones(1)}, "Did you mean 'layer_scale.alpha'"),
        ({"layer_scale.alpha": np.ones((1, 2))}, r"layer_scale.alpha must be \(1,\)"),
    ],
)
def test_a_scale_that_does_not_fit_is_refused(params, message):
    with pytest.raises(ConfigError, match=message):
        build_operators(Recipe("ties", SPACE.sources, {**TWO, **params}), SPACE)


def test_a_scale_needs_the_base():
    params = {"weights": np.ones((1, 2)), "layer_scale.alpha": np.ones(1)}
    with pytest.raises(ConfigError, match="needs the base first in `sources`; they are e1, e2"):
        build_operators(Recipe("linear", ("e1", "e2"), params), SPACE)


def test_mergekit_has_no_such_config():
    said, reason = write_mergekit(recipe_of(alpha=0.5), SPACE, {s: s for s in SPACE.sources})
    assert said is None
    assert "LiNeS" in reason


# --------------------------------------------------------------------------------- alpha: auto


def test_auto_alpha_of_a_plain_sum_is_one_over_the_number_of_experts():
    for n in (1, 2, 3):
        sources = make_sources(n)
        space = space_of(sources)
        recipe = Recipe("task_arithmetic", space.sources, {"weights": np.ones((1, n))})
        assert auto_alpha(recipe, space, sources) == pytest.approx(1.0 / n, rel=1e-5)


def test_auto_alpha_is_larger_for_a_merge_that_shrinks():
    recipe = recipe_of("ties", {"weights": np.ones((1, 2)), "density": np.array([0.1])})
    merged = merge_all(recipe)
    size = total = 0.0
    for name, tensor in merged.items():
        base, one, two = (SOURCES[s].tensors[name].double() for s in SPACE.sources)
        size += float((tensor.double() - base).abs().sum())
        total += float((one + two - 2 * base).abs().sum())
    alpha = auto_alpha(recipe, SPACE, SOURCES)
    assert alpha == pytest.approx(total / size / 2, rel=1e-5)
    assert alpha > 0.5


def test_auto_alpha_of_the_base_is_refused():
    recipe = recipe_of(params={"weights": np.zeros((1, 2))})
    with pytest.raises(ConfigError, match="'auto' divides by the size of the merged task vector"):
        auto_alpha(recipe, SPACE, SOURCES)
    with pytest.raises(ConfigError, match="needs a base"):
        auto_alpha(Recipe("linear", ("e1", "e2"), TWO), SPACE, SOURCES)
