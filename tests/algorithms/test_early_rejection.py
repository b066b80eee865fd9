"""Early rejection changes nothing but the number of examples scored."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.algorithms.early_rejection import RejectsEarly
from evomerge.algorithms.m2n2 import M2N2
from evomerge.algorithms.niche_search import NicheSearch
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.niching import shared_fitness
from evomerge.seeding import generator
from evomerge.testing import linear_problem


def filled(rows, alpha=1.0, capacity="auto"):
    search = NicheSearch(
        None,
        generator(0),
        population_size=len(rows),
        alpha=alpha,
        use_attraction=True,
        capacity=capacity,
    )
    for number, row in enumerate(rows):
        search.tell(number, row, number)
    return search


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("capacity", ["auto", "one"])
@pytest.mark.parametrize("binary", [True, False])
def test_a_rejected_newcomer_would_not_have_entered(alpha, capacity, binary):
    rng = np.random.default_rng(1)
    rejected = 0
    for _ in range(150):
        rows = rng.random((5, 12)) ** 0.3
        newcomer = rng.random(12) * 0.7
        if binary:
            rows, newcomer = (rows > 0.4).astype(float), (newcomer > 0.4).astype(float)
        search = filled(rows, alpha, capacity)
        order = search.example_order((0, 1))
        assert sorted(order) == list(range(12))
        n = int(rng.integers(1, 12))
        seen = order[:n]
        if search.rejects(seen, newcomer[seen]):
            rejected += 1
            for _ in range(10):
                rest = newcomer.copy()
                rest[order[n:]] = rng.integers(2, size=12 - n) if binary else rng.random(12 - n)
                fitness = shared_fitness(np.vstack([rows, rest]), alpha, capacity)
                assert fitness.argmin() == 5
            assert not search.tell("late", rest, 99)
    assert rejected > 5


def test_an_archive_with_room_rejects_nobody():
    search = NicheSearch(
        None, generator(0), population_size=3, alpha=1.0, use_attraction=True, capacity="auto"
    )
    search.tell(0, np.ones(4), 0)
    assert search.example_order((0,)) is None
    assert not search.rejects(np.arange(3), np.zeros(3))


def test_strong_sharing_and_negative_scores_are_never_rejected():
    seen = np.arange(3)
    assert not filled(np.ones((3, 4)), alpha=2.0).rejects(seen, np.zeros(3))
    assert not filled(-np.ones((3, 4))).rejects(seen, np.zeros(3))
    assert not filled(np.ones((3, 4))).rejects(seen, -np.ones(3))
    assert filled(np.ones((3, 4))).rejects(seen, np.zeros(3))


def test_what_both_parents_fail_is_scored_first():
    rows = np.array([[0, 0, 1, 1, 1.0], [0, 1, 0, 1, 1], [1, 1, 1, 0, 1]])
    order = list(filled(rows).example_order((0, 1)))
    assert order[0] == 0
    assert set(order[1:3]) == {1, 2}


def trajectory(*, early: bool) -> tuple[list[str], tuple[int, ...], int, int]:
    problem, algorithm = linear_problem(), M2N2(population_size=4)
    assert isinstance(algorithm, RejectsEarly)
    algorithm.start(problem.space, problem.objectives, generator(2))

    def binary(recipe):
        return {
            task: (own > 0.5).astype(np.float32) for task, own in problem.scores(recipe).items()
        }

    for number, founder in enumerate(problem.space.founders):
        algorithm.tell(Evaluation(Candidate(number, founder.recipe), binary(founder.recipe)))
    digests, spent = [], 0
    for number in range(4, 200):
        proposal = algorithm.ask()
        digests.append(proposal.recipe.digest())
        evaluation = Evaluation(Candidate(number, proposal.recipe), binary(proposal.recipe))
        flat = evaluation.flat_scores()
        order = algorithm.example_order(proposal) if early else None
        n_seen = len(flat)
        if order is not None:
            for n in range(4, len(flat), 4):
                if algorithm.rejects(order[:n], flat[order[:n]]):
                    evaluation = Evaluation(evaluation.candidate, error="rejected early")
                    n_seen = n
                    break
        spent += n_seen
        algorithm.tell(evaluation)
    assert algorithm.champion is not None
    return digests, algorithm.member_ids, algorithm.champion.candidate.id, spent


def test_early_rejection_leaves_the_search_as_it_is():
    *full, spent_full = trajectory(early=False)
    *early, spent_early = trajectory(early=True)
    assert early == full
    assert spent_early < spent_full
