"""What a pool adds and gives up when its cluster changes."""

from __future__ import annotations

from evomerge.runtime.assignments import Seat
from evomerge.runtime.placement_plan import WorkerShape
from evomerge.runtime.seat_changes import seat_changes

ONE, HALF = WorkerShape(1.0, 1.0), WorkerShape(1.0, 0.5)
ON_A, ON_B = WorkerShape(1.0, 1.0, "a"), WorkerShape(1.0, 1.0, "b")


def ready(number: int, shape: WorkerShape, node: str) -> Seat:
    return Seat(number, shape, is_ready=True, node=node)


def test_what_is_missing_is_added() -> None:
    assert seat_changes([], [ONE, HALF]) == ([ONE, HALF], [])
    seats = [ready(0, ONE, "a"), Seat(1, ONE)]
    assert seat_changes(seats, [ONE] * 3) == ([ONE], [])


def test_only_those_that_do_nothing_are_given_up() -> None:
    seats = [Seat(0, ONE), ready(1, ONE, "a"), Seat(2, HALF), ready(3, HALF, "b")]
    assert seat_changes(seats, [ONE]) == ([], [seats[0], seats[2]])
    assert seat_changes(seats, []) == ([], [seats[0], seats[2]])


def test_one_that_is_leaving_is_replaced() -> None:
    seats = [Seat(0, ONE, is_ready=True, node="a", is_leaving=True)]
    assert seat_changes(seats, [ONE]) == ([ONE], [])


def test_a_worker_serves_the_place_it_happens_to_be_at() -> None:
    free = [ready(0, ONE, "a"), ready(1, ONE, "b")]
    assert seat_changes(free, [ON_A, ON_B, HALF]) == ([HALF], [])
    bound = [ready(0, ON_A, "a"), Seat(1, ON_B)]
    assert seat_changes(bound, [ONE, ONE]) == ([], [])
    assert seat_changes(bound, [ON_A, ON_A]) == ([ON_A], [bound[1]])


def test_a_seat_bound_to_a_node_that_has_gone_is_replaced_by_a_free_one() -> None:
    seats = [Seat(0, ON_A), ready(1, ON_A, "a"), Seat(2, ON_B)]
    assert seat_changes(seats, [ONE] * 3, {"b"}) == ([ONE], [seats[0]])
    assert seat_changes(seats, [ONE] * 3, {"a", "b"}) == ([], [])
