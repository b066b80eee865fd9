"""Recipes: exact JSON, digests that are equal exactly when the recipes are."""

import dataclasses
import json
import math
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.core.recipe import Recipe, canonical_json
from evomerge.errors import ConfigError

FINITE = st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.text(string.ascii_lowercase + "_", min_size=1, max_size=6)
SETTINGS = st.dictionaries(
    NAMES, st.one_of(st.booleans(), st.integers(), FINITE, NAMES, st.none()), max_size=3
)


@st.composite
def recipes(draw) -> Recipe:
    rows = draw(st.integers(1, 4))
    params = {}
    for name in draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)):
        width = draw(st.integers(0, 3))
        shape = (rows, width) if width else (rows,)
        values = draw(st.lists(FINITE, min_size=math.prod(shape), max_size=math.prod(shape)))
        params[name] = np.array(values).reshape(shape)
    sources = tuple(draw(st.lists(NAMES, min_size=1, max_size=3, unique=True)))
    breaks, grouping = None, draw(st.sampled_from(["global", "layer", "kind"]))
    if draw(st.booleans()):
        steps = draw(st.lists(st.integers(1, 10**12), min_size=rows, max_size=rows))
        breaks, grouping = np.cumsum([0, *steps]), "segments"
    return Recipe(draw(NAMES), sources, params, grouping, breaks, draw(SETTINGS))


def parts(recipe: Recipe) -> tuple:
    """What makes a recipe this recipe; -0.0 and 0.0 compute the same model."""
    params = {k: (v.shape, (v + 0.0).tobytes()) for k, v in recipe.params.items()}
    breaks = None if recipe.breaks is None else recipe.breaks.tobytes()
    return recipe.operator, recipe.sources, params, recipe.grouping, breaks, repr(recipe.settings)


@given(recipes())
def test_json_round_trip_is_exact(recipe):
    text = json.dumps(recipe.to_json(), allow_nan=False)
    again = Recipe.from_json(json.loads(text))
    assert again.digest() == recipe.digest()
    assert parts(again) == parts(recipe)
    assert json.dumps(again.to_json()) == text
    for name, value in recipe.params.items():
        assert again.params[name].tobytes() == value.tobytes()


@given(recipes(), recipes())
def test_digests_are_equal_if_and_only_if_the_recipes_are(one, other):
    assert (one.digest() == other.digest()) == (parts(one) == parts(other))


@given(recipes(), st.data())
def test_any_change_changes_the_digest(recipe, data):
    name = data.draw(st.sampled_from(sorted(recipe.params)))
    value = recipe.params[name].copy()
    index = data.draw(st.integers(0, value.size - 1))
    value.flat[index] = np.nextafter(value.flat[index], 0.0 if value.flat[index] else 1.0)
    changes = [
        {"params": dict(recipe.params) | {name: value}},
        {"operator": recipe.operator + "x"},
        {"sources": (*recipe.sources, "X")},
        {"settings": dict(recipe.settings) | {"X": 1}},
    ]
    for change in changes:
        assert dataclasses.replace(recipe, **change).digest() != recipe.digest()


def weights(*rows, **keys) -> Recipe:
    return Recipe("linear", ("a", "b"), {"weights": np.array(rows, dtype=float)}, **keys)


def test_digest_does_not_depend_on_the_order_of_names():
    params = {"b": np.ones(1), "a": np.zeros(1)}
    one = Recipe("o", ("s",), params, settings={"y": 1, "x": 2})
    other = Recipe("o", ("s",), dict(reversed(params.items())), settings={"x": 2, "y": 1})
    assert one.digest() == other.digest()
    assert canonical_json(one.to_json()) == canonical_json(other.to_json())


def test_digest_is_the_same_in_every_release():
    assert weights([0.25, 0.75]).digest() == "364255c7958c9461"


def test_negative_zero_is_zero():
    assert weights([0.0, 1.0]).digest() == weights([-0.0, 1.0]).digest()


def test_true_is_not_one_in_settings():
    assert (
        weights([1, 0], settings={"x": 1}).digest()
        != weights([1, 0], settings={"x": True}).digest()
    )


def test_shape_counts_and_not_only_the_values():
    flat = Recipe("o", ("a",), {"w": np.zeros(2)})
    assert flat.digest() != Recipe("o", ("a",), {"w": np.zeros((2, 1))}).digest()


