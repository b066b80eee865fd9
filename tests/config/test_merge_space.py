"""The `merge:` section: what is searched, what is fixed, and the founders."""

import numpy as np
import pytest

from evomerge.config.merge_space import build_space
from evomerge.core.linear_span import LinearSpan
from evomerge.core.model_space import SourceHeader, TensorSpec, align
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.merging.operator import merge_operators

NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight",
         "model.layers.1.mlp.up_proj.weight", "model.norm.weight")  # fmt: skip


def model(*ids, has_base=True):
    headers = [
        SourceHeader(
            id,
            "Llama",
            {name: TensorSpec(name, "F32", (2, 2)) for name in NAMES},
            {name: f"{id}:{name}" for name in NAMES},
        )
        for id in ids
    ]
    return align(headers, has_base=has_base)


BASE_X_Y = model("base", "x", "y")


def space_of(body, models=BASE_X_Y, *, founders="all", span=None, in_span=False):
    return build_space(body, models, founders=founders, span=span, in_span=in_span)[0]


def searched(body, name, models=BASE_X_Y):
    return next((p for p in space_of(body, models).searched if p.name == name), None)


# ------------------------------------------------------------------------- parameter forms


def test_a_parameter_without_default_is_searched_over_the_methods_range():
    weights = searched({"name": "ties"}, "weights")
    assert (weights.low, weights.high, weights.width, weights.per_source) == (0.0, 1.0, 2, True)
    assert weights.initial == 0.5, "1 / number of experts"


def test_a_parameter_with_a_default_is_fixed_at_it():
    space = space_of({"name": "ties", "groups": "layer"})
    assert [p.name for p in space.searched] == ["weights"]
    np.testing.assert_array_equal(space.fixed["density"], [0.2] * 4)
    np.testing.assert_array_equal(space.fixed["lambda_"], [1.0] * 4)


def test_search_takes_the_methods_own_range_and_default():
    density = searched({"name": "ties", "density": "search"}, "density")
    assert (density.low, density.high, density.initial) == (0.05, 1.0, 0.2)
    assert (density.width, density.per_source) == (1, False)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0.3, 0.9], (0.3, 0.9, 0.3)),  # the default, 0.2, is moved into the range
        ([0.1, 0.9], (0.1, 0.9, 0.2)),
        ({"low": 0.1, "high": 0.9}, (0.1, 0.9, 0.2)),
        ({"low": 0.1, "high": 0.9, "initial": 0.7}, (0.1, 0.9, 0.7)),
        ({"low": 0, "high": 1, "initial": None}, (0.0, 1.0, 0.2)),
    ],
)
def test_a_range_is_searched(value, expected):
    density = searched({"name": "ties", "density": value}, "density")
    assert (density.low, density.high, density.initial) == expected


def test_a_number_is_fixed_for_every_model_and_group():
    space = space_of({"name": "ties", "weights": 0.25, "density": "search", "groups": "layer"})
    np.testing.assert_array_equal(space.fixed["weights"], np.full((4, 2), 0.25))
    np.testing.assert_array_equal(space_of({"name": "ties", "density": 1}).fixed["density"], [1.0])


def test_values_are_fixed_one_per_model():
    space = space_of({"name": "ties", "weights": {"values": [0.3, 0.7]}, "groups": "layer"})
    np.testing.assert_array_equal(space.fixed["weights"], [[0.3, 0.7]] * 4)
    assert space.searched == ()


def test_linear_has_a_weight_for_the_base_too():
    assert searched({"name": "linear"}, "weights").width == 3
    assert searched({"name": "linear"}, "weights", model("a", "b", has_base=False)).width == 2


def test_settings_are_kept_with_their_defaults():
    settings = space_of({"name": "ties", "sign": "weighted"}).settings
    assert settings["sign"] == "weighted"
    assert settings["compat"] == "paper"


def test_groups_multiply_the_dimensions():
    assert space_of({"name": "ties"}).dimension == 2
    assert space_of({"name": "ties", "groups": "layer"}).dimension == 8
    assert space_of({"name": "ties", "groups": "block:1"}).n_groups == 3


