"""Journals of runs whose recipes name ancestors: short lines, whole recipes, the same on resume."""

from __future__ import annotations

import json

import numpy as np
import pytest

from evomerge.algorithms.m2n2 import M2N2
from evomerge.core.ancestry import ancestor_name
from evomerge.core.candidate import Evaluation, split_scores
from evomerge.core.recipe import Recipe
from evomerge.errors import JournalError
from evomerge.search.events import candidate_of
from evomerge.search.journal_recipes import JournalRecipes
from evomerge.search.loop import LoopPlan, SearchLoop
from evomerge.testing import linear_problem
from tests.search.fakes import Killed, MemoryLog, ShuffledExecutor

PROBLEM = linear_problem()
SIZES = {"first": 16, "second": 8}
EVALUATIONS = 120


def score(candidate) -> Evaluation:
    return Evaluation(candidate, PROBLEM.scores(candidate.recipe), None, "w")


def make(log: MemoryLog) -> SearchLoop:
    plan = LoopPlan(seed=3, evaluations=EVALUATIONS, look_ahead=4, tasks=SIZES)
    algorithm = M2N2(population_size=5, mutation=0.05, max_noise=3)
    return SearchLoop(
        algorithm=algorithm,
        space=PROBLEM.space,
        objectives=PROBLEM.objectives,
        log=log,
        plan=plan,
    )


@pytest.fixture(scope="module")
def journal():
    log = MemoryLog()
    make(log).run(ShuffledExecutor(0, scorer=score))
    return json.loads(json.dumps(log.events))


def asked(events):
    return [event for event in events if event["kind"] == "asked"]


def test_lines_do_not_repeat_what_earlier_ones_have(journal):
    recipes = [event["recipe"] for event in asked(journal)]
    assert not any("ancestors" in recipe for recipe in recipes)
    assert any(source.startswith("ancestor:") for r in recipes for source in r["sources"])
    assert max(len(json.dumps(event)) for event in journal) < 2000


def test_every_recipe_is_read_back_whole(journal):
    recipes, longest = JournalRecipes.of_events(journal), 0
    for event in reversed(asked(journal)):
        recipe = candidate_of(event, 3, recipes).recipe
        assert recipe.digest() == event["digest"]
        longest = max(longest, len(recipe.closure()))
        bare = candidate_of(event, 3).recipe
        assert bare.digest() == event["digest"]
        assert not bare.ancestors
    assert longest > 20


@pytest.mark.parametrize("killed_at", [40, 90])
def test_a_resumed_run_goes_on_as_if_it_had_not_ended(journal, killed_at):
    log = MemoryLog()
    with pytest.raises(Killed):
        make(log).run(ShuffledExecutor(1, scorer=score, stop_after=killed_at))
    pairs = []
    for event in json.loads(json.dumps(log.events)):
        found = None
        if event["kind"] == "told":
            row = np.asarray(log.rows[event["row"]][0])
            found = Evaluation(None, split_scores(row, SIZES), None, event["weights"])
        pairs.append((event, found))
    again = make(log)
    again.replay(pairs)
    again.run(ShuffledExecutor(2, scorer=score))
    assert json.loads(json.dumps(log.events)) == journal


def test_descendants_of_a_lost_line_are_refused(journal):
    events = asked(journal)
    last = next(e for e in reversed(events) if "ancestor:" in " ".join(e["recipe"]["sources"]))
    named = [s for s in last["recipe"]["sources"] if s.startswith("ancestor:")]
    left = [event for event in events if ancestor_name(event["digest"]) != named[0]]
    with pytest.raises(JournalError, match=f"^journal: candidate {last['id']}: the recipe of"):
        candidate_of(last, 3, JournalRecipes.of_events(left))
    swapped = [
        event | {"recipe": last["recipe"]} if ancestor_name(event["digest"]) == named[0] else event
        for event in events
    ]
    with pytest.raises(JournalError, match="ancestor"):
        candidate_of(last, 3, JournalRecipes.of_events(swapped))


def test_ancestors_of_another_run_are_written_once(journal):
    """A warm start brings recipes whose ancestors may not be among its own."""
    recipes = JournalRecipes.of_events(journal)
    events = asked(journal)
    taken = [candidate_of(event, 3, recipes).recipe for event in events[-2:]]
    assert all(recipe.ancestors for recipe in taken)
    held: set[str] = set()
    bodies = []
    for recipe in taken:
        bodies.append(recipe.to_json(held))
        held.update(recipe.lineage(held))
    names = [name for body in bodies for name in body.get("ancestors", {})]
    assert len(names) == len(set(names)) > 0
    lines = [(recipe.digest(), body) for recipe, body in zip(taken, bodies, strict=True)]
    back = [JournalRecipes(lines).read(body, "here") for _, body in lines]
    assert [set(b.closure()) for b in back] == [set(t.closure()) for t in taken]
    known: dict[str, Recipe] = {}
    for body in bodies:
        recipe = Recipe.from_json(body, known=known)
        known |= recipe.lineage(known)
