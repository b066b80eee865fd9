from __future__ import annotations

import json

import numpy as np
import pytest

from evomerge.core.batch_choice import far_enough, least_known, spread_along_front
from evomerge.core.pareto import hypervolume
from evomerge.core.pareto_surrogate import ParetoSurrogate
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.errors import RunError
from evomerge.seeding import generator

SPACE = SearchSpace(
    "task_arithmetic",
    ("base", "x", "y"),
    "global",
    1,
    (SearchedParam("weights", 2, True, 0.0, 1.5, 0.5),),
    fixed={"lambda_": np.ones(1)},
    settings={"normalize": False},
)
NAMES = ("left", "right")


def truth(points):
    goals = np.array([[0.9, 0.2], [0.2, 0.8]])
    away = np.square(points[:, None] - goals).sum(axis=2)
    return 1.0 / (1.0 + np.exp(8.0 * away - 3.0))


def fitted(n=30, seed=0, low=0.0, high=1.0, checks=()):
    points = np.random.default_rng(seed).uniform(low, high, (n, 2))
    return ParetoSurrogate.fit(SPACE, NAMES, range(n), points, truth(points), checks=checks)


def test_the_front_is_found_inside_the_scored_box():
    surrogate = fitted(40)
    points, values = surrogate.front(generator(0))
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 41)] * 2), -1).reshape(-1, 2)
    assert hypervolume(truth(points), np.zeros(2)) > 0.98 * hypervolume(truth(grid), np.zeros(2))
    np.testing.assert_array_equal(values, surrogate.predict(points))
    small = fitted(40, low=0.4, high=0.6)
    points, _ = small.front(generator(0))
    assert points.min() >= small.points.min()
    assert points.max() <= small.points.max()


def test_the_links_follow_the_scores():
    surrogate = fitted()
    assert [part.link for part in surrogate.parts] == ["sigmoid", "sigmoid"]
    points = surrogate.points
    values = np.stack([truth(points)[:, 0], -5.0 * points[:, 0] - 1.0], axis=1)
    mixed = ParetoSurrogate.fit(SPACE, NAMES, range(30), points, values)
    assert [part.link for part in mixed.parts] == ["sigmoid", "softplus"]


def test_json_keeps_every_answer():
    surrogate = fitted(checks=[(np.array([0.5, 0.4]), np.array([0.6, 0.4]))])
    again = ParetoSurrogate.from_json(json.loads(json.dumps(surrogate.to_json())), where="s.json")
    there = np.random.default_rng(5).random((20, 2))
    np.testing.assert_array_equal(again.predict(there), surrogate.predict(there))
    np.testing.assert_array_equal(again.std(there), surrogate.std(there))
    assert again.error() == surrogate.error()
    assert again.error()["left"]["predicted"] == pytest.approx(0.1)
    assert again.error()["left"]["n"] == 1
    assert again.nearest(there[0]) == surrogate.nearest(there[0])
    for a, b in zip(again.front(generator(1)), surrogate.front(generator(1)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.space.decode(there[0]).digest() == SPACE.decode(there[0]).digest()


def test_without_checks_only_the_error_of_the_fit_is_known():
    error = fitted().error()["right"]
    assert error["predicted"] is None
    assert error["n"] == 0
    assert 0.0 <= error["fit"] < 0.05


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "no surrogate of format 1"),
        ({"points": [[0.0, 0.0]]}, "shapes disagree"),
        ({"values": "x"}, "is damaged"),
        ({"space": {}}, "'operator'"),
        ({"objectives": {"left": {}, "right": {}}}, "is damaged"),
    ],
)
def test_damaged_json_is_refused_by_name(change, message):
    with pytest.raises(RunError, match=rf"s\.json: .*{message}"):
        ParetoSurrogate.from_json(fitted().to_json() | change, where="s.json")


def test_optimism_looks_where_little_is_known():
    surrogate = fitted(12, low=0.0, high=0.5)
    wide = ParetoSurrogate.fit(
        SPACE,
        NAMES,
        range(13),
        np.concatenate([surrogate.points, [[1.0, 1.0]]]),
        truth(np.concatenate([surrogate.points, [[1.0, 1.0]]])),
    )
    plain, _ = wide.front(generator(0))
    hopeful, _ = wide.front(generator(0), optimism=2.0)
    assert wide.std(hopeful).mean() > wide.std(plain).mean()


def test_the_least_known_point_is_not_chosen_twice_over():
    surrogate = fitted(10, low=0.0, high=0.3)
    points = np.array([[1.0, 1.0], [0.999, 1.0], [1.0, 0.0], [0.1, 0.1]])
    rows = least_known(surrogate, points, 4)
    assert sorted(rows) == [0, 1, 2, 3]
    assert {int(rows[0]), int(rows[1])} != {0, 1}  # its twin is known once it is
    assert rows[3] in (1, 3)


def test_a_batch_spreads_away_from_what_is_taken():
    values = np.array([[0.0, 1.0], [0.1, 0.9], [0.5, 0.5], [1.0, 0.0]])
    assert list(spread_along_front(values, np.array([[0.0, 1.0]]), 3)) == [3, 2, 1]
    assert len(spread_along_front(values, values, 10)) == 4
    assert len(spread_along_front(np.zeros((0, 2)), values, 3)) == 0


def test_near_is_near_in_every_dimension():
    others = np.array([[0.5, 0.5]])
    points = np.array([[0.5, 0.5005], [0.5, 0.6]])
    assert list(far_enough(points, others, 1e-3)) == [False, True]
    assert far_enough(points, np.zeros((0, 2)), 1e-3).all()
