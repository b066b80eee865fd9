"""Bootstrap intervals against closed forms."""

import numpy as np
import pytest

from evomerge.core.intervals import resample
from evomerge.core.objective import Objective

MATHS = Objective("maths", {"t": 1.0})


def draws(table, objectives=(MATHS,)):
    return resample({"t": np.asarray(table, "f4")}, objectives, np.random.default_rng(0))


def test_the_interval_of_an_accuracy_is_the_binomial_one():
    right = np.zeros((1, 400))
    right[0, :280] = 1
    low, high = draws(right).interval(0, 0)
    half = 1.96 * np.sqrt(0.7 * 0.3 / 400)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.006)


def test_differences_are_paired():
    rng = np.random.default_rng(1)
    scores = rng.uniform(size=300)
    found = draws([scores, scores - 0.1, scores])
    assert found.difference(0, 1, 0) == pytest.approx((0.1, 0.1))
    assert found.difference(0, 2, 0) == (0.0, 0.0)
    wide = found.interval(0, 0)
    assert wide[1] - wide[0] > 0.05


def test_weights_and_the_mean_of_objectives_are_followed():
    tables = {"a": np.array([[1.0, 0.0, 1.0, 1.0]]), "b": np.array([[2.0, 2.0]])}
    both = Objective("both", {"a": 1.0, "b": 3.0})
    only = Objective("only", {"b": 1.0})
    found = resample(tables, [both, only], np.random.default_rng(0)).with_mean()
    assert found.values.shape == (2000, 1, 3)
    assert found.values[..., 1] == pytest.approx(2.0)
    assert found.values[..., 0].mean() == pytest.approx(0.25 * 0.75 + 0.75 * 2, abs=0.02)
    assert found.values[..., 2] == pytest.approx(found.values[..., :2].mean(axis=2))
