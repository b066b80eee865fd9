import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.algorithms.auto import Auto
from evomerge.algorithms.nevergrad_adapter import CmaEs
from evomerge.algorithms.optuna_adapter import Nsga2
from evomerge.algorithms.random_search import RandomSearch
from evomerge.core.candidate import Evaluation, Proposal, known_margins, split_scores
from evomerge.core.objective import Objective, Objectives
from evomerge.core.recipe import Recipe
from evomerge.errors import EvaluationError, ReplayError
from evomerge.search.events import candidate_of
from evomerge.search.loop import LoopPlan, SearchLoop
from evomerge.search.ports import Outcome

from .fakes import SPACE, Killed, MemoryLog, ShuffledExecutor, make_loop, replayable, score

ALGORITHMS = {
    "random": lambda: None,
    "cma_es": CmaEs,
    "nsga2": lambda: Nsga2(population_size=8),
    "auto": Auto,  # learns from margins
}


def run(seed=0, *, slots=4, make=lambda: None, **options):
    log = MemoryLog()
    loop = make_loop(log, algorithm=make(), **options)
    reason = loop.run(ShuffledExecutor(seed, slots))
    return log, loop, reason


@pytest.mark.parametrize("make", ALGORITHMS.values(), ids=ALGORITHMS)
def test_ordered_journal_does_not_depend_on_timing_or_workers(make):
    journals = [
        run(seed, slots=slots, make=make)[0].events for seed, slots in [(0, 1), (1, 4), (2, 9)]
    ]
    assert journals[0] == journals[1] == journals[2]


def test_completed_order_tells_as_results_arrive():
    log, _, reason = run(1, tell_order="completed")
    told = [event["id"] for event in log.events if event["kind"] == "told"]
    assert reason == "budget"
    assert told != sorted(told)
    assert sorted(told) == list(range(60))


def test_every_told_event_comes_after_its_asked_event_and_before_later_asks():
    log, _, _ = run(look_ahead=5)
    seen, in_flight = set(), 0
    for event in log.events:
        if event["kind"] == "asked":
            seen.add(event["id"])
            in_flight += 1
            assert in_flight <= 5
        else:
            assert event["id"] in seen
            in_flight -= 1


