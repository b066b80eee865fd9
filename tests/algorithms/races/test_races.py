"""Races change how much is scored, and (lossless) nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import evomerge.algorithms.races  # noqa: F401
from evomerge.algorithms.algorithm import search_algorithms
from evomerge.algorithms.m2n2 import M2N2
from evomerge.algorithms.nevergrad_adapter import CmaEs
from evomerge.algorithms.races.growing import Growing
from evomerge.algorithms.races.halving import Halving
from evomerge.algorithms.races.lossless import Lossless
from evomerge.algorithms.races.paired import Paired
from evomerge.algorithms.races.race import estimate, races
from evomerge.core.candidate import Candidate, Evaluation, Proposal, split_scores
from evomerge.core.objective import Objectives
from evomerge.errors import ConfigError
from evomerge.search.loop import LoopPlan, SearchLoop
from evomerge.seeding import generator
from evomerge.testing import check_search_algorithm, linear_problem
from tests.search.fakes import MemoryLog

SIZES = {"first": 16, "second": 8}
RACED = [
    (name, race)
    for name in ("m2n2", "cma_es", "random", "tpe", "auto", "ga", "nsga2")
    for race in (
        Paired(first=4),
        Paired(first=6, test="wilcoxon", compare="front"),
        Halving(cohort=4, first=0.25),
        Growing(first=4, per_level=5),
    )
] + [("m2n2", Lossless(first=4))]


@pytest.mark.parametrize(("name", "race"), RACED, ids=str)
def test_conformance(name, race):
    cls = search_algorithms.get(name)
    check_search_algorithm(lambda: race.around(cls()))


class Scorer:
    """Scores the examples asked for, at once."""

    def __init__(self, problem):
        self.problem, self.done = problem, []
        self.examples = 0

    def submit(self, candidate):
        row = Evaluation(candidate, self.problem.scores(candidate.recipe)).flat_scores()
        asked = np.arange(24) if candidate.examples is None else candidate.examples
        self.examples += len(asked)
        kept = np.full(24, np.nan, np.float32)
        kept[asked] = row[asked]
        from evomerge.search.ports import Outcome

        self.done.append(Outcome(Evaluation(candidate, split_scores(kept, SIZES), None, "w")))

    def wait(self, timeout):
        done, self.done = self.done, []
        return done

    def withdraw(self):
        return []


def search(algorithm, evaluations=120, on_change=None, objectives=None):
    problem = linear_problem()
    if objectives is not None:
        problem = type(problem)(problem.space, objectives, problem.vectors)
    plan = LoopPlan(1, evaluations, 1, tasks=SIZES)
    loop = SearchLoop(
        algorithm=algorithm,
        space=problem.space,
        objectives=problem.objectives,
        log=MemoryLog(),
        plan=plan,
        on_change=on_change,
    )
    scorer = Scorer(problem)
    loop.run(scorer)
    return loop, scorer


def test_lossless_archive_is_the_same_after_every_candidate():
    def archives(race):
        seen = []

        def look(loop):
            inner = getattr(loop.algorithm, "inner", loop.algorithm)
            state = inner.archive_scores().tobytes()
            if not seen or seen[-1] != state:
                seen.append(state)

        made = M2N2(population_size=6)
        _, scorer = search(made if race is None else race.around(made), 250, look)
        return seen, scorer.examples

    plain, all_examples = archives(None)
    raced, some_examples = archives(Lossless(first=4))
    assert len(plain) > 20
    shorter = min(len(plain), len(raced))
    assert raced[:shorter] == plain[:shorter]
    assert len(raced) > len(plain), "the examples saved are spent on more candidates"
    assert some_examples <= all_examples + 24


def test_lossless_needs_an_archive():
    with pytest.raises(ConfigError, match=r"`paired` or `halving`"):
        Lossless().around(CmaEs())


def best_value(loop) -> float:
    return float(loop.population.objectives()[:, 0].max())


def only(name):
    problem = linear_problem()
    return Objectives(tuple(i for i in problem.objectives.items if i.name == name))


@pytest.mark.parametrize(
    "race", [Paired(first=4), Halving(cohort=6, first=0.25), Growing(first=4)], ids=str
)
def test_more_candidates_for_the_same_examples(race):
    plain, _ = search(CmaEs(), 60, objectives=only("second"))
    raced, scorer = search(race.around(CmaEs()), 60, objectives=only("second"))
    assert scorer.examples <= 61 * 24
    assert len(raced._digests) > 1.3 * len(plain._digests)
    assert best_value(raced) >= best_value(plain) - 0.02


@pytest.mark.parametrize(
    "race", [Paired(first=4), Halving(cohort=4, first=0.25), Growing(first=4)], ids=str
)
def test_a_raced_run_resumes_from_its_journal(race):
    check_resumes(race, 9, 30, -5)


def check_resumes(race, *cuts: int) -> None:
    """Cut a run's journal after so many events, go on, and compare with the run undisturbed."""
    whole, _ = search(race.around(CmaEs()), 40)
    for cut in cuts:
        problem, log = linear_problem(), MemoryLog()
        log.events = whole.log.events[:cut]
        log.rows = whole.log.rows[: sum(e["kind"] == "told" for e in log.events)]
        loop = SearchLoop(
            algorithm=race.around(CmaEs()),
            space=problem.space,
            objectives=problem.objectives,
            log=log,
            plan=LoopPlan(1, 40, 1, tasks=SIZES),
        )
        loop.replay(replayed(log))
        loop.run(Scorer(problem))
        assert log.events == whole.log.events


