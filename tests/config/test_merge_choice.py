"""`merge: {any_of: [...]}` and `groups: chunk:N`."""

import numpy as np
import pytest
import torch

from evomerge.config.merge_choice import method_text
from evomerge.core.choice_space import ChoiceSpace
from evomerge.core.recipe import SEGMENTS
from evomerge.errors import ConfigError
from evomerge.merging.derived import derive_for
from evomerge.merging.materialize import build_operators, materialize
from evomerge.merging.operator import merge_operators
from tests.merging.memory_source import make_sources
from tests.merging.memory_source import space_of as memory_space

from .test_merge_space import BASE_X_Y, build_space, model, space_of

BODY = {
    "groups": "layer",
    "any_of": [
        {"name": "ties", "density": "search"},
        {"name": "task_arithmetic", "groups": "global"},
        {"name": "slerp", "t": [0.2, 0.8]},
        {"name": "ties", "groups": "global", "weights": {"values": [0.3, 0.7]}},
    ],
}


def test_each_method_has_its_own_parameters_and_the_groups_it_does_not_give():
    space, resolved = build_space(BODY, BASE_X_Y, founders="none", span=None)
    assert isinstance(space, ChoiceSpace)
    assert space.labels == ("ties", "task_arithmetic", "slerp", "ties_2")
    assert space.methods == ("ties", "task_arithmetic", "slerp")
    assert [branch.n_groups for branch in space.branches] == [4, 1, 4, 1]
    assert [branch.dimension for branch in space.branches] == [12, 2, 4, 0]
    assert space.dimension == 4 + 18
    assert [item["groups"] for item in resolved["any_of"]] == ["layer", "global", "layer", "global"]
    again, twice = build_space(resolved, BASE_X_Y, founders="none", span=None)
    assert twice == resolved
    assert again.dimension == space.dimension
    assert method_text(BODY) == method_text(resolved) == "ties or task_arithmetic or slerp"
    assert method_text({"name": "ties"}) == "ties"


def test_every_choice_is_a_recipe_that_merges():
    space = space_of(BODY, founders="none")
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(30):
        recipe = space.decode(rng.random(space.dimension))
        seen.add(recipe.operator)
        assert build_operators(recipe, BASE_X_Y)
    assert seen == set(space.methods)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"any_of": ["ties"]}, r"merge.any_of is \['ties'\]; expected a list of two"),
        ({"any_of": {"name": "ties"}}, "expected a list of two"),
        ({"name": "ties", "any_of": ["ties", "slerp"]}, "give `name` or `any_of`, not both"),
        ({"any_of": ["ties", 3]}, "merge.any_of.1 is 3; expected the name"),
        ({"any_of": ["ties", {"any_of": ["slerp", "ties"]}]}, "merge.any_of.1 is"),
        ({"any_of": ["ties", {"t": 0.5}]}, "merge.any_of.1: needs a `name:`"),
        ({"any_of": ["ties", "slrp"]}, r"merge.any_of.1.name: 'slrp'.*Did you mean 'slerp'"),
        (
            {"any_of": ["ties", {"name": "slerp", "density": 0.5}]},
            "merge.any_of.1.density is not a parameter of 'slerp'",
        ),
        ({"any_of": ["ties", "slerp"], "density": 0.5}, "merge.any_of.1.density is not a param"),
        ({"any_of": ["linear", "ties"], "groups": "layers"}, "merge.any_of.0.groups: 'layers'"),
        ({"any_of": ["linear", "ties"], "groups": "chunk:2"}, "merge.any_of.1.groups: 'chunk:2'"),
    ],
)
def test_a_wrong_entry_is_named(body, message):
    with pytest.raises(ConfigError, match=message):
        space_of(body)


# -------------------------------------------------------------------------------- founders


def test_founders_speak_the_first_method_that_can():
    body = {"any_of": ["ties", {"name": "task_arithmetic", "groups": "layer"}, "linear"]}
    space = space_of(body)
    by_origin = {founder.origin: founder.recipe for founder in space.founders}
    assert len(by_origin) == len(space.founders) == len({r.digest() for r in by_origin.values()})
    assert by_origin["founder: base"].operator == "task_arithmetic"
    assert by_origin["founder: x"].operator == "task_arithmetic"
    assert by_origin["founder: ties"].operator == "ties"
    assert space.encode(by_origin["founder: ties"]) is not None
    assert by_origin["founder: model stock"].operator == "model_stock"
    plain = space_of({"name": "task_arithmetic"})
    assert len(space.founders) == len(plain.founders) + 2
    assert by_origin["founder: initial values of ties"].operator == "ties"
    # The mean of the sources is what nothing else says.
    assert by_origin["founder: initial values of linear"].operator == "linear"


