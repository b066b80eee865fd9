"""Picking candidates off a front."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.core.pareto import ParetoFront
from evomerge.core.picking import pick
from evomerge.errors import ConfigError

NAMES = ("math", "japanese")
FRONT = ParetoFront.of([3, 5, 8, 9], np.array([[0.0, 10.0], [0.6, 8.0], [0.9, 3.0], [1.0, 0.0]]))

fronts = st.tuples(st.integers(1, 10), st.integers(1, 4)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.floats(-5, 5, width=16))
)


def test_the_knee_lies_farthest_above_the_chord():
    assert pick(FRONT, NAMES, "knee") == [5]  # 0.6 + 0.8 beats 0.9 + 0.3


def test_the_knee_of_a_hollow_front_is_an_extreme():
    hollow = ParetoFront.of([1, 2, 3], np.array([[0.0, 1.0], [0.2, 0.2], [1.0, 0.0]]))
    assert pick(hollow, NAMES, "knee") == [1]


@pytest.mark.parametrize("spec", ["knee", "weights:a=1,b=1"])
def test_of_two_candidates_the_better_on_the_whole_is_the_compromise(spec):
    # Normalised they are (0, 1) and (1, 0): a specialist of no use elsewhere, and a real merge.
    front = ParetoFront.of([2, 12], np.array([[0.0, 0.92], [0.58, 0.86]]))
    assert pick(front, ("a", "b"), spec) == [12]


def test_the_knee_of_three_objectives_gives_up_least():
    corner = ParetoFront.of([1, 2, 3, 4], np.vstack([np.eye(3), [[0.8, 0.8, 0.8]]]))
    assert pick(corner, ("a", "b", "c"), "knee") == [4]


def test_best_takes_the_highest_value_of_one_objective():
    assert pick(FRONT, NAMES, "best:math") == [9]
    assert pick(FRONT, NAMES, "best: japanese") == [3]


def test_best_breaks_ties_by_the_other_objectives():
    front = ParetoFront.of([1, 2, 3], np.array([[1.0, 0.0, 0.5], [1.0, 1.0, 0.4], [0.0, 0.5, 1.0]]))
    assert pick(front, ("a", "b", "c"), "best:a") == [2]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("math=1,japanese=1", 5), ("math=1", 9), ("japanese = 2", 3), ("math=3,japanese=1", 8)],
)
def test_weights_pull_the_choice_along_the_front(weights, expected):
    assert pick(FRONT, NAMES, f"weights {weights}") == [expected]
    assert pick(FRONT, NAMES, f"weights:{weights}") == [expected]


def test_weights_reach_a_hollow_part_that_no_weighted_sum_reaches():
    hollow = ParetoFront.of([1, 2, 3], np.array([[0.0, 1.0], [0.3, 0.3], [1.0, 0.0]]))
    assert pick(hollow, NAMES, "weights math=1,japanese=1") == [2]


def test_all_gives_the_whole_front():
    assert pick(FRONT, NAMES, "all") == [3, 5, 8, 9]


def test_a_candidate_may_lie_off_the_front():
    assert pick(FRONT, NAMES, "candidate:312") == [312]


@given(fronts, st.randoms(use_true_random=False))
def test_the_choice_is_on_the_front_and_ignores_order_and_units(points, random):
    names = [f"o{m}" for m in range(points.shape[1])]
    front = ParetoFront.of(range(len(points)), points)
    order = list(range(len(front)))
    random.shuffle(order)
    shuffled = ParetoFront(front.candidate_ids[order], front.objectives[order])
    # Powers of two: rescaling is exact.
    scaled = ParetoFront(front.candidate_ids, front.objectives * 4.0)
    for spec in ("knee", f"best:{names[-1]}", f"weights {names[0]}=1", "all"):
        picked = pick(front, names, spec)
        assert set(picked) <= set(front.candidate_ids.tolist())
        assert picked == pick(scaled, names, spec)
        assert picked == pick(shuffled, names, spec)


@given(fronts)
def test_every_rule_picks_the_only_point_of_a_front_of_one(points):
    names = [f"o{m}" for m in range(points.shape[1])]
    front = ParetoFront.of([4], points[:1])
    for spec in ("knee", "best:o0", "weights o0=1", "all"):
        assert pick(front, names, spec) == [4]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("kne", "Did you mean 'knee'"),
        ("", "not a way to pick"),
        ("best:maths", "Did you mean 'math'"),
        ("best", "not an objective"),
        ("knee:math", "takes nothing after it"),
        ("weights mth=1", "Did you mean 'math'"),
        ("weights math", "name=number"),
        ("weights", "name=number"),
        ("weights math=-1", ">= 0"),
        ("weights math=nan", ">= 0"),
        ("weights math=x", ">= 0"),
        ("weights math=0", "above 0"),
        ("weights math=1,math=2", "twice"),
        ("candidate:-1", "not a candidate id"),
        ("candidate:c12", "not a candidate id"),
    ],
)
def test_bad_specs_name_what_is_wrong(spec, message):
    with pytest.raises(ConfigError, match=message):
        pick(FRONT, NAMES, spec)


def test_an_empty_front_is_refused():
    with pytest.raises(ConfigError, match="front is empty"):
        pick(ParetoFront.of([], np.zeros((0, 2))), NAMES, "knee")
