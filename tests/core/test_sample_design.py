from __future__ import annotations

import numpy as np
import pytest

from evomerge.core.sample_design import design, latin_square, single_parents, with_weights
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.seeding import generator

WEIGHTS = SearchedParam("weights", 3, True, 0.0, 2.0, 0.5)
DENSITY = SearchedParam("density", 1, False, 0.2, 1.0, 0.6)
SPACE = SearchSpace("ties", ("base", "a", "b", "c"), "layer", 2, (DENSITY, WEIGHTS))


def test_single_parents_weigh_one_model_in_every_group():
    points = single_parents(SPACE)
    assert points.shape == (3, 8)
    for k, point in enumerate(points):
        recipe = SPACE.decode(point)
        np.testing.assert_allclose(recipe.params["weights"], np.tile(np.eye(3)[k], (2, 1)))
        np.testing.assert_allclose(recipe.params["density"], 0.6)


def test_weights_are_moved_into_their_range():
    narrow = SearchSpace(
        "x", ("b", "m"), "global", 1, (SearchedParam("w", 2, True, 0.2, 0.8, 0.5),)
    )
    points = with_weights(narrow, np.array([[0.0, 1.0]]))
    np.testing.assert_allclose(narrow.decode(points[0]).params["w"], [[0.2, 0.8]])


def test_a_space_without_weights_has_no_single_parents():
    bare = SearchSpace("x", ("b", "m"), "global", 1, (DENSITY,))
    assert single_parents(bare).shape == (0, 1)
    with pytest.raises(ValueError, match="no parameter with 2 values"):
        with_weights(bare, np.zeros((1, 2)))


def test_a_design_holds_parents_and_centre_and_fills_up():
    known = single_parents(SPACE)[:1]
    points = design(SPACE, 20, known, generator(0))
    assert len(points) == 19
    np.testing.assert_allclose(points[:2], single_parents(SPACE)[1:])
    np.testing.assert_allclose(points[2], SPACE.initial())
    everything = np.concatenate([known, points])
    assert len(np.unique(everything.round(9), axis=0)) == 20
    assert everything.min() == 0.0
    assert everything.max() == 1.0


@pytest.mark.parametrize(("n", "expected"), [(0, 0), (1, 0), (2, 1), (5, 4), (6, 5)])
def test_a_design_counts_what_is_known(n, expected):
    known = single_parents(SPACE)[:1]
    assert design(SPACE, n, known, generator(0)).shape == (expected, 8)


@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_a_latin_square_uses_every_level_once(n):
    points = latin_square(n, np.zeros((1, 3)), generator(1))
    assert points.shape == (n, 3)
    if n > 1:
        for column in points.T:
            np.testing.assert_allclose(np.sort(column), np.linspace(0.0, 1.0, n))


def test_the_square_keeps_away_from_anchors():
    anchors = np.array([[0.5, 0.5]])
    far = [
        np.linalg.norm(latin_square(9, anchors, generator(s)) - 0.5, axis=1).min() for s in range(9)
    ]
    assert np.mean(far) > 0.2
