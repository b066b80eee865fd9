from __future__ import annotations

from math import comb

import numpy as np
import pytest

from evomerge.core.directions import das_dennis, spread_directions


@pytest.mark.parametrize("n_objectives", [1, 2, 3, 5])
@pytest.mark.parametrize("divisions", [1, 2, 4])
def test_all_compositions_once(n_objectives, divisions):
    rows = das_dennis(n_objectives, divisions)
    assert rows.shape == (comb(n_objectives + divisions - 1, divisions), n_objectives)
    assert len(np.unique(rows, axis=0)) == len(rows)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0)
    assert rows.min() >= 0.0
    np.testing.assert_allclose(rows * divisions, np.round(rows * divisions), atol=1e-12)


def test_no_division_is_the_centre():
    np.testing.assert_array_equal(das_dennis(4, 0), [[0.25] * 4])


@pytest.mark.parametrize("n_objectives", range(1, 13))
@pytest.mark.parametrize("at_most", [12, 50, 100])
def test_spread_fits_and_holds_every_corner(n_objectives, at_most):
    rows = spread_directions(n_objectives, at_most)
    assert n_objectives <= len(rows) <= at_most
    assert len(np.unique(rows, axis=0)) == len(rows)
    np.testing.assert_allclose(rows.sum(axis=1), 1.0)
    for corner in np.eye(n_objectives):
        assert (np.abs(rows - corner).max(axis=1) < 1e-12).any()


def test_many_objectives_get_an_inner_layer():
    rows = spread_directions(8, 100)
    assert (rows.min(axis=1) > 0.0).any()


@pytest.mark.parametrize(("n_objectives", "divisions"), [(0, 2), (2, -1)])
def test_nonsense_is_refused(n_objectives, divisions):
    with pytest.raises(ValueError, match="no directions"):
        das_dennis(n_objectives, divisions)
