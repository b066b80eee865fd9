"""The process of one worker: candidates arrive as they were asked, with their ancestors."""

from __future__ import annotations

import pickle

import numpy as np

from evomerge.algorithms.noisy_lineage import NoisyLineage
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.runtime.scorer_actor import ScorerActor, call_of
from evomerge.search.ports import Outcome
from evomerge.seeding import generator
from evomerge.testing_problems import linear_problem

PROBLEM = linear_problem()


class Scorer:
    """Merges and scores in NumPy."""

    def evaluate(self, candidate: Candidate) -> Outcome:
        recipe = candidate.recipe
        assert not recipe.params["weights"].flags.writeable
        weights = f"{recipe.digest()} {len(recipe.closure())}"
        scores = PROBLEM.scores(recipe)
        return Outcome(Evaluation(candidate, scores, None, weights), 0.0, "w", 1)


def actor() -> ScorerActor:
    made = ScorerActor({})
    made._scorer = Scorer()
    return made


def offspring(n: int) -> list[Candidate]:
    lineage = NoisyLineage(span=PROBLEM.space.span, sigma=0.05, max_noise=4)
    rng = generator(4)
    members = [lineage.warm_up(rng) for _ in range(6)]
    children = []
    for i in range(n):
        a, b = (members[int(i)] for i in rng.permutation(6)[:2])
        members[int(rng.integers(6))] = child = lineage.cross(a, b, rng)
        children.append(Candidate(i, child))
    return children


def test_an_ancestor_travels_to_a_process_once():
    candidates, sizes = offspring(200), []
    scorer, sent = actor(), set()
    for candidate in candidates:
        call = pickle.dumps(call_of(candidate, sent))
        sizes.append(len(call))
        reply = scorer.evaluate(*pickle.loads(call))
        assert reply.error is None, reply.detail
        recipe = candidate.recipe
        assert reply.value[3] == f"{recipe.digest()} {len(recipe.closure())}"
        for task, values in PROBLEM.scores(recipe).items():
            assert np.array_equal(reply.value[0][task], values)
    assert sent == set().union(*(c.recipe.closure() for c in candidates))
    assert len(sent) > 50
    assert max(sizes[100:]) < len(pickle.dumps(candidates[-1])) / 4


def test_a_new_process_is_sent_everything():
    candidates = offspring(80)
    sent: set[str] = set()
    for candidate in candidates[:-1]:
        call_of(candidate, sent)
    lacking = actor().evaluate(*call_of(candidates[-1], set(sent)))
    assert "is missing" in (lacking.error or "")
    whole = actor().evaluate(*call_of(candidates[-1], set()))
    assert whole.error is None
