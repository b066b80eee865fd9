"""Vectors in [0, 1]^D <-> recipes."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SWITCH, SearchedParam, SearchSpace
from evomerge.core.space_json import space_from_json, space_to_json

WEIGHTS = SearchedParam("weights", 2, True, -1.0, 1.5, 0.5)
DENSITY = SearchedParam("density", 1, False, 0.25, 0.75, 0.5)
SPACE = SearchSpace(
    "ties",
    ("base", "x", "y"),
    "layer",
    3,
    (WEIGHTS, DENSITY),
    {"lambda_": np.full(3, 1.0)},
    {"sign": "weighted"},
)
VECTORS = hnp.arrays(float, SPACE.dimension, elements=st.floats(0.0, 1.0))


def test_dimension_counts_every_group_and_model():
    assert SPACE.dimension == 3 * 2 + 3 * 1
    assert dataclasses.replace(SPACE, searched=()).dimension == 0


def test_decode_gives_rows_per_group_in_declaration_order():
    recipe = SPACE.decode(np.array([0, 1, 0, 1, 0, 1, 0, 0.5, 1], dtype=float))
    assert recipe.operator == "ties"
    assert recipe.sources == SPACE.sources
    assert recipe.grouping == "layer"
    assert recipe.settings == {"sign": "weighted"}
    np.testing.assert_array_equal(recipe.params["weights"], [[-1.0, 1.5]] * 3)
    np.testing.assert_array_equal(recipe.params["density"], [0.25, 0.5, 0.75])
    np.testing.assert_array_equal(recipe.params["lambda_"], [1.0, 1.0, 1.0])


@given(VECTORS)
def test_encode_inverts_decode(vector):
    np.testing.assert_allclose(SPACE.encode(SPACE.decode(vector)), vector, atol=1e-12)


@given(VECTORS)
def test_decode_after_encode_keeps_the_recipe(vector):
    recipe = SPACE.decode(vector)
    again = SPACE.decode(SPACE.encode(recipe))
    for name, value in recipe.params.items():
        np.testing.assert_allclose(again.params[name], value, atol=1e-12)


@given(hnp.arrays(float, SPACE.dimension, elements=st.floats(-9, 9)))
def test_values_never_leave_their_range(vector):
    recipe = SPACE.decode(vector)
    for item in SPACE.searched:
        assert recipe.params[item.name].min() >= item.low
        assert recipe.params[item.name].max() <= item.high
    assert SPACE.decode(np.clip(vector, 0, 1)).digest() == recipe.digest()


def test_initial_decodes_to_the_initial_values():
    recipe = SPACE.decode(SPACE.initial())
    np.testing.assert_allclose(recipe.params["weights"], 0.5)
    np.testing.assert_allclose(recipe.params["density"], 0.5)
    assert dataclasses.replace(SPACE, searched=()).initial().shape == (0,)


@pytest.mark.parametrize("shape", [(8,), (10,), (1, 9), ()])
def test_a_vector_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected a vector of shape \(9,\)"):
        SPACE.decode(np.zeros(shape))


def test_recipes_the_space_cannot_say_have_no_vector():
    recipe = SPACE.decode(SPACE.initial())
    params = dict(recipe.params)
    others = [
        {"operator": "dare_ties"},
        {"sources": ("base", "y", "x")},
        {"grouping": "kind"},
        {"settings": {"sign": "unweighted"}},
        {"params": params | {"lambda_": np.full(3, 0.9)}},
        {"params": params | {"weights": np.full((3, 2), 1.6)}},
        {"params": params | {"density": np.full(3, 0.2)}},
        {"params": {key: value[:2] for key, value in params.items()}},
        {"params": {key: value for key, value in params.items() if key != "density"}},
        {"params": {key: value for key, value in params.items() if key != "lambda_"}},
    ]
    for change in others:
        assert SPACE.encode(dataclasses.replace(recipe, **change)) is None, change


def test_a_value_on_the_bound_is_encoded_despite_rounding():
    space = SearchSpace("o", ("a",), "global", 1, (SearchedParam("t", 1, False, 0.1, 0.7, 0.3),))
    recipe = Recipe("o", ("a",), {"t": np.array([0.1 + 0.6])})
    np.testing.assert_allclose(space.encode(recipe), [1.0])
    assert space.encode(Recipe("o", ("a",), {"t": np.array([0.1])}))[0] == 0.0


# ---------------------------------------------------------------------------------- curves

LINE = dataclasses.replace(WEIGHTS, curve=((1.0, 0.0), (0.5, 0.5), (0.0, 1.0)))
CURVED = dataclasses.replace(SPACE, searched=(LINE, DENSITY))


@given(hnp.arrays(float, 2 * 2 + 3, elements=st.floats(0.0, 1.0)))
def test_a_curve_encodes_what_it_decodes(vector):
    assert CURVED.dimension == len(vector)
    recipe = CURVED.decode(vector)
    np.testing.assert_allclose(CURVED.encode(recipe), vector, atol=1e-9)
    weights = recipe.params["weights"]
    np.testing.assert_allclose(weights[1], (weights[0] + weights[2]) / 2, atol=1e-12)
    assert (weights >= LINE.low).all()
    assert (weights <= LINE.high).all()
    plain = SPACE.encode(recipe)
    assert plain is not None, "a curve's recipes are plain recipes"


def test_what_does_not_follow_the_curve_is_not_encoded():
    recipe = CURVED.decode(CURVED.initial())
    bent = np.array(recipe.params["weights"])
    bent[1] += 0.1
    assert (
        CURVED.encode(dataclasses.replace(recipe, params={**recipe.params, "weights": bent}))
        is None
    )


def test_a_curve_survives_json():
    again = space_from_json(json.loads(json.dumps(space_to_json(CURVED))))
    assert again.searched == CURVED.searched
    assert again.decode(CURVED.initial()).digest() == CURVED.decode(CURVED.initial()).digest()


# -------------------------------------------------------------------------------- switches

SWITCHED = dataclasses.replace(
    SPACE, searched=(WEIGHTS, DENSITY, SearchedParam(SWITCH, 1, False, 0.0, 1.0, 0.75))
)
SWITCHED_VECTORS = hnp.arrays(float, 3 * 2 + 3 + 3, elements=st.floats(0.0, 1.0))


@given(SWITCHED_VECTORS)
def test_a_group_switched_off_has_weight_zero_and_no_other_say(vector):
    recipe = SWITCHED.decode(vector)
    assert SWITCH not in recipe.params
    on = vector[-3:] >= 0.5
    plain = SPACE.decode(vector[:-3])
    for name, idle in (("weights", 0.0), ("density", DENSITY.initial)):
        np.testing.assert_array_equal(recipe.params[name][on], plain.params[name][on])
        assert (recipe.params[name][~on] == idle).all()
    noise = vector.copy()
    noise[:6].reshape(3, 2)[~on] = 0.123
    noise[6:9][~on] = 0.321
    assert SWITCHED.decode(noise).digest() == recipe.digest(), "idle genes do not count"


@given(SWITCHED_VECTORS)
def test_a_switched_recipe_survives_encoding(vector):
    recipe = SWITCHED.decode(vector)
    again = SWITCHED.decode(SWITCHED.encode(recipe))
    for name in recipe.params:
        np.testing.assert_allclose(again.params[name], recipe.params[name], atol=1e-12)


def test_zero_weights_outside_the_range_are_a_switch():
    narrow = dataclasses.replace(WEIGHTS, low=0.5, high=1.0)
    space = dataclasses.replace(SWITCHED, searched=(narrow, *SWITCHED.searched[1:]))
    vector = space.initial()
    vector[-2] = 0.1
    recipe = space.decode(vector)
    assert recipe.params["weights"].tolist() == [[0.5, 0.5], [0.0, 0.0], [0.5, 0.5]]
    assert space.encode(recipe)[-3:].tolist() == [0.75, 0.25, 0.75]
    assert dataclasses.replace(space, searched=(narrow, DENSITY)).encode(recipe) is None
