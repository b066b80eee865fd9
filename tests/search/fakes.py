"""In-memory log and scorers for loop tests."""

from __future__ import annotations

import random
from collections import deque

import numpy as np

from evomerge.algorithms.random_search import RandomSearch
from evomerge.core.candidate import Candidate, Evaluation, known_margins, scored_examples
from evomerge.core.objective import Objective, Objectives
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.search.loop import LoopPlan, SearchLoop
from evomerge.search.ports import Outcome

OBJECTIVES = Objectives((Objective("a", {"a": 1.0}), Objective("b", {"b": 1.0})))
SPACE = SearchSpace(
    "task_arithmetic",
    ("base", "x", "y"),
    "global",
    1,
    (SearchedParam("weights", 2, True, 0.0, 1.0, 0.5),),
    {"lambda_": np.ones(1)},
)


def score(candidate: Candidate) -> Evaluation:
    """A pure function of the recipe."""
    weights = candidate.recipe.params["weights"][0]
    margins = {
        "a": (weights[0] - np.arange(10) / 10).astype(np.float32),
        "b": (weights[1] - np.arange(6) / 6).astype(np.float32),
    }
    scores = {task: (own > 0.0).astype(np.float32) for task, own in margins.items()}
    return Evaluation(candidate, scores, None, "w", margins=margins)


class MemoryLog:
    def __init__(self) -> None:
        self.events: list = []
        self.rows: list = []
        self.notes: list[str] = []
        self.park_box: dict[int, Evaluation] = {}

    def append(self, event) -> None:
        self.events.append(dict(event))

    def append_scores(self, scores, margins=None):
        missing = np.full_like(scores, np.nan)
        self.rows.append((scores.copy(), missing if margins is None else margins.copy()))
        return len(self.rows) - 1, "digest"

    def read_scores(self, row, digest):
        return self.rows[row]

    def park(self, evaluation) -> None:
        self.park_box[evaluation.candidate.id] = evaluation

    def parked(self, candidate):
        found = self.park_box.get(candidate.id)
        return (
            found
            if found and found.candidate.recipe.digest() == candidate.recipe.digest()
            else None
        )

    def unpark(self, candidate_id) -> None:
        self.park_box.pop(candidate_id, None)

    def note(self, text) -> None:
        self.notes.append(text)

    def publish(self, front, *, force=False) -> None:
        self.front = front()


class ShuffledExecutor:
    """Finishes up to `slots` candidates at a time, in random order."""

    def __init__(self, seed: int, slots: int = 4, scorer=score, stop_after: int | None = None):
        self.rng = random.Random(seed)
        self.slots, self.scorer = slots, scorer
        self.queue: deque[Candidate] = deque()
        self.running: list[Candidate] = []
        self.scored: list[int] = []
        self.stop_after = stop_after

    def submit(self, candidate) -> None:
        self.queue.append(candidate)

    def wait(self, timeout):
        while self.queue and len(self.running) < self.slots:
            self.running.append(self.queue.popleft())
        if not self.running:
            return []
        if self.stop_after is not None and len(self.scored) >= self.stop_after:
            raise Killed
        done = [
            self.running.pop(self.rng.randrange(len(self.running)))
            for _ in range(self.rng.randint(1, len(self.running)))
        ]
        self.scored += [candidate.id for candidate in done]
        return [Outcome(self.scorer(candidate), 0.1, "w", 1) for candidate in done]

    def withdraw(self):
        ids = [candidate.id for candidate in self.queue]
        self.queue.clear()
        return ids

    def close(self) -> None:
        pass


class Killed(BaseException):
    """Stands for kill -9: nothing after it runs."""


def make_loop(
    log=None,
    *,
    evaluations=60,
    look_ahead=5,
    tell_order="asked",
    algorithm=None,
    seed=3,
    space=SPACE,
    margins=True,
):
    tasks = {"a": 10, "b": 6}
    return SearchLoop(
        algorithm=algorithm or RandomSearch(),
        space=space,
        objectives=OBJECTIVES,
        log=log if log is not None else MemoryLog(),
        plan=LoopPlan(seed, evaluations, look_ahead, tell_order, tasks=tasks, margins=margins),
    )


def replayable(log: MemoryLog):
    """Turn a MemoryLog's events into what `SearchLoop.replay` takes."""
    stand_in = Candidate(-1, None)
    for event in log.events:
        if event["kind"] == "asked":
            yield event, None
        elif "error" in event:
            yield event, Evaluation(stand_in, error=event["error"])
        else:
            row, leads = log.rows[event["row"]]
            scores, examples = {"a": row[:10], "b": row[10:]}, scored_examples(row)
            margins = known_margins(leads, {"a": 10, "b": 6})
            yield event, Evaluation(stand_in, scores, None, event["weights"], examples, margins)
