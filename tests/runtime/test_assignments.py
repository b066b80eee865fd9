from __future__ import annotations

import numpy as np
import pytest

from evomerge.core.candidate import Candidate
from evomerge.core.recipe import Recipe
from evomerge.runtime.assignments import BUILD_ATTEMPTS, Assignments, Seat


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def assignments(clock: Clock, notes: list[str]) -> Assignments:
    return Assignments(max_attempts=2, timeout_seconds=10.0, note=notes.append, clock=clock)


def candidate(number: int) -> Candidate:
    return Candidate(number, Recipe("linear", ("a",), {"weights": np.ones((1, 1))}), (), 7)


def test_candidates_begin_in_the_order_they_were_submitted(assignments: Assignments) -> None:
    first, second = candidate(0), candidate(1)
    assert assignments.submit(first)
    assert assignments.submit(second)
    assert assignments.begin("a").candidate is first
    assert assignments.begin("b").candidate is second
    assert not assignments.has_queued
    assert len(assignments) == 2


def test_a_lost_candidate_is_the_next_to_begin_and_unchanged(
    assignments: Assignments, notes: list[str]
) -> None:
    first = candidate(0)
    assignments.submit(first)
    assignments.submit(candidate(1))
    assignments.begin("a")
    assert assignments.lose("a", "worker died") == []
    again = assignments.begin("b")
    assert again.candidate is first
    assert again.attempt == 2
    assert notes == ["candidate 0: attempt 1 lost on a: worker died"]


def test_the_last_attempt_lost_is_a_failed_outcome(assignments: Assignments, clock: Clock) -> None:
    assignments.submit(candidate(0))
    assignments.begin("a")
    assignments.lose("a", "worker died")
    assignments.begin("b")
    clock.now = 3.0
    (outcome,) = assignments.lose("b", "deadline of 10 s passed", "detail")
    assert outcome.evaluation.error == "no result after 2 attempts: deadline of 10 s passed"
    assert (outcome.attempt, outcome.worker, outcome.seconds) == (2, "b", 3.0)
    assert outcome.detail == "detail"
    assert len(assignments) == 0


def test_a_late_twin_is_dropped_and_noted(
    assignments: Assignments, clock: Clock, notes: list[str]
) -> None:
    assignments.submit(candidate(0))
    assignments.begin("a")
    clock.now = 10.0
    assert assignments.overdue() == ["a"]
    assignments.lose("a", "deadline of 10 s passed")
    assignments.begin("b")
    assert assignments.finish("a") is None
    assert notes[-1] == "worker a: a late result was dropped"
    finished = assignments.finish("b")
    assert finished is not None
    assert finished.attempt == 2
    assert assignments.finish("b") is None


def test_the_deadline_counts_from_the_beginning_of_the_attempt(
    assignments: Assignments, clock: Clock
) -> None:
    assignments.submit(candidate(0))
    assert assignments.next_deadline() == float("inf")
    clock.now = 5.0
    assignments.begin("a")
    assert assignments.next_deadline() == 15.0
    clock.now = 14.9
    assert assignments.overdue() == []
    clock.now = 15.0
    assert assignments.overdue() == ["a"]


def test_withdraw_leaves_what_is_running(assignments: Assignments) -> None:
    for number in range(3):
        assignments.submit(candidate(number))
    assignments.begin("a")
    assert assignments.withdraw() == [1, 2]
    assert len(assignments) == 1
    assert assignments.submit(candidate(2))


def test_a_lost_candidate_can_be_withdrawn(assignments: Assignments) -> None:
    assignments.submit(candidate(0))
    assignments.begin("a")
    assignments.lose("a", "worker died")
    assert assignments.withdraw() == [0]
    assert len(assignments) == 0


def test_a_candidate_under_way_is_not_taken_again(
    assignments: Assignments, notes: list[str]
) -> None:
    assert assignments.submit(candidate(0))
    assert not assignments.submit(candidate(0))
    assignments.begin("a")
    assert not assignments.submit(candidate(0))
    assert len(notes) == 2
    assignments.finish("a")
    assert assignments.submit(candidate(0))


def test_an_attempt_count_does_not_outlive_its_candidate(assignments: Assignments) -> None:
    assignments.submit(candidate(0))
    assignments.begin("a")
    assignments.lose("a", "worker died")
    assignments.begin("a")
    assignments.finish("a")
    assignments.submit(candidate(0))
    assert assignments.begin("a").attempt == 1


def test_a_seat_is_named_after_its_place_and_process() -> None:
    assert Seat(2, starts=1).name == "ray-2"
    assert Seat(2, starts=3).name == "ray-2.3"


def test_a_seat_that_failed_too_often_is_given_up() -> None:
    assert Seat(0, failed_builds=BUILD_ATTEMPTS - 1).may_start
    assert not Seat(0, failed_builds=BUILD_ATTEMPTS).may_start
    assert not Seat(0, actor=object()).may_start


def test_a_candidate_that_is_given_back_is_next_and_has_lost_no_attempt(
    assignments: Assignments, notes: list[str]
) -> None:
    first = candidate(0)
    assignments.submit(first)
    assignments.submit(candidate(1))
    for worker in ("a", "b", "c"):  # more often than there are attempts
        assignments.begin(worker)
        assignments.give_back(worker, "its node has gone")
    again = assignments.begin("d")
    assert (again.candidate, again.attempt) == (first, 1)
    assert notes[-1] == "candidate 0: taken from c: its node has gone"
    assignments.give_back("e", "nothing was there")
    assert len(assignments) == 2


def test_a_seat_that_is_leaving_starts_no_process() -> None:
    assert Seat(0).may_start
    assert not Seat(0, is_leaving=True).may_start
