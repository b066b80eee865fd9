"""Vectors in [0, 1]^D <-> recipes of several merge methods."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from evomerge.core.choice_space import METHOD, ChoiceSpace
from evomerge.core.corners import corners, origin, param_slices
from evomerge.core.gaussian_process import Columns
from evomerge.core.sample_design import single_parents, with_weights
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.core.space_json import space_from_json, space_to_json

SOURCES = ("base", "x", "y")
WEIGHTS = SearchedParam("weights", 2, True, -1.0, 1.5, 0.5)
DENSITY = SearchedParam("density", 1, False, 0.25, 0.75, 0.5)
TIES = SearchSpace("ties", SOURCES, "layer", 3, (WEIGHTS, DENSITY), {"lambda_": np.ones(3)})
SLERP = SearchSpace("slerp", SOURCES, "global", 1, (SearchedParam("t", 1, False, 0, 1, 0.5),))
CHUNKS = SearchSpace(
    "task_arithmetic", SOURCES, "segments", 2, (WEIGHTS,), {"lambda_": np.ones(2)}, breaks=(0, 7, 9)
)
STOCK = SearchSpace("model_stock", SOURCES, "global", 1, (), {"multiplier": np.ones(1)})
BRANCHES = (TIES, SLERP, CHUNKS, STOCK)
SPACE = ChoiceSpace(BRANCHES, tuple(branch.operator for branch in BRANCHES))
VECTORS = hnp.arrays(float, SPACE.dimension, elements=st.floats(0.0, 1.0))


def test_every_branch_has_numbers_of_its_own():
    assert SPACE.dimension == 4 + 9 + 1 + 4 + 0
    assert SPACE.slices == (slice(4, 13), slice(13, 14), slice(14, 18), slice(18, 18))
    assert param_slices(SPACE) == {
        METHOD: slice(0, 4),
        "ties.weights": slice(4, 10),
        "ties.density": slice(10, 13),
        "slerp.t": slice(13, 14),
        "task_arithmetic.weights": slice(14, 18),
    }
    assert [item.rows for item in SPACE.layout] == [1, 3, 3, 1, 2]


@given(VECTORS)
def test_the_largest_number_chooses_and_the_rest_does_not_count(vector):
    chosen = int(vector[:4].argmax())
    recipe = SPACE.decode(vector)
    assert recipe.operator == BRANCHES[chosen].operator
    assert recipe.digest() == BRANCHES[chosen].decode(vector[SPACE.slices[chosen]]).digest()
    other = np.full(SPACE.dimension, 0.123)
    other[:4], own = vector[:4], SPACE.slices[chosen]
    other[own] = vector[own]
    assert SPACE.decode(other).digest() == recipe.digest()
    canonical = SPACE.canonical(np.stack([vector, other]))
    np.testing.assert_array_equal(canonical[0], canonical[1])
    assert SPACE.decode(canonical[0]).digest() == recipe.digest()


@given(VECTORS)
def test_a_recipe_finds_its_branch(vector):
    recipe = SPACE.decode(vector)
    encoded = SPACE.encode(recipe)
    assert encoded.shape == (SPACE.dimension,)
    assert SPACE.chosen(encoded) == SPACE.chosen(vector)
    np.testing.assert_allclose(encoded, SPACE.canonical(vector[None])[0], atol=1e-12)


def test_recipes_of_no_branch_have_no_vector():
    recipe = SPACE.decode(SPACE.initial())
    assert SPACE.encode(replace(recipe, operator="dare_ties")) is None
    chunks = CHUNKS.decode(CHUNKS.initial())
    assert SPACE.encode(chunks) is not None
    assert SPACE.encode(replace(chunks, breaks=np.array([0, 6, 9]))) is None
    assert SPACE.encode(replace(chunks, breaks=None, grouping="layer")) is None


def test_no_method_is_preferred_at_first_and_a_small_step_reaches_each():
    assert set(SPACE.initial()[:4]) == {0.5}
    placed = SPACE.place(0, TIES.initial())
    for branch in range(1, 4):
        step = placed.copy()
        step[branch] += 0.25
        assert SPACE.chosen(step) == branch


@pytest.mark.parametrize("shape", [(17,), (19,), (1, 18), ()])
def test_a_vector_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected a vector of shape \(18,\)"):
        SPACE.decode(np.zeros(shape))


def test_what_is_no_choice_is_refused():
    with pytest.raises(ValueError, match="two or more"):
        ChoiceSpace((TIES,), ("ties",))
    with pytest.raises(ValueError, match="each with a label"):
        ChoiceSpace((TIES, SLERP), ("a", "a"))
    with pytest.raises(ValueError, match="different sources"):
        ChoiceSpace((TIES, replace(SLERP, sources=("x", "y"))), ("a", "b"))


@given(VECTORS)
def test_json_keeps_what_vectors_mean(vector):
    again = space_from_json(json.loads(json.dumps(space_to_json(SPACE))))
    assert isinstance(again, ChoiceSpace)
    assert again.labels == SPACE.labels
    assert again.decode(vector).digest() == SPACE.decode(vector).digest()


def test_the_models_are_points_of_every_method():
    points = corners(SPACE)
    found = [SPACE.decode(point) for point in points]
    assert [r.operator for r in found] == ["ties"] * 2 + ["slerp"] * 2 + ["task_arithmetic"] * 2 + [
        "model_stock"
    ] * 2
    np.testing.assert_allclose(found[5].params["weights"], [[0, 1], [0, 1]], atol=1e-12)
    np.testing.assert_allclose(SPACE.decode(origin(SPACE)).params["weights"], 0.0, atol=1e-12)


def test_designs_weigh_the_models_of_the_first_method_with_weights():
    swapped = ChoiceSpace((SLERP, TIES), ("slerp", "ties"))
    recipes = [swapped.decode(point) for point in single_parents(swapped)]
    assert [recipe.operator for recipe in recipes] == ["ties"] * 2
    np.testing.assert_allclose(recipes[1].params["weights"], [[0.0, 1.0]] * 3, atol=1e-12)
    bare = ChoiceSpace((SLERP, replace(SLERP, operator="nearswap")), ("a", "b"))
    assert single_parents(bare).shape == (0, 4)
    with pytest.raises(ValueError, match="no parameter with 2 values"):
        with_weights(bare, np.eye(2))


@given(VECTORS)
def test_a_model_of_scores_sees_nothing_that_does_not_count(vector):
    columns = Columns.of(SPACE)
    assert sum(len(own) for own in columns.members) == SPACE.dimension
    noise = vector.copy()
    chosen = SPACE.slices[SPACE.chosen(vector)]
    idle = np.ones(SPACE.dimension, dtype=bool)
    idle[:4] = idle[chosen] = False
    noise[idle] = 0.321
    for one, other in zip(columns.split(vector[None]), columns.split(noise[None]), strict=True):
        np.testing.assert_array_equal(one, other)