def replayed(log):
    from evomerge.core.candidate import scored_examples

    for event in log.events:
        if event["kind"] == "asked":
            yield event, None
        else:
            row = log.rows[event["row"]][0]
            scores = split_scores(row, SIZES)
            yield event, Evaluation(Candidate(-1, None), scores, None, "w", scored_examples(row))


def test_estimates_move_the_reference_by_the_difference_seen():
    rng = generator(0, "test")
    reference = rng.random(24).astype(np.float32)
    row = reference.copy()
    row[:16] *= 0.5
    hidden = row.copy()
    hidden[8:16] = np.nan
    hidden[20:] = np.nan
    partial = Evaluation(Candidate(0, None), split_scores(hidden, SIZES))
    guess = estimate(partial, reference, SIZES).flat_scores()
    assert np.isfinite(guess).all()
    np.testing.assert_array_equal(guess[:8], row[:8])
    np.testing.assert_allclose(guess[20:], reference[20:], atol=1e-6)  # no difference was seen
    shift = (row[:8] - reference[:8]).mean()
    assert guess[8:16].mean() == pytest.approx(max(0.0, reference[8:16].mean() + shift), abs=0.1)
    assert (guess >= 0.0).all()
    assert (guess <= 1.0).all()


@pytest.mark.parametrize(
    ("race", "settings", "message"),
    [
        ("paired", {"test": "wilcoxen"}, "wilcoxon"),
        ("paired", {"confidence": 0.4}, "confidence"),
        ("paired", {"compare": "all"}, "compare"),
        ("halving", {"cohort": 1}, "cohort"),
        ("halving", {"eta": 1.0}, "eta"),
        ("halving", {"first": 0.0}, "first"),
    ],
)
def test_settings_that_cannot_work_are_refused(race, settings, message):
    with pytest.raises(ConfigError, match=message):
        races.get(race)(**settings)


class Scripted:
    """Proposes given recipes and remembers what it is told."""

    def __init__(self, recipes):
        self.recipes, self.told = list(recipes), []

    def start(self, space, objectives, rng):
        pass

    def ask(self):
        return Proposal(self.recipes.pop(0)) if self.recipes else None

    def tell(self, evaluation):
        self.told.append(evaluation)


def told(number, recipe, value, asked, scored=None):
    """An evaluation of which (n,) examples are scored, all alike, as the loop tells it."""
    row = np.full(24, value, np.float32)
    if scored is not None:
        row[np.setdiff1d(np.arange(24), scored)] = np.nan
    candidate = Candidate(number, recipe, examples=asked)
    return Evaluation(candidate, split_scores(row, SIZES), None, "w", scored)


def started(race, recipes):
    problem, inner = linear_problem(), Scripted(recipes)
    racing = race.around(inner)
    racing.start(problem.space, problem.objectives, generator(0, "test"))
    return inner, racing


BASE, GOOD = (founder.recipe for founder in linear_problem().space.founders[:2])


@pytest.mark.parametrize("race", [Paired(first=4), Halving(cohort=2, first=0.25)], ids=str)
def test_a_founder_that_fails_ends_no_candidate_of_its_recipe(race):
    inner, racing = started(race, [GOOD])
    racing.tell(told(0, BASE, 0.2, None))
    examples = racing.ask().examples
    racing.tell(Evaluation(Candidate(1, GOOD), error="out of memory"))
    racing.tell(told(2, GOOD, 0.6, examples, examples))
    assert len(racing.ask().examples)
    assert [e.candidate.id for e in inner.told] == [0, 1]


def test_asks_of_halving_that_wait_change_nothing():
    others = [founder.recipe for founder in linear_problem().space.founders[2:]]
    n_asked = []
    for waits in (False, True):
        inner, racing = started(Halving(cohort=2, first=0.25), [GOOD])
        racing.tell(told(0, BASE, 0.2, None))
        failing = Candidate(1, GOOD, examples=racing.ask().examples)
        racing.tell(Evaluation(failing, error="failed"))
        if waits:
            assert racing.ask() is None
        inner.recipes = [*others, *others]
        asked = [racing.ask() for _ in range(4)]
        n_asked.append(sum(proposal is not None for proposal in asked))
    assert n_asked == [2, 2]


def test_lossless_keeps_the_order_of_examples_block_after_block():
    order = generator(0, "order").permutation(24)

    class Archive(Scripted):
        def example_order(self, proposal):
            return order

        def rejects(self, examples, scores):
            return False

    inner = Archive([GOOD])
    racing = Lossless(first=4, growth=2.0).around(inner)
    problem = linear_problem()
    racing.start(problem.space, problem.objectives, generator(0, "test"))
    racing.tell(told(0, BASE, 0.2, None))
    first = racing.ask().examples
    np.testing.assert_array_equal(first, np.sort(order[:4]))
    racing.tell(told(1, GOOD, 0.6, first, first))
    np.testing.assert_array_equal(racing.ask().examples, np.sort(order[4:8]))


def test_a_candidate_told_before_the_champion_of_its_recipe_goes_on():
    inner, racing = started(Growing(first=4, coarsest=6, per_level=1), [GOOD, GOOD])
    racing.tell(told(0, BASE, 0.2, None))
    sample = racing.ask().examples
    racing.tell(told(1, GOOD, 0.6, sample, sample))
    champion, again = racing.ask(), racing.ask()
    assert champion.origin == "champion"
    np.testing.assert_array_equal(again.examples, sample)
    racing.tell(told(3, GOOD, 0.6, np.zeros(0, dtype=np.int64), sample))
    assert len(racing.ask().examples), "more of the candidate, not nothing of the champion"
    racing.tell(told(2, GOOD, 0.6, champion.examples))
    assert [e.candidate.id for e in inner.told] == [0, 1, 2]
