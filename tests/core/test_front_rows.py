import numpy as np

from evomerge.core.front_rows import best_members, front_rows
from evomerge.core.pareto import ParetoFront


def test_rows_are_json_ready_and_best_on_the_first_objective_first():
    front = ParetoFront(np.array([2, 5, 9]), np.array([[0.1, 0.9], [0.7, 0.2], [0.7, 0.2]]))
    rows = front_rows(front, ("a", "b"), {2: "x", 5: "y", 9: "z", 11: "not a member"})
    assert rows == [
        {"candidate": 5, "objectives": {"a": 0.7, "b": 0.2}, "recipe": "y"},
        {"candidate": 9, "objectives": {"a": 0.7, "b": 0.2}, "recipe": "z"},
        {"candidate": 2, "objectives": {"a": 0.1, "b": 0.9}, "recipe": "x"},
    ]
    assert type(rows[0]["candidate"]) is int


def test_the_best_of_an_objective_is_a_member_of_the_front():
    ids, values = np.array([1, 4, 6]), np.array([[0.7, 0.1], [0.7, 0.4], [0.2, 0.9]])
    front = ParetoFront.of(ids, values)
    assert best_members(front, ("a", "b")) == {
        "a": {"candidate": 4, "value": 0.7},  # 1 has the same, and less of the other
        "b": {"candidate": 6, "value": 0.9},
    }
    assert best_members(ParetoFront.of(ids[:0], values[:0]), ("a", "b")) == {}