@pytest.mark.parametrize("name", sorted(merge_operators.names()))
def test_the_resolved_section_gives_the_same_space(name):
    fitting = {"slerp": model("a", "b", has_base=False), "passthrough": model("base", "x")}
    models = fitting.get(name, BASE_X_Y)
    space, resolved = build_space(
        {"name": name, "groups": "layer"}, models, founders="all", span=None
    )
    again, twice = build_space(resolved, models, founders="all", span=None)
    assert twice == resolved
    assert again.searched == space.searched
    assert again.settings == space.settings
    assert {k: v.tolist() for k, v in again.fixed.items()} == {
        k: v.tolist() for k, v in space.fixed.items()
    }
    assert [p.recipe.digest() for p in again.founders] == [
        p.recipe.digest() for p in space.founders
    ]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "merge: needs a `name:`. Known: .*dare_linear"),
        ({"name": "tie"}, "merge.name: 'tie' is not a known merge method. Did you mean 'ties'?"),
        ({"name": "ties", "groups": "layerz"}, "merge.groups: 'layerz'.*Did you mean 'layer'?"),
        ({"name": "ties", "lambda": 1}, "merge.lambda is not a parameter.*mean 'lambda_'?"),
        ({"name": "ties", "density": True}, "merge.density is True"),
        ({"name": "ties", "density": None}, "merge.density is None"),
        ({"name": "ties", "density": "0.5"}, "merge.density is '0.5'"),
        ({"name": "ties", "density": -0.1}, "merge.density is -0.1, must be at least 0"),
        ({"name": "ties", "density": [0.5]}, r"a range is \[low, high\]"),
        ({"name": "ties", "density": [0.5, 0.5]}, "is empty"),
        ({"name": "ties", "density": ["a", 1]}, "'a' is not a finite number"),
        ({"name": "ties", "density": [False, 1]}, "False is not a finite number"),
        ({"name": "ties", "density": [float("nan"), 1]}, "nan is not a finite number"),
        ({"name": "ties", "density": {"low": 0.1}}, "expected low, high"),
        ({"name": "ties", "density": {"low": 0.1, "high": 0.2, "initial": 0.3}}, "outside"),
        ({"name": "ties", "density": {"values": [0.1, 0.2]}}, "2 values for 1"),
        ({"name": "ties", "weights": {"values": [1]}}, "1 values for 2 models"),
        ({"name": "ties", "weights": {"values": "x"}}, "expected low, high"),
        ({"name": "ties", "sign": "both"}, "merge.sign: Input should be 'auto'"),
    ],
)
def test_a_wrong_section_names_the_key(body, says):
    with pytest.raises(ConfigError, match=says):
        space_of(body)


def test_a_method_that_does_not_fit_the_models_is_refused():
    with pytest.raises(ConfigError, match="'ties' works on task vectors; give a `base_model:`"):
        space_of({"name": "ties"}, model("a", "b", has_base=False))
    with pytest.raises(ConfigError, match="'slerp' merges exactly 2 models, 3 are given"):
        space_of({"name": "slerp"}, model("base", "x", "y", "z"))


@pytest.mark.parametrize("ids", [("base", "x"), ("base", "x", "y")])
def test_slerp_takes_two_experts_or_the_base_and_one(ids):
    body = {"name": "slerp", "t": "search"}
    assert space_of(body, model(*ids)).dimension == 1
    assert space_of(body, model("a", "b", has_base=False)).dimension == 1


def test_unknown_names_stay_config_errors_for_the_exit_code():
    assert issubclass(UnknownNameError, ConfigError)


# --------------------------------------------------------------------------------- founders


def founders(body, models=BASE_X_Y, **keys):
    return {p.origin: p.recipe for p in space_of(body, models, **keys).founders}


def coefficients(recipe):
    """(G, K) weights over the sources; only for linear and task arithmetic."""
    weights = recipe.params["weights"]
    if recipe.operator == "task_arithmetic":
        scaled = weights * recipe.params["lambda_"][:, None]
        weights = np.concatenate([1.0 - scaled.sum(axis=1, keepdims=True), scaled], axis=1)
    return weights