def test_arrays_are_frozen():
    recipe = weights([1, 0])
    with pytest.raises(ValueError, match="read-only"):
        recipe.params["weights"][0, 0] = 5.0


def test_the_callers_array_stays_its_own():
    mine = np.ones((1, 2))
    recipe = Recipe("linear", ("a", "b"), {"weights": mine})
    before = recipe.digest()
    mine[0, 0] = 7.0
    assert recipe.params["weights"][0, 0] == 1.0
    assert Recipe.from_json(recipe.to_json()).digest() == before


def test_no_parameters_means_one_group():
    assert Recipe("o", ("a",), {}).n_groups == 1
    assert weights([1, 0], [0, 1], grouping="layer").n_groups == 2


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"params": {"w": np.zeros((1, 1, 1))}}, r"must be \(G,\) or \(G, n\), is \(1, 1, 1\)"),
        ({"params": {"w": np.zeros(0)}}, "params.w must be"),
        ({"params": {"w": np.array([math.nan])}}, "params.w holds a value that is not finite"),
        ({"params": {"w": np.array([math.inf])}}, "not finite"),
        ({"params": {"w": np.zeros(2), "v": np.zeros(3)}}, r"disagree .* \[2, 3\]"),
        ({"grouping": "segments"}, "`breaks` is needed"),
        ({"breaks": [0, 5]}, "`breaks` is needed"),
        ({"grouping": "segments", "breaks": [0, 5, 5]}, "rise strictly from 0"),
        ({"grouping": "segments", "breaks": [1, 5]}, "rise strictly from 0"),
        ({"grouping": "segments", "breaks": [0]}, "rise strictly from 0"),
        ({"grouping": "segments", "breaks": [0, 3, 5]}, "2 segments but 1 rows"),
    ],
)  # fmt: skip
def test_an_inconsistent_recipe_is_refused(keys, says):
    whole = {"operator": "o", "sources": ("a",), "params": {"w": np.zeros(1)}}
    with pytest.raises(ConfigError, match=says):
        Recipe(**(whole | keys))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "mine.json: format is 2, expected 1"),
        ({"format": None}, "format is None"),
        ({"colour": "red"}, "mine.json: unknown key 'colour'"),
        ({"operator": 5}, "must be strings"),
        ({"grouping": None}, "must be strings"),
        ({"sources": []}, "non-empty list"),
        ({"sources": [1]}, "non-empty list"),
        ({"sources": None}, "mine.json: "),
        ({"params": [1]}, "mine.json: "),
        ({"params": {"w": [[1], [1, 2]]}}, "mine.json: "),
        ({"params": {"w": "x"}}, "mine.json: "),
        ({"params": {"w": [math.nan]}}, "mine.json: recipe: params.w holds"),
        ({"breaks": [10**30], "grouping": "segments"}, "mine.json: "),
        ({"breaks": [0, 2.5], "grouping": "segments"}, "breaks must be integers"),
        ({"breaks": 5, "grouping": "segments"}, "mine.json: "),
        ({"settings": 5}, "mine.json: "),
        ({"settings": {"a": math.nan}}, "mine.json: recipe: settings.a must be a text, a finite"),
        ({"settings": {"a": [1]}}, "settings.a must be"),
    ],
)
def test_a_broken_mapping_is_refused_by_name(change, says):
    body = Recipe("o", ("a",), {"w": np.zeros(1)}).to_json() | change
    with pytest.raises(ConfigError, match=says):
        Recipe.from_json(body, where="mine.json")


def test_the_place_is_said_once():
    body = Recipe("o", ("a",), {"w": np.zeros(1)}).to_json() | {"params": {"w": [math.nan]}}
    with pytest.raises(ConfigError, match=r"^mine.json: recipe: params.w holds"):
        Recipe.from_json(body, where="mine.json: recipe")


@pytest.mark.parametrize("key", ["operator", "sources", "grouping", "params"])
def test_a_missing_key_is_named(key):
    body = Recipe("o", ("a",), {"w": np.zeros(1)}).to_json()
    del body[key]
    with pytest.raises(ConfigError, match=f"key '{key}' is missing"):
        Recipe.from_json(body)


def test_a_list_is_not_a_recipe():
    with pytest.raises(ConfigError, match="expected a mapping, got list"):
        Recipe.from_json([1, 2])


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": math.nan})
