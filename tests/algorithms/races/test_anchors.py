"""The anchors race: the contract of algorithms, savings, the front, and resuming."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.algorithms.algorithm import search_algorithms
from evomerge.algorithms.nevergrad_adapter import CmaEs
from evomerge.algorithms.races.anchors import AnchorRace
from evomerge.algorithms.races.race import races
from evomerge.core.anchor_model import ESTIMATORS
from evomerge.core.candidate import Candidate, Evaluation, split_scores
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from evomerge.testing import check_search_algorithm, linear_problem
from tests.algorithms.races.test_races import SIZES, best_value, check_resumes, only, search

N = sum(SIZES.values())


@pytest.mark.parametrize(
    ("name", "pick", "estimator"),
    [
        ("m2n2", "clustered", "gmp_irt"),
        ("random", "random", "mp_irt"),
        ("ga", "item_clusters", "weighted"),
        ("nsga2", "entropy", "weighted"),
    ],
)
def test_conformance(name, pick, estimator):
    race = AnchorRace(n=6, pick=pick, warm_up=4, estimator=estimator, champion_every=1.0)
    check_search_algorithm(lambda: race.around(search_algorithms.get(name)()))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cma_es", "auto", "tpe"])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_conformance_of_more_algorithms(name, estimator):
    race = AnchorRace(n=6, estimator=estimator, champion_every=1.0)
    check_search_algorithm(lambda: race.around(search_algorithms.get(name)()))


class Listening:
    """An algorithm that proposes random points and keeps what it is told."""

    def start(self, space, objectives, rng):
        self.inner, self.heard = search_algorithms.get("random")(), []
        self.inner.start(space, objectives, rng)

    def ask(self):
        return self.inner.ask()

    def tell(self, evaluation):
        self.heard.append(evaluation)


def test_every_candidate_gets_the_same_anchors_and_all_scores():
    loop, _ = search(AnchorRace(n=6, champion_every=2.0).around(Listening()), 40)
    heard = loop.algorithm.inner.heard
    partly = [e for e in heard if e.examples is not None]
    assert {e.examples.tobytes() for e in partly} == {partly[0].examples.tobytes()}
    assert len(partly[0].examples) == 6
    problem = linear_problem()
    for evaluation in heard:
        told = evaluation.flat_scores()
        truth = Evaluation(
            evaluation.candidate, problem.scores(evaluation.candidate.recipe)
        ).flat_scores()
        real = slice(None) if evaluation.examples is None else evaluation.examples
        np.testing.assert_array_equal(told[real], truth[real])
        assert np.isfinite(told).all()
        assert told.min() >= 0.0
        assert told.max() <= 1.0


def test_champions_are_scored_in_full_and_only_they_reach_the_front():
    loop, _ = search(AnchorRace(n=6, champion_every=2.0).around(Listening()), 60)
    heard = loop.algorithm.inner.heard
    n_founders = len(linear_problem().space.founders)
    partly = {e.candidate.recipe.digest() for e in heard if e.examples is not None}
    champions = [e for e in heard[n_founders:] if e.examples is None]
    assert 24 <= len(champions) <= 28  # one in every two full evaluations' worth of examples
    assert all(e.candidate.recipe.digest() in partly for e in champions)
    full = {e.candidate.id for e in heard if e.examples is None}
    assert set(loop.front.front().candidate_ids.tolist()) <= full
    assert len(loop.population) == n_founders + len(champions)


def test_more_candidates_for_the_same_examples():
    plain, _ = search(CmaEs(), 60, objectives=only("second"))
    race = AnchorRace(n=6, champion_every=2.0)
    raced, scorer = search(race.around(CmaEs()), 60, objectives=only("second"))
    assert scorer.examples <= 61 * N
    assert len(raced._digests) > 1.5 * len(plain._digests)
    assert best_value(raced) >= best_value(plain) - 0.02


def test_a_run_on_anchors_resumes_from_its_journal():
    check_resumes(AnchorRace(n=6, champion_every=2.0), 5, -5)


def test_without_examples_to_save_everything_is_scored_in_full():
    loop, scorer = search(AnchorRace(n=N).around(Listening()), 10)
    assert all(e.examples is None for e in loop.algorithm.inner.heard)
    assert scorer.examples == 10 * N


def test_failed_founders_are_replaced_by_full_scores():
    problem = linear_problem()
    raced = AnchorRace(n=6).around(Listening())
    raced.start(problem.space, problem.objectives, generator(0, "algorithm"))
    for number, founder in enumerate(problem.space.founders):
        raced.tell(Evaluation(Candidate(number, founder.recipe), error="planned failure"))
    for number in range(len(problem.space.founders)):
        proposal = raced.ask()
        assert proposal.examples is None
        raced.tell(
            Evaluation(Candidate(10 + number, proposal.recipe), problem.scores(proposal.recipe))
        )
    proposal = raced.ask()
    assert len(proposal.examples) == 6
    row = np.full(N, np.nan, np.float32)
    row[proposal.examples] = 1.0
    raced.tell(
        Evaluation(
            Candidate(99, proposal.recipe, examples=proposal.examples),
            split_scores(row, SIZES),
            examples=proposal.examples,
        )
    )
    assert np.isfinite(raced.inner.heard[-1].flat_scores()).all()


def test_a_warm_up_is_scored_in_full():
    loop, _ = search(AnchorRace(n=6, pick="clustered", warm_up=5).around(Listening()), 20)
    n_founders = len(linear_problem().space.founders)
    whole = [e.examples is None for e in loop.algorithm.inner.heard[: n_founders + 6]]
    assert whole == [True] * (n_founders + 5) + [False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pick": "randon"}, "random"),
        ({"estimator": "mpirt"}, "mp_irt"),
        ({"n": 0}, "at least 1"),
        ({"warm_up": -1}, "warm_up 0"),
        ({"champion_every": 0.0}, "more than 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        races.get("anchors")(**settings)
