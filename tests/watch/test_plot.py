"""The plot keeps to its size and puts points where they belong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.watch.plot import MARKED, MIN_HEIGHT, MIN_WIDTH, OTHER, Scatter, captions, pairs
from evomerge.watch.snapshot import Points

FINITE = st.floats(-1e300, 1e300, allow_subnormal=True)


def scatter(x, y, marked=None):
    x, y = np.array(x, dtype=float), np.array(y, dtype=float)
    return Scatter(x, y, np.ones(len(x), dtype=bool) if marked is None else np.array(marked))


@settings(max_examples=150)
@given(
    st.integers(1, 30).flatmap(lambda n: arrays(float, (n, 2), elements=FINITE)),
    st.integers(MIN_WIDTH, 200), st.integers(MIN_HEIGHT, 60),
)  # fmt: skip
def test_it_has_the_size_asked_for_and_every_marked_point(values, width, height):
    lines = scatter(values[:, 0], values[:, 1]).draw(width, height).plain.split("\n")
    assert len(lines) == height
    assert max(map(len, lines)) <= width
    text = "".join(lines)
    assert 1 <= text.count(MARKED) <= len(values)
    assert OTHER not in text


def test_corners_are_corners():
    lines = scatter([0, 1, 1], [0, 0, 1]).draw(40, 12).plain.split("\n")
    inside = [line.partition("│")[2] or line.partition("┤")[2] for line in lines[:10]]
    rows = [
        (i, line.index(MARKED), line.rindex(MARKED))
        for i, line in enumerate(inside)
        if MARKED in line
    ]
    (top, first, last), (bottom, left, right) = rows
    assert top < 2
    assert bottom > 7
    assert first == last == right > left


def test_ticks_are_round_numbers_in_their_places():
    lines = scatter([0.62, 0.71], [10, 30]).draw(50, 14).plain.split("\n")
    assert [float(part) for part in lines[-1].split()] == [0.62, 0.64, 0.66, 0.68, 0.7] or all(
        float(part) * 100 == pytest.approx(round(float(part) * 100)) for part in lines[-1].split()
    )
    assert any(line.startswith("30 ┤") for line in lines)


def test_marked_points_lie_over_others():
    text = scatter([0, 0], [0, 0], [True, False]).draw(40, 8).plain
    assert MARKED in text
    assert OTHER not in text


def test_without_points_or_room_it_says_so():
    assert scatter([], []).draw(40, 10).plain == "nothing is scored yet"
    assert scatter([1], [1]).draw(MIN_WIDTH - 1, 10).plain == "no room for the plot"


def points(names, values, on_front=None):
    values = np.array(values, dtype=float)
    n = len(values)
    marked = np.zeros(n, dtype=bool) if on_front is None else np.array(on_front)
    return Points(names, np.arange(n), values, marked)


def test_one_objective_is_shown_over_the_search_with_its_rises_marked():
    found = points(("maths",), [[0.1], [0.4], [0.2], [0.4], [0.5]])
    assert Scatter.of(found, (0, 0)).marked.tolist() == [True, True, False, True, True]
    assert captions(found, (0, 0)) == ("maths ↑ over candidates →", "● best so far  · others")


def test_pairs_of_objectives():
    assert (pairs(1), pairs(2)) == ([(0, 0)], [(0, 1)])
    assert pairs(3) == [(0, 1), (0, 2), (1, 2)]
    found = points(("a", "b", "c"), [[1, 2, 3]], [True])
    assert captions(found, (0, 2)) == ("c ↑ over a →", "● front  · others")
    assert Scatter.of(found, (0, 2)).y.tolist() == [3.0]
