"""The models as points of a search space."""

import dataclasses

import numpy as np
import pytest

from evomerge.core.corners import corners, origin, param_slices, random_mixture
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.seeding import generator

DENSITY = SearchedParam("density", 1, False, 0.2, 1.0, 0.6)
WEIGHTS = SearchedParam("weights", 2, True, -0.5, 1.5, 0.5)
SPACE = SearchSpace("ties", ("base", "x", "y"), "layer", 2, (DENSITY, WEIGHTS))


def test_a_corner_has_one_model_in_every_group_and_the_rest_at_its_start():
    rows = [SPACE.decode(vector) for vector in corners(SPACE)]
    np.testing.assert_allclose(rows[0].params["weights"], [[1.0, 0.0]] * 2)
    np.testing.assert_allclose(rows[1].params["weights"], [[0.0, 1.0]] * 2)
    np.testing.assert_allclose(rows[1].params["density"], [0.6, 0.6])


def test_the_origin_is_the_base_where_only_experts_have_weights():
    np.testing.assert_allclose(SPACE.decode(origin(SPACE)).params["weights"], 0.0, atol=1e-12)


def test_the_origin_is_the_mean_where_the_base_has_a_weight():
    all_three = dataclasses.replace(WEIGHTS, width=3)
    space = dataclasses.replace(SPACE, searched=(all_three,))
    np.testing.assert_allclose(space.decode(origin(space)).params["weights"], 1.0 / 3.0)


def test_weights_outside_the_range_become_the_nearest_inside():
    narrow = dataclasses.replace(WEIGHTS, low=0.1, high=0.7)
    space = dataclasses.replace(SPACE, searched=(narrow,))
    found = space.decode(corners(space)[0]).params["weights"]
    np.testing.assert_allclose(found, [[0.7, 0.1]] * 2)


@pytest.mark.parametrize("searched", [(DENSITY,), (dataclasses.replace(WEIGHTS, width=1),)])
def test_without_two_weighted_models_the_corners_are_the_ends_of_the_ranges(searched):
    space = dataclasses.replace(SPACE, searched=searched)
    np.testing.assert_array_equal(corners(space), [[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_array_equal(origin(space), [0.5, 0.5])


def test_slices_follow_the_order_of_the_vector():
    assert param_slices(SPACE) == {"density": slice(0, 2), "weights": slice(2, 6)}


def test_the_scales_of_evo_merging_are_weights_and_its_shares_are_not():
    alpha = SearchedParam("alpha", 2, True, 0.0, 1.0, 1.0)
    beta = SearchedParam("beta", 2, True, -1.5, 1.5, 0.5)
    space = SearchSpace("evo_merging", ("base", "x", "y"), "global", 1, (alpha, beta))
    recipe = space.decode(corners(space)[1])
    np.testing.assert_allclose(recipe.params["alpha"], [[1.0, 1.0]])
    np.testing.assert_allclose(recipe.params["beta"], [[0.0, 1.0]], atol=1e-12)


def test_a_random_mixture_is_convex():
    rng = generator(0)
    for _ in range(20):
        mixed = random_mixture(np.eye(4), rng)
        assert (mixed >= 0.0).all()
        assert mixed.sum() == pytest.approx(1.0)