def test_a_method_without_anything_to_search_is_tried_once():
    origins = [founder.origin for founder in space_of({"any_of": ["ties", "slerp"]}).founders]
    assert origins.count("founder: initial values of slerp") == 1
    plain = [founder.origin for founder in space_of({"name": "slerp"}).founders]
    assert "founder: initial values" not in plain


def test_founders_can_be_left_out_or_be_the_parents():
    body = {"any_of": ["ties", "task_arithmetic"]}
    assert space_of(body, founders="none").founders == ()
    origins = [founder.origin for founder in space_of(body, founders="parents").founders]
    assert origins == ["founder: base", "founder: x", "founder: y"]


# ---------------------------------------------------------------------------------- chunks


def test_chunks_cut_all_elements_into_equal_parts():
    space = space_of({"name": "task_arithmetic", "groups": "chunk:5"})
    assert space.breaks == (0, 3, 6, 9, 12, 16)
    assert space.dimension == 5 * 2
    vector = np.linspace(0.0, 1.0, 10)
    recipe = space.decode(vector)
    assert recipe.grouping == SEGMENTS
    np.testing.assert_array_equal(recipe.breaks, space.breaks)
    np.testing.assert_allclose(space.encode(recipe), vector)
    assert len(build_operators(recipe, BASE_X_Y)) == 5


def test_a_chunked_merge_is_the_formula_element_by_element():
    sources = make_sources(2)
    aligned = memory_space(sources)
    space = space_of({"name": "task_arithmetic", "groups": "chunk:4"}, aligned)
    recipe = space.decode(np.random.default_rng(0).random(space.dimension))
    derived = derive_for(merge_operators.get("task_arithmetic"), aligned, sources)
    merged = dict(materialize(recipe, aligned, sources, derived))
    rows = np.repeat(recipe.params["weights"], np.diff(space.breaks), axis=0)
    for tensor in aligned.merged:
        name, stop = tensor.spec.name, tensor.offset + tensor.spec.n_elements
        own = torch.from_numpy(rows[tensor.offset : stop])
        read = [sources[id].read(name).double().reshape(-1) for id in aligned.sources]
        wanted = read[0] + own[:, 0] * (read[1] - read[0]) + own[:, 1] * (read[2] - read[0])
        torch.testing.assert_close(merged[name].double().reshape(-1), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", merge_operators.names())
def test_methods_that_need_whole_tensors_are_refused_by_name(name):
    operator = merge_operators.get(name)
    models = model("base", "x") if operator.n_models == 1 else BASE_X_Y
    body = {"name": name, "groups": "chunk:2"}
    if operator.sliceable:
        assert space_of(body, models, founders="none").breaks == (0, 8, 16)
        return
    with pytest.raises(ConfigError, match=f"merge.groups: 'chunk:2' cuts.*{name!r}.*, linear,"):
        space_of(body, models)


def test_founders_of_a_chunked_space_are_its_own_where_they_can_be():
    space = space_of({"name": "task_arithmetic", "groups": "chunk:3", "weights": [-0.5, 1.5]})
    own = [founder for founder in space.founders if founder.recipe.grouping == SEGMENTS]
    assert {"founder: x", "founder: mean of the models"} <= {founder.origin for founder in own}
    assert all(space.encode(founder.recipe) is not None for founder in own)


@pytest.mark.parametrize("groups", ["chunk:0", "chunk", "chunk:N", "chunk:-2", "chunk:1.5"])
def test_other_spellings_are_no_grouping(groups):
    with pytest.raises(ConfigError, match=r"merge.groups: .* is not a grouping.*chunk:N"):
        space_of({"name": "linear", "groups": groups})


def test_more_chunks_than_elements_are_refused():
    with pytest.raises(ConfigError, match="more chunks than there are elements, 16"):
        space_of({"name": "linear", "groups": "chunk:17"})
    assert space_of({"name": "linear", "groups": "chunk:16"}).n_groups == 16


def test_a_curve_needs_layers_not_chunks():
    with pytest.raises(ConfigError, match=r"set merge\.groups to 'layer'"):
        space_of({"name": "linear", "groups": "chunk:4", "weights": {"curve": 2}})