@settings(max_examples=40, deadline=None)
@given(
    kill_after=st.lists(st.integers(1, 15), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
    name=st.sampled_from(sorted(ALGORITHMS)),
)
def test_killed_and_resumed_run_ends_with_the_same_journal(kill_after, seed, name):
    make = ALGORITHMS[name]
    whole, undisturbed = MemoryLog(), ShuffledExecutor(seed)
    make_loop(whole, algorithm=make(), evaluations=40).run(undisturbed)
    log = MemoryLog()
    scored: list[int] = []
    for stop_after in [*kill_after, None]:
        loop = make_loop(log, algorithm=make(), evaluations=40)
        loop.replay(replayable(log))
        executor = ShuffledExecutor(seed, stop_after=stop_after)
        with contextlib.suppress(Killed):
            loop.run(executor)
        scored += executor.scored
    assert log.events == whole.events
    assert sorted(scored) == sorted(undisturbed.scored), "parked results must not be scored again"
    assert not log.park_box


@pytest.mark.parametrize("keeps", [True, False])
def test_margins_are_told_where_the_run_keeps_them(keeps):
    class Heard(RandomSearch):
        def tell(self, evaluation):
            margins.append(evaluation.flat_margins())
            super().tell(evaluation)

    margins: list = []
    log = MemoryLog()
    make_loop(log, algorithm=Heard(), evaluations=20, margins=keeps).run(ShuffledExecutor(0))
    assert len(margins) == 20
    kept = [row for _, row in log.rows]
    np.testing.assert_array_equal(margins, kept)
    right = [row for row, _ in log.rows]
    if keeps:
        np.testing.assert_array_equal(np.array(kept) > 0, np.array(right) == 1.0)
    else:
        assert np.isnan(kept).all()


def test_a_recipe_scored_in_two_parts_has_the_margins_of_both():
    class InTwoParts:
        def start(self, space, objectives, rng):
            recipe = space.decode(space.initial())
            parts = (np.arange(7), np.arange(16))
            self.left = [Proposal(recipe, (), "", part) for part in parts]
            self.told = []

        def ask(self):
            return self.left.pop(0) if self.left and len(self.told) == 2 - len(self.left) else None

        def tell(self, evaluation):
            self.told.append(evaluation)

    def some(candidate):
        whole = score(candidate)
        hidden = np.ones(16, bool)
        hidden[candidate.examples] = False
        scores, margins = whole.flat_scores(), whole.flat_margins()
        scores[hidden] = margins[hidden] = np.nan
        sizes = {"a": 10, "b": 6}
        cut = split_scores(scores, sizes), known_margins(margins, sizes)
        return Evaluation(candidate, cut[0], None, "w", candidate.examples, cut[1])

    algorithm = InTwoParts()
    make_loop(algorithm=algorithm, evaluations=3).run(ShuffledExecutor(0, scorer=some))
    first, second = algorithm.told
    expected = score(second.candidate).flat_margins()
    np.testing.assert_array_equal(first.flat_margins()[:7], expected[:7])
    assert np.isnan(first.flat_margins()[7:]).all()
    np.testing.assert_array_equal(second.flat_margins(), expected)


def test_journal_cut_at_any_event_resumes_to_the_same_end():
    whole = run(evaluations=20, make=CmaEs)[0]
    for cut in range(len(whole.events)):
        log = MemoryLog()
        log.events = whole.events[:cut]
        log.rows = whole.rows[: sum(e["kind"] == "told" for e in log.events)]
        loop = make_loop(log, algorithm=CmaEs(), evaluations=20)
        loop.replay(replayable(log))
        loop.run(ShuffledExecutor(cut))
        assert log.events == whole.events


@pytest.mark.parametrize("stop_at", [1, 7, 23])
def test_a_drained_run_resumes_to_the_same_journal(stop_at):
    whole = run(make=CmaEs)[0]
    log = MemoryLog()
    loop = make_loop(log, algorithm=CmaEs())
    loop.on_change = lambda it: setattr(it, "stop_requested", it.n_told >= stop_at)
    assert loop.run(ShuffledExecutor(5)) == "interrupted"
    assert loop.n_told >= stop_at
    again = make_loop(log, algorithm=CmaEs())
    again.replay(replayable(log))
    assert again.run(ShuffledExecutor(6)) == "budget"
    assert log.events == whole.events


def test_replay_refuses_another_seed():
    log = run()[0]
    with pytest.raises(ReplayError, match="ask #0 now yields recipe"):
        make_loop(seed=4).replay(replayable(log))


def test_failed_candidates_are_journalled_counted_and_kept_off_the_front():
    def flaky(candidate):
        return Evaluation(candidate, error="no luck") if candidate.id % 3 == 0 else score(candidate)

    log = MemoryLog()
    loop = make_loop(log, evaluations=30, algorithm=Nsga2(population_size=6))
    executor = ShuffledExecutor(0, scorer=flaky)
    loop.run(executor)
    failed = sum(number % 3 == 0 for number in executor.scored)  # a repeated recipe is not scored
    assert failed >= 8
    assert loop.population.failures == failed
    assert sum("error" in event for event in log.events) == failed


def test_a_second_result_for_a_candidate_is_dropped():
    class Twice(ShuffledExecutor):
        def wait(self, timeout):
            done = super().wait(timeout)
            return done + [Outcome(o.evaluation, 0.0, "twin") for o in done]

    log = MemoryLog()
    make_loop(log).run(Twice(0))
    assert log.events == run()[0].events
    assert any("second result was dropped" in note for note in log.notes)


def test_founders_come_first_and_freeze_the_reference_point():
    raw = Recipe(
        "linear", SPACE.sources, {"weights": np.eye(3)[[1]]}, settings={"normalize": False}
    )
    own = SPACE.decode(np.array([0.2, 0.4]))
    from dataclasses import replace

    space = replace(
        SPACE, founders=(Proposal(own, (), "founder: own"), Proposal(raw, (), "founder: x"))
    )

    def by_shape(candidate):
        if candidate.recipe.operator == "linear":
            return Evaluation(
                candidate, {"a": np.ones(10, np.float32), "b": np.zeros(6, np.float32)}
            )
        return score(candidate)

    log = MemoryLog()
    loop = make_loop(log, space=space, evaluations=10)
    loop.run(ShuffledExecutor(0, scorer=by_shape))
    assert [e["origin"] for e in log.events if e["kind"] == "asked"][:2] == [
        "founder: own",
        "founder: x",
    ]
    assert loop.front.reference is not None
    told = [e["objectives"] for e in log.events if e["kind"] == "told"][:2]
    low, high = np.min(told, axis=0), np.max(told, axis=0)
    assert np.allclose(loop.front.reference, low - 0.1 * (high - low))


def test_a_time_limit_drains():
    log = MemoryLog()
    loop = make_loop(log)
    object.__setattr__(loop.plan, "seconds", 0.0)
    assert loop.run(ShuffledExecutor(0)) == "seconds"


def failing_from(first):
    return lambda c: score(c) if c.id < first else Evaluation(c, error="no luck")


@pytest.mark.parametrize("first", [0, 7])
def test_ten_failures_in_a_row_stop_the_search_and_say_why(first):
    log = MemoryLog()
    loop = make_loop(log)
    with pytest.raises(EvaluationError, match=r"the last 10 candidates all failed.*no luck"):
        loop.run(ShuffledExecutor(0, scorer=failing_from(first)))
    assert sum("error" in event for event in log.events) == 10
    again = make_loop(log)
    again.replay(replayable(log))
    assert again.run(ShuffledExecutor(1)) == "budget", "once mended, the run goes on"


def test_a_short_search_in_which_all_fail_is_an_error():
    with pytest.raises(EvaluationError, match=r"all 6 candidates failed.*no luck"):
        make_loop(evaluations=6).run(ShuffledExecutor(0, scorer=failing_from(0)))


def test_seven_objectives_have_a_front_and_no_hypervolume():
    names = [f"o{i}" for i in range(7)]
    objectives = Objectives(tuple(Objective(name, {"a": 1.0}) for name in names))
    loop = SearchLoop(
        algorithm=RandomSearch(),
        space=SPACE,
        objectives=objectives,
        log=MemoryLog(),
        plan=LoopPlan(0, 12, 3, tasks={"a": 10, "b": 6}),
    )
    assert loop.run(ShuffledExecutor(0)) == "budget"
    assert len(loop.front) >= 1
    assert loop.front.hypervolume() is None


class AsksForParts:
    """Asks for the first half of a recipe's examples, then for all of them, then again."""

    def start(self, space, objectives, rng):
        self.space, self.rng, self.turn, self.told = space, rng, 0, []

    def ask(self):
        if self.turn % 3 == 0:
            self.recipe = self.space.decode(self.rng.random(2))
        self.turn += 1
        first_half = np.concatenate([np.arange(5), 10 + np.arange(3)])
        return Proposal(self.recipe, examples=first_half if self.turn % 3 == 1 else None)

    def tell(self, evaluation):
        self.told.append(evaluation)


def score_asked(candidate):
    whole = score(candidate)
    if candidate.examples is None:
        return whole
    row = np.full(16, np.nan, np.float32)
    row[candidate.examples] = whole.flat_scores()[candidate.examples]
    return Evaluation(candidate, split_scores(row, {"a": 10, "b": 6}), None, "w")


def run_in_parts(seed, *, log=None, stop_after=None, look_ahead=1):
    log = log or MemoryLog()
    algorithm = AsksForParts()
    loop = make_loop(log, algorithm=algorithm, evaluations=20, look_ahead=look_ahead)
    loop.replay(replayable(log))
    executor = ShuffledExecutor(seed, scorer=score_asked, stop_after=stop_after)
    with contextlib.suppress(Killed):
        loop.run(executor)
    return loop, executor


def test_a_part_is_scored_once_and_told_with_what_is_known():
    loop, executor = run_in_parts(0)
    told = loop.algorithm.told
    parts = [item for item in told if item.examples is not None]
    assert parts
    for part in parts:
        assert np.isfinite(part.flat_scores()[part.examples]).all()
        assert np.isnan(part.flat_scores()).sum() == 8
    for item in told:
        if item.examples is None:
            np.testing.assert_array_equal(item.flat_scores(), score(item.candidate).flat_scores())
    asked = [event for event in loop.log.events if event["kind"] == "asked"]
    repeats = len(asked) - len(executor.scored)
    assert repeats > 0, "the third time nothing is left to score"
    assert 20 <= loop.done < 21
    assert len(loop.population) == len(told) - len(parts)


def test_parts_count_only_for_the_examples_asked():
    loop, _ = run_in_parts(0)
    cost = sum(
        16 if e.get("examples") is None else 8 for e in loop.log.events if e["kind"] == "asked"
    )
    assert loop.examples_told == loop.examples_asked == cost


@pytest.mark.parametrize("look_ahead", [1, 4])
def test_a_killed_run_in_parts_ends_with_the_same_journal(look_ahead):
    whole, _ = run_in_parts(3, look_ahead=look_ahead)
    log = MemoryLog()
    for stop_after in [1, 4, 2, 9, None]:
        run_in_parts(3, log=log, stop_after=stop_after, look_ahead=look_ahead)
    assert log.events == whole.log.events


def test_replay_refuses_other_examples():
    loop, _ = run_in_parts(0)
    asked = next(
        e for e in loop.log.events if e.get("examples") is not None and e["kind"] == "asked"
    )
    asked["examples"] = "8:0000000000000000"
    with pytest.raises(ReplayError, match="now yields"):
        run_in_parts(0, log=loop.log)


def test_a_kept_result_of_other_examples_is_scored_again():
    whole, _ = run_in_parts(0)
    log = MemoryLog()
    for candidate_id in (0, 1):  # the first half of a recipe, then all of it
        event = [e for e in whole.log.events if e["kind"] == "asked"][candidate_id]
        candidate = candidate_of(event, 3)
        row = np.full(16, np.nan, np.float32)
        row[:2] = 0.5
        scores = split_scores(row, {"a": 10, "b": 6})
        log.park_box[candidate_id] = Evaluation(candidate, scores, None, "w")
    run_in_parts(0, log=log)
    assert log.events == whole.log.events


def test_a_search_that_scores_no_candidate_in_full_has_not_failed():
    class Halves(AsksForParts):
        def ask(self):
            self.turn = 0
            return super().ask()

    loop = make_loop(algorithm=Halves(), evaluations=3)
    assert loop.run(ShuffledExecutor(0, scorer=score_asked)) == "budget"
    assert not len(loop.population)
