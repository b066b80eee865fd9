"""Sequences of layers as recipes, and as vectors in [0, 1]^D."""

import dataclasses
import json
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.core.corners import corners
from evomerge.core.layer_plan import LayerPlan, LayerSlot
from evomerge.core.layer_sequence import plan_of, recipe_of
from evomerge.core.layer_sequence_space import SequenceRules, layer_sequence_space
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError

SOURCES = ("a", "b")
DEPTHS = {"a": 3, "b": 2}
RULES = {
    "plain": SequenceRules(),
    "repeated": SequenceRules(repeats=3, start="b"),
    "layer": SequenceRules(repeats=2, scaling="layer"),
    "low_rank": SequenceRules(repeats=2, scaling="low_rank", rank=2),
    "jumps": SequenceRules(repeats=2, scaling="layer", scale_at="jumps", max_scale=2.0),
    "ends": SequenceRules(repeats=2, keep_first=1, keep_last=1, scaling="layer"),
    "short": SequenceRules(repeats=2, max_layers=3),
}
SPACES = {name: layer_sequence_space(SOURCES, DEPTHS, rules) for name, rules in RULES.items()}


def plan(*steps, start="a"):
    return LayerPlan(tuple(LayerSlot(*step) for step in steps), start, start)


def steps_of(recipe):
    return [(slot.source, slot.layer) for slot in plan_of(recipe).layers]


def vectors(space):
    return hnp.arrays(float, space.dimension, elements=st.floats(0.0, 1.0))


def on(space, *slots):
    vector = space.initial()
    vector[: len(space.slots)] = 0.0
    vector[list(slots)] = 1.0
    return vector


# ------------------------------------------------------------------------------------- recipes


def test_a_plan_survives_the_recipe_and_its_json():
    wanted = plan(("a", 0), ("b", 1, 0.5), ("b", 1, 2.0), ("a", 2))
    recipe = recipe_of(wanted, SOURCES)
    again = Recipe.from_json(json.loads(json.dumps(recipe.to_json())))
    assert again.digest() == recipe.digest()
    assert plan_of(again, DEPTHS) == wanted


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"source": [0.0, 2.0]}, "params.source has 2, there are 2 sources"),
        ({"source": [0.0, 0.5]}, "params.source must be whole numbers"),
        ({"layer": [0.0, -1.0]}, "params.layer must be whole numbers"),
        ({"layer": [0.0, 3.0]}, "layer 1 is layer 3 of 'a', which has 3 layers"),
        ({"more": [0.0, 0.0]}, "is no layer sequence"),
    ],
)
def test_a_recipe_that_is_no_sequence_is_refused(change, says):
    recipe = recipe_of(plan(("a", 0), ("a", 1)), SOURCES)
    broken = dataclasses.replace(recipe, params=dict(recipe.params) | change)
    with pytest.raises(ConfigError, match=says):
        plan_of(broken, DEPTHS)


def test_a_plan_of_other_models_is_no_recipe_of_these():
    with pytest.raises(ConfigError, match="'c' is not a source"):
        recipe_of(plan(("c", 0)), SOURCES)
    with pytest.raises(ConfigError, match="of one model"):
        recipe_of(LayerPlan((LayerSlot("a", 0),), "a", "b"), SOURCES)


# --------------------------------------------------------------------------------------- space


def test_all_layers_stand_in_series_once_per_repetition():
    space = SPACES["repeated"]
    series = (("b", 0), ("b", 1), ("a", 0), ("a", 1), ("a", 2))
    assert space.slots == series * 3
    assert space.dimension == 15
    assert SPACES["layer"].dimension == 10 + 5
    assert SPACES["low_rank"].dimension == 10 + 2 * 5 * 2
    assert SPACES["ends"].slots == (("a", 1), ("b", 0), ("b", 1)) * 2


@pytest.mark.parametrize("name", SPACES)
def test_a_search_starts_from_the_start_model_itself(name):
    space = SPACES[name]
    whole = LayerPlan.whole(space.start, DEPTHS[space.start])
    assert plan_of(space.decode(space.initial())) == whole


def test_the_path_goes_through_the_slots_that_are_on_in_their_order():
    space = SPACES["repeated"]
    assert steps_of(space.decode(on(space, 1, 2, 6, 14))) == [
        ("b", 1), ("a", 0), ("b", 1), ("a", 2),
    ]  # fmt: skip


def test_an_empty_path_keeps_its_strongest_slot():
    vector = np.full(SPACES["plain"].dimension, 0.1)
    vector[3] = 0.4
    assert steps_of(SPACES["plain"].decode(vector)) == [("b", 0)]


def test_a_long_path_keeps_its_strongest_slots_in_order():
    space = SPACES["short"]
    vector = np.linspace(0.6, 0.9, space.dimension)
    vector[1] = 1.0
    assert steps_of(space.decode(vector)) == [("a", 1), ("b", 0), ("b", 1)]


def test_kept_layers_stand_at_both_ends():
    space = SPACES["ends"]
    assert steps_of(space.decode(on(space))) == [("a", 0), ("a", 2)]
    assert steps_of(space.decode(on(space, 2, 3))) == [("a", 0), ("b", 1), ("a", 1), ("a", 2)]