METHODS = ("ties", "task_arithmetic", "linear", "dare_ties")


@pytest.mark.parametrize("name", METHODS)
def test_founders_are_the_parents_the_mean_and_task_arithmetic(name):
    found = founders({"name": name, "groups": "layer"}, model("base", "x", "y", "z"))
    assert [origin for origin in found if origin != "founder: initial values"] == [
        "founder: base",
        "founder: x",
        "founder: y",
        "founder: z",
        "founder: mean of the models",
        "founder: task arithmetic 0.3",
        "founder: task arithmetic 0.5",
        "founder: task arithmetic 1",
    ]


def test_a_founder_that_repeats_another_is_left_out():
    found = founders({"name": "ties"})
    assert "founder: task arithmetic 0.5" not in found, "it is the mean of two experts"


@pytest.mark.parametrize("name", METHODS)
def test_one_hot_founders_are_exactly_the_parents(name):
    found = founders({"name": name, "groups": "layer"})
    for k, source in enumerate(BASE_X_Y.sources):
        rows = coefficients(found[f"founder: {source}"])
        np.testing.assert_array_equal(rows, np.tile(np.eye(3)[k], (len(rows), 1)))


def test_founders_say_what_their_names_say():
    found = founders({"name": "linear", "normalize": False, "weights": [-3, 3]})
    np.testing.assert_allclose(coefficients(found["founder: mean of the models"]), [[0, 0.5, 0.5]])
    np.testing.assert_allclose(
        coefficients(found["founder: task arithmetic 0.3"]), [[0.4, 0.3, 0.3]]
    )
    np.testing.assert_allclose(coefficients(found["founder: task arithmetic 1"]), [[-1, 1, 1]])


def test_founders_use_the_spaces_own_form_where_it_has_one():
    space = space_of({"name": "task_arithmetic", "groups": "layer"})
    for proposal in space.founders:
        assert proposal.recipe.operator == "task_arithmetic"
        assert space.encode(proposal.recipe) is not None


@pytest.mark.parametrize(
    "body",
    [
        {"name": "ties"},
        {"name": "task_arithmetic", "weights": [0.1, 0.9]},
        {"name": "task_arithmetic", "lambda_": 0.5},
        {"name": "task_arithmetic", "normalize": True},
        {"name": "task_arithmetic", "lambda_": "search"},
    ],
)
def test_founders_a_space_cannot_say_are_raw_linear(body):
    found = founders(body)
    base = found["founder: base"]
    assert (base.operator, base.grouping, base.settings) == (
        "linear",
        "global",
        {"normalize": False},
    )
    np.testing.assert_array_equal(base.params["weights"], [[1.0, 0.0, 0.0]])


def test_founders_are_distinct():
    for name in METHODS:
        digests = [p.recipe.digest() for p in space_of({"name": name}).founders]
        assert len(set(digests)) == len(digests)


def test_without_a_base_there_is_no_task_arithmetic():
    found = founders({"name": "linear"}, model("a", "b", has_base=False))
    assert not [origin for origin in found if "task arithmetic" in origin]
    np.testing.assert_allclose(coefficients(found["founder: mean of the models"]), [[0.5, 0.5]])


def test_fewer_founders_on_request():
    assert list(founders({"name": "ties"}, founders="parents")) == [
        "founder: base",
        "founder: x",
        "founder: y",
    ]
    assert founders({"name": "ties"}, founders="none") == {}


def test_a_span_search_gets_raw_founders_and_no_initial_values():
    grams = np.tile(np.eye(3), (1, 1, 1))
    span = LinearSpan.from_block_grams(BASE_X_Y.sources, BASE_X_Y.n_elements, 16, grams)
    found = founders({"name": "linear", "normalize": False}, span=span, in_span=True)
    assert "founder: initial values" not in found
    assert {recipe.operator for recipe in found.values()} == {"linear"}
