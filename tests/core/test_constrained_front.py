"""Constraints: the front against Deb's rule by brute force, and bounds that become known late."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.constrained_front import ConstrainedFront
from evomerge.core.feasibility import Feasibility
from evomerge.core.objective import Bound, Constraint, Objective, Objectives
from evomerge.core.pareto import FrontArchive, hypervolume
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError

GUARD = Objective("guard", {"guard": 1.0})
FIXED = (
    Constraint(GUARD, Bound(0.5)),
    Constraint(Objective("size", {"size": 1.0}), Bound(2.0), False),
)
RELATIVE = (Constraint(GUARD, Bound(-0.25, 1.0, "base")),)

few = st.integers(0, 4).map(lambda v: v / 4)
rows_of = st.lists(st.tuples(few, few, few, st.integers(0, 4).map(float)), max_size=14)


def better(a, b):
    """Deb: less violation, else Pareto dominance; rows are (violation, *objectives)."""
    if a[0] != b[0]:
        return a[0] < b[0]
    pairs = list(zip(a[1:], b[1:], strict=True))
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


def brute_front(rows):
    """Values on the front, each once."""
    return sorted({row for row in rows if not any(better(other, row) for other in rows)})


@settings(deadline=None, max_examples=150)
@given(rows_of)
def test_the_front_is_what_nothing_beats_under_constraints(rows):
    front = ConstrainedFront(FIXED, n_objectives=2)
    ranked = []
    for index, (a, b, guard, size) in enumerate(rows):
        front.add(index, np.array([a, b]), np.array([guard, size]))
        ranked.append((max(0.0, 0.5 - guard) + max(0.0, size - 2.0), a, b))
    members = front.front()
    assert sorted(map(tuple, members.objectives.tolist())) == [r[1:] for r in brute_front(ranked)]
    assert front.is_feasible == (not rows or min(ranked)[0] == 0.0)
    assert front.n_feasible == sum(row[0] == 0.0 for row in ranked)
    assert len(front) == len(members)


@settings(deadline=None, max_examples=100)
@given(rows_of.filter(bool), st.data())
def test_it_does_not_matter_when_the_base_is_scored(rows, data):
    at = data.draw(st.integers(0, len(rows) - 1))
    order = data.draw(st.permutations(range(len(rows))))
    fronts = []
    for sequence in (range(len(rows)), order):
        front = ConstrainedFront(RELATIVE, n_objectives=2)
        for index in sequence:
            a, b, guard, _ = rows[index]
            origin = "founder: base" if index == at else "founder: mean"
            front.add(index, np.array([a, b]), np.array([guard]), origin)
        fronts.append(front)
    limit = rows[at][2] - 0.25
    ranked = [(max(0.0, limit - guard), a, b) for a, b, guard, _ in rows]
    expected = [row[1:] for row in brute_front(ranked)]
    for front in fronts:
        assert front.feasibility.limits() == [limit]
        assert sorted(map(tuple, front.front().objectives.tolist())) == expected
        assert front.n_feasible == sum(row[0] == 0.0 for row in ranked)


@settings(deadline=None, max_examples=50)
@given(rows_of)
def test_without_constraints_it_is_the_plain_front(rows):
    plain, front = FrontArchive(n_objectives=2), ConstrainedFront(n_objectives=2)
    front.set_reference(np.array([-1.0, -1.0]))
    plain.set_reference(np.array([-1.0, -1.0]))
    for index, (a, b, *_) in enumerate(rows):
        values = np.array([a, b])
        assert front.add(index, values) == plain.add(index, values)
    np.testing.assert_array_equal(front.front().candidate_ids, plain.front().candidate_ids)
    assert front.hypervolume() == plain.hypervolume()
    assert front.is_feasible
    assert front.n_feasible == len(rows)


def test_nothing_is_feasible_before_the_bound_is_known():
    front = ConstrainedFront(RELATIVE, n_objectives=1)
    assert front.add(0, np.array([1.0]), np.array([0.9]))
    assert not front.is_feasible
    assert front.n_feasible == 0
    assert front.feasibility.describe() == ["guard >= base - 0.25 = not known yet"]
    assert front.add(1, np.array([0.2]), np.array([0.5]), "founder: base")
    assert front.is_feasible
    assert front.front().candidate_ids.tolist() == [0]
    assert front.feasibility.describe() == ["guard >= base - 0.25 = 0.2500"]


def test_the_hypervolume_counts_feasible_candidates_only():
    front = ConstrainedFront(FIXED, n_objectives=1)
    front.set_reference(np.array([0.0]))
    front.add(0, np.array([5.0]), np.array([0.0, 9.0]))
    assert (len(front), front.hypervolume()) == (1, 0.0)
    front.add(1, np.array([2.0]), np.array([1.0, 0.0]))
    assert front.hypervolume() == hypervolume(np.array([[2.0]]), np.array([0.0])) == 2.0
    assert front.front().candidate_ids.tolist() == [1]
    assert front.reference is not None


def test_what_was_measured_is_told_with_its_bound():
    feasibility = Feasibility(FIXED)
    lines = feasibility.describe({"guard >= 0.5": 0.5, "size <= 2": 2.5})
    assert lines == [
        "guard >= 0.5: measured 0.5000, met",
        "size <= 2: measured 2.5000, NOT met",
    ]
    assert feasibility.gaps(np.array([0.25, 1.5])).tolist() == [0.25, -0.5]
    assert feasibility.violation(np.array([0.25, 1.5])) == 0.25


def test_measures_come_from_the_scores():
    recipe = Recipe("linear", ("base",), {"weights": np.ones((1, 1))})
    scores = {"guard": np.array([0, 1, 1, 1], np.float32), "size": np.array([3.0], np.float32)}
    measured = Feasibility(FIXED).measure(Evaluation(Candidate(0, recipe), scores))
    assert measured.tolist() == [0.75, 3.0]


def test_a_missing_measure_is_refused():
    with pytest.raises(ValueError, match="2 constraints"):
        ConstrainedFront(FIXED, n_objectives=1).add(0, np.array([1.0]))


def test_the_same_constraint_twice_is_refused():
    with pytest.raises(ConfigError, match="given twice"):
        Objectives((GUARD,), (FIXED[0], FIXED[0]))