def test_a_scale_is_one_over_the_product_of_w():
    space = SPACES["layer"]
    vector = on(space, 0, 3, 4, 5)  # a0 b0 b1 a0
    place = {layer: 10 + i for i, layer in enumerate(space.layers)}
    vector[place["b", 0]], vector[place["a", 0]] = 1.0, 0.25  # W: 1.25, 1 / sqrt(1.25)
    scales = [slot.scale for slot in plan_of(space.decode(vector)).layers]
    np.testing.assert_allclose(scales, [1.0, 1 / 1.25, 1 / 1.25, 1.25**-0.5])


def test_only_jumps_are_scaled_where_asked_for():
    space = SPACES["jumps"]
    vector = np.ones(space.dimension)  # every slot is on, every W is 2
    scales = [slot.scale for slot in plan_of(space.decode(vector)).layers]
    np.testing.assert_allclose(scales, [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.25, 0.125, 0.125])


def test_w_is_the_exponential_of_a_low_rank_matrix():
    space = SPACES["low_rank"]
    rng = np.random.default_rng(0)
    vector = rng.random(space.dimension)
    vector[:10] = 1.0
    u, v = (2 * vector[10:] - 1).reshape(2, 5, 2)
    steps = [space.layers.index(layer) for layer in space.slots]
    logs = [float(u[i] @ v[j]) for i, j in pairwise(steps)]
    wanted = np.exp(-np.cumsum([0.0, *(math.log(1.25) * np.clip(logs, -1, 1))]))
    scales = [slot.scale for slot in plan_of(space.decode(vector)).layers]
    np.testing.assert_allclose(scales, wanted)


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_every_vector_is_a_recipe_that_comes_back_by_its_vector(name, data):
    space = SPACES[name]
    recipe = space.decode(data.draw(vectors(space)))
    found = plan_of(recipe, DEPTHS)
    limit = space.rules.max_layers
    assert limit is None or len(found.layers) <= limit
    vector = space.encode(recipe)
    if vector is None:
        assert name == "low_rank"
        return
    again = space.decode(vector)
    assert steps_of(again) == steps_of(recipe)
    np.testing.assert_allclose(again.params["scale"], recipe.params["scale"], rtol=1e-9)


@pytest.mark.parametrize("name", SPACES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_canonical_points_are_the_same_recipes(name, data):
    space = SPACES[name]
    point = data.draw(vectors(space))
    (fixed,) = space.canonical(point[None])
    assert space.decode(fixed).digest() == space.decode(point).digest()
    np.testing.assert_array_equal(space.canonical(fixed[None])[0], fixed)


def test_what_the_space_cannot_say_has_no_vector():
    space = SPACES["plain"]
    assert space.encode(recipe_of(plan(("a", 1), ("a", 0)), SOURCES)) is None
    assert space.encode(recipe_of(plan(("a", 0), ("a", 1, 0.5)), SOURCES)) is None
    assert space.encode(recipe_of(plan(("b", 0), start="b"), SOURCES)) is None
    assert SPACES["short"].encode(recipe_of(plan(*[("a", 0)] * 4), SOURCES)) is None
    assert SPACES["ends"].encode(recipe_of(plan(("b", 0)), SOURCES)) is None
    two = recipe_of(plan(("a", 0), ("b", 0, 0.9), ("b", 0, 0.9)), SOURCES)
    assert SPACES["layer"].encode(two) is None, "two W of one layer"
    assert space.encode(Recipe("linear", SOURCES, {"weights": np.ones((1, 2))})) is None


def test_corners_are_the_models_between_the_ends_of_the_first():
    space = SPACES["plain"]
    found = [steps_of(space.decode(corner)) for corner in space.corners()]
    assert found == [[("a", 0), ("a", 1), ("a", 2)], [("b", 0), ("b", 1)]]
    np.testing.assert_array_equal(corners(space), space.corners())
    alone = layer_sequence_space(("b",), DEPTHS, SequenceRules(repeats=2))
    found = [steps_of(alone.decode(corner)) for corner in alone.corners()]
    assert found == [[("b", 0), ("b", 1)], [("b", 0), ("b", 1)] * 2]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"repeats": 0}, "repeats is 0, must be at least 1"),
        ({"max_scale": 1.0}, "max_scale is 1, must be above 1"),
        ({"keep_first": 1, "max_layers": 1}, "must be more than the 1 layers"),
        ({"start": "c"}, "'c' is not a model whose layers are searched"),
        ({"keep_first": 4}, "keep 4 layers of 'a', which has 3"),
        ({"repeats": 1000}, "a path could have 5000 layers"),
    ],
)
def test_rules_that_cannot_work_are_refused(keys, says):
    with pytest.raises(ConfigError, match=says):
        layer_sequence_space(SOURCES, DEPTHS, SequenceRules(**keys))


def test_one_model_alone_can_be_made_deeper_but_not_kept_whole():
    space = layer_sequence_space(("a",), DEPTHS, SequenceRules(repeats=2))
    assert steps_of(space.decode(np.ones(6))) == [("a", 0), ("a", 1), ("a", 2)] * 2
    with pytest.raises(ConfigError, match="none is left to search"):
        layer_sequence_space(("a",), DEPTHS, SequenceRules(keep_last=3))
