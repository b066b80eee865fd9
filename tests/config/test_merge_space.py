"""The `merge:` section: what is searched, what is fixed, and the founders."""

import numpy as np
import pytest
import torch

from evomerge.config.merge_space import build_space, with_groups_of
from evomerge.core.linear_span import LinearSpan
from evomerge.core.model_space import SourceHeader, TensorSpec, align
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, UnknownNameError
from evomerge.merging.derived import Derived
from evomerge.merging.grams import tensor_grams
from evomerge.merging.layer_scale import LayerScale
from evomerge.merging.materialize import build_operators, materialize
from evomerge.merging.operator import merge_operators
from tests.merging.memory_source import make_sources
from tests.merging.memory_source import space_of as memory_space

NAMES = ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight",
         "model.layers.1.mlp.up_proj.weight", "model.norm.weight")  # fmt: skip


def model(*ids, has_base=True, names=NAMES):
    headers = [
        SourceHeader(
            id,
            "Llama",
            {name: TensorSpec(name, "F32", (2, 2)) for name in names},
            {name: f"{id}:{name}" for name in names},
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


def test_a_curve_gets_the_layers_it_needs():
    body = {"name": "task_arithmetic", "weights": {"curve": 2}}
    space, resolved = build_space(body, BASE_X_Y, founders="none", span=None, numbers=64)
    assert (resolved["groups"], space.searched[0].curve is not None) == ("layer", True)


@pytest.mark.parametrize(
    ("body", "stored", "groups"),
    [
        ({"name": "ties"}, {"name": "ties", "groups": "chunk:9"}, "chunk:9"),
        ({"name": "ties", "groups": "kind"}, {"name": "ties", "groups": "chunk:9"}, "kind"),
        ({"name": "slerp"}, {"name": "ties", "groups": "chunk:9"}, None),
        ({"name": "layer_sequence"}, {"name": "layer_sequence"}, None),
    ],
)
def test_groups_that_are_not_named_are_those_of_the_run(body, stored, groups):
    assert with_groups_of(body, stored).get("groups") == groups
    several = {"any_of": [body, "linear"]}
    run = {"any_of": [stored, {"name": "linear", "groups": "layer"}]}
    found = with_groups_of(several, run)["any_of"]
    assert [item.get("groups") for item in found] == [groups, "layer"]
    shared = {"groups": "module", **several}
    assert with_groups_of(shared, run) == shared


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


@pytest.mark.parametrize(
    ("body", "numbers", "groups"),
    [
        ({"name": "task_arithmetic"}, 8, "module"),  # four, two numbers each
        ({"name": "task_arithmetic"}, 5, "module"),
        ({"name": "task_arithmetic"}, 16, "module"),
        ({"name": "task_arithmetic"}, 18, "chunk:9"),
        ({"name": "task_arithmetic"}, 100, "chunk:16"),  # there are no more elements
        ({"name": "task_arithmetic"}, 2, "global"),
        ({"name": "task_arithmetic"}, None, "global"),
        ({"name": "task_arithmetic", "groups": "layer"}, 8, "layer"),
        ({"name": "ties"}, 18, "block:9"),  # cannot cut tensors
        ({"name": "ties"}, 8, "module"),
        ({"name": "ties", "density": "search"}, 27, "block:9"),
        ({"name": "task_arithmetic", "layer_scale": {"alpha": 0.5, "beta": 1}}, 18, "chunk:9"),
    ],
)
def test_where_no_groups_are_named_the_algorithm_says_how_many_numbers(body, numbers, groups):
    space, resolved = build_space(body, BASE_X_Y, founders="all", span=None, numbers=numbers)
    assert resolved["groups"] == groups
    again, _ = build_space(resolved, BASE_X_Y, founders="all", span=None, numbers=7)
    assert (again.layout, again.breaks) == (space.layout, space.breaks)
    for founder in space.founders:
        build_operators(founder.recipe, BASE_X_Y)


@pytest.mark.parametrize(
    ("name", "numbers", "groups"),
    [
        ("task_arithmetic", 100, "module"),  # 85 of them
        ("task_arithmetic", 24, "layer"),  # 13 with the embedding
        ("task_arithmetic", 8, "block:4"),
        ("ties", 64, "block:32"),
        ("task_arithmetic", 64, "chunk:32"),  # too many for layers, too few for modules
    ],
)
def test_deep_models_are_searched_in_whole_layers(name, numbers, groups):
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
             "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
    names = ["model.embed_tokens.weight"]
    names += [f"model.layers.{i}.{kind}.weight" for i in range(12) for kind in kinds]
    models = model("base", "x", "y", names=names)
    _, resolved = build_space({"name": name}, models, founders="none", span=None, numbers=numbers)
    assert resolved["groups"] == groups


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
def test_founders_are_the_parents_and_the_merges_without_parameters(name):
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
        "founder: model stock",
        "founder: ties",
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
        if proposal.origin in ("founder: model stock", "founder: ties"):
            continue
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
    assert "founder: ties" not in found
    assert found.pop("founder: model stock").operator == "model_stock", "grams are not known yet"
    assert {recipe.operator for recipe in found.values()} == {"linear"}


def test_in_the_span_model_stock_is_linear_with_a_segment_per_tensor():
    sources = make_sources(3)
    models = memory_space(sources)
    grams = tensor_grams(models, sources)
    body = {"name": "linear", "normalize": False}
    space, _ = build_space(body, models, founders="all", span=None, in_span=True, grams=grams)
    recipe = next(p.recipe for p in space.founders if p.origin == "founder: model stock")
    assert recipe.breaks is not None
    assert len(recipe.params["weights"]) == len(models.merged)
    plain = Recipe("model_stock", models.sources, {})
    expected = dict(materialize(plain, models, sources, Derived(grams)))
    for name, merged in materialize(recipe, models, sources):
        assert torch.equal(merged, expected[name]), name
    span = LinearSpan.from_block_grams(models.sources, models.n_elements, 1, np.empty((0, 4, 4)))
    assert span.segments(recipe) is not None, "so that it can be bred from"


def test_model_stock_and_ties_are_those_of_the_models_a_transform_did_not_make():
    models = model("base", "x", "y", "tsv:x", "tsv:y")
    virtual = {"tsv": ("tsv:x", "tsv:y")}
    body = {"name": "task_arithmetic"}
    space, _ = build_space(body, models, founders="all", span=None, virtual=virtual)
    found = {p.origin: p.recipe for p in space.founders}
    assert found["founder: model stock"].sources == ("base", "x", "y")
    assert found["founder: ties"].sources == ("base", "x", "y")
    build_operators(found["founder: ties"], models)


def test_methods_that_compare_experts_need_two_and_a_base():
    for models in (model("base", "x"), model("a", "b", has_base=False)):
        origins = set(founders({"name": "linear"}, models))
        assert not origins & {"founder: model stock", "founder: ties"}


def test_ties_is_that_of_the_paper_in_the_spaces_own_groups_where_it_has_them():
    found = founders({"name": "ties", "groups": "layer"})["founder: ties"]
    assert found.grouping == "layer"
    np.testing.assert_array_equal(found.params["density"], [0.2] * 4)
    np.testing.assert_array_equal(found.params["weights"], np.ones((4, 2)))
    for body in ({"name": "ties", "density": 0.5}, {"name": "ties", "compat": "mergekit"}):
        other = founders({**body, "groups": "layer"})["founder: ties"]
        assert (other.grouping, other.settings["compat"]) == ("global", "paper")
        np.testing.assert_array_equal(other.params["density"], [0.2])
    stock = founders({"name": "model_stock", "multiplier": "search", "groups": "layer"})
    assert stock["founder: model stock"].grouping == "layer"
    assert "founder: initial values" not in stock, "they are Model Stock"


# ------------------------------------------------------------------------------- layer scale


SCALE = ("layer_scale.alpha", "layer_scale.beta")


def scaled_by(scale, name="ties", **keys):
    body = {"name": name, "layer_scale": scale}
    return build_space(body, BASE_X_Y, founders="all", span=None, **keys)


def test_a_layer_scale_is_searched_beside_the_methods_parameters():
    space, resolved = scaled_by({"alpha": "search", "beta": [0.5, 1.5]})
    assert [p.name for p in space.searched] == ["weights", *SCALE]
    alpha, beta = space.searched[1:]
    assert (alpha.low, alpha.high, alpha.initial) == (0.0, 1.0, 0.5)
    assert (beta.low, beta.high, beta.initial) == (0.5, 1.5, 1.0)
    assert space.dimension == 4
    recipe = space.decode(np.array([1.0, 1.0, 0.25, 0.0]))
    assert (recipe.params[SCALE[0]], recipe.params[SCALE[1]]) == ([0.25], [0.5])
    again, twice = build_space(resolved, BASE_X_Y, founders="all", span=None)
    assert twice == resolved
    assert again.searched == space.searched
    assert [scaled.scale for scaled in build_operators(recipe, BASE_X_Y)] == [
        LayerScale(alpha=0.25, beta=0.5)
    ]


def test_a_layer_scale_has_one_value_per_group():
    body = {"name": "ties", "groups": "layer", "layer_scale": {"alpha": "search", "beta": 0.5}}
    space = space_of(body)
    assert space.dimension == 4 * (2 + 1)
    np.testing.assert_array_equal(space.fixed["layer_scale.beta"], [0.5] * 4)


def test_a_tied_beta_follows_alpha():
    space, resolved = scaled_by({"alpha": 0.25, "beta": "tied"})
    assert resolved["layer_scale"] == {"alpha": 0.25, "beta": "tied"}
    recipe = space.decode(space.initial())
    assert "layer_scale.beta" not in recipe.params
    assert build_operators(recipe, BASE_X_Y)[0].scale == LayerScale(alpha=0.25, beta=0.75)
    assert build_space(resolved, BASE_X_Y, founders="none", span=None)[1] == resolved


def test_auto_alpha_is_measured_at_the_initial_values_without_a_scale():
    asked = []

    def measure(recipe):
        asked.append(recipe)
        return 0.375

    space, resolved = scaled_by({}, auto_alpha=measure)
    assert resolved["layer_scale"]["alpha"] == 0.375
    assert [p.name for p in space.searched] == ["weights", "layer_scale.beta"]
    np.testing.assert_array_equal(asked[0].params["weights"], [[0.5, 0.5]])
    assert set(asked[0].params) == {"weights", "density", "lambda_"}


def test_founders_of_a_scaled_search_are_not_scaled():
    found = founders({"name": "task_arithmetic", "layer_scale": {"alpha": 0.5, "beta": 0.5}})
    assert not [o for o in found if o != "founder: initial values" and SCALE[0] in found[o].params]
    ties = scaled_by({"alpha": "search", "beta": "search"})[0]
    own = next(p.recipe for p in ties.founders if p.origin == "founder: ties")
    assert (own.params[SCALE[0]], own.params[SCALE[1]]) == ([1.0], [0.0]), "the method itself"
    assert ties.encode(own) is not None


def test_a_space_without_a_scale_cannot_say_a_scaled_recipe():
    plain = space_of({"name": "ties"})
    scaled = scaled_by({"alpha": 0.5, "beta": 0.5})[0]
    assert plain.encode(scaled.decode(scaled.initial())) is None
    assert scaled.encode(plain.decode(plain.initial())) is None


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        ("search", "merge.layer_scale is 'search'; expected `alpha` and `beta`"),
        ({"aplha": 1}, "merge.layer_scale.aplha is unknown. Did you mean 'alpha'?"),
        ({"alpha": "tied"}, "merge.layer_scale.alpha is 'tied'"),
        ({"alpha": 1, "beta": "auto"}, "merge.layer_scale.beta is 'auto'"),
        ({"alpha": "tied"}, "'tied'; expected a number, a range, 'search' or 'auto'"),
        ({"alpha": [1, 0]}, r"merge.layer_scale.alpha: the range \[1, 0\] is empty"),
        ({"alpha": "auto"}, "'auto' is measured on the models; give a number"),
    ],
)
def test_a_wrong_layer_scale_names_the_key(scale, says):
    with pytest.raises(ConfigError, match=says):
        scaled_by(scale)


def test_a_layer_scale_needs_a_base():
    body = {"name": "linear", "layer_scale": {"alpha": 1}}
    with pytest.raises(ConfigError, match="scales task vectors; give a `base_model:`"):
        space_of(body, model("a", "b", has_base=False))
