"""The Gaussian process against the textbook's formulas, and its fit against finite differences."""

import numpy as np
import pytest

from evomerge.core.gaussian_process import MAX_COLUMNS, Columns, GaussianProcess
from evomerge.core.search_space import SearchedParam, SearchSpace


def space(n_sources: int, n_groups: int) -> SearchSpace:
    names = tuple(f"m{i}" for i in range(n_sources))
    weights = SearchedParam("weights", n_sources, True, 0.0, 1.0, 0.5)
    density = SearchedParam("density", 1, False, 0.0, 1.0, 0.5)
    return SearchSpace("ties", names, "layer", n_groups, (weights, density))


def some(n: int, columns: Columns, n_targets: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    points = rng.random((n, len(columns.average)))
    return points, np.sin(3.0 * points[:, :n_targets]) + 0.1 * rng.standard_normal((n, n_targets))


def test_columns_are_one_per_model_and_parameter():
    columns = Columns.of(space(2, 3))
    assert [own.tolist() for own in columns.members] == [[0, 2, 4], [1, 3, 5], [6, 7, 8]]
    point = np.arange(9.0)[None]
    coarse, fine = columns.split(point)
    np.testing.assert_allclose(coarse, [[2, 3, 2, 3, 2, 3, 7, 7, 7]])
    np.testing.assert_allclose(coarse + fine, point)


def test_many_columns_share_length_scales():
    columns = Columns.of(space(100, 2))
    assert len(columns.members) == MAX_COLUMNS
    assert sorted(np.concatenate(columns.members).tolist()) == list(range(202))


def test_prediction_is_the_textbook_one():
    columns = Columns.of(space(2, 1))
    points, targets = some(7, columns)
    process = GaussianProcess(columns, points, targets)
    lengths, new = np.exp(process.settings[:3]), np.full((1, 3), 0.4)

    def kernel(a, b):  # every column has one row: nothing is fine
        far = np.sqrt((((a[:, None] - b[None]) / lengths) ** 2).sum(axis=2))
        root = np.sqrt(5.0) * far
        return (1.0 + root + root**2 / 3.0) * np.exp(-root)

    noisy = kernel(points, points) + (np.exp(process.settings[-1]) + 1e-6) * np.eye(7)
    mean = targets.mean(axis=0)
    scale = (targets - mean).std()
    expected = mean + kernel(new, points) @ np.linalg.solve(noisy, targets - mean)
    variance = 1.0 - kernel(new, points) @ np.linalg.solve(noisy, kernel(points, new))
    found, deviation = process.predict(new)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(deviation, scale * np.sqrt(variance[0]), rtol=1e-5)


@pytest.mark.parametrize("n_targets", [1, 9])
def test_slope_of_the_posterior(n_targets):
    columns = Columns.of(space(3, 4))
    points, targets = some(12, columns, n_targets)
    process = GaussianProcess(columns, points, targets)
    parts = [
        np.stack([((p[:, None, own] - p[None][:, :, own]) ** 2).sum(2) for own in columns.members])
        for p in columns.split(points)
    ]
    at = process.settings + 0.1 * np.arange(len(process.settings))
    _, slope = process._posterior(at, *parts)
    for index in range(len(at)):
        step = np.eye(len(at))[index] * 1e-5
        high, low = (process._posterior(at + sign * step, *parts)[0] for sign in (1, -1))
        assert slope[index] == pytest.approx((high - low) / 2e-5, rel=1e-4, abs=1e-5)


def test_fit_finds_the_column_that_matters():
    columns = Columns.of(space(3, 2))
    rng = np.random.default_rng(1)
    points = rng.random((40, 8))
    targets = np.sin(4.0 * (points[:, [1]] + points[:, [4]]))  # the second model, in both groups
    process = GaussianProcess(columns, points, targets, steps=40)
    assert process.settings[:4].argmin() == 1
    assert process.settings[0] - process.settings[1] > 1.0
    new = rng.random((50, 8))
    gap = process.predict(new)[0] - np.sin(4.0 * (new[:, [1]] + new[:, [4]]))
    assert np.abs(gap).mean() < 0.15


def test_constant_targets_are_no_problem():
    columns = Columns.of(space(2, 2))
    points, _ = some(5, columns)
    mean, deviation = GaussianProcess(columns, points, np.ones((5, 3)), steps=5).predict(points)
    np.testing.assert_allclose(mean, 1.0)
    assert np.isfinite(deviation).all()
