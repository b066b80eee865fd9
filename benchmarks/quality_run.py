"""One search on one problem: the real loop without files, and what is reported of it.

The search sees the search examples only. Reported is the candidate it would hand over: the
algorithm's own champion if it names one, else what `export --pick champion` takes: the best
mean of the objectives so far, by margins in a run that keeps them; held-out
examples are scored for those, and for the front at ten budgets.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from benchmarks.problems.problem import Problem
from evomerge.algorithms.algorithm import search_algorithms
from evomerge.algorithms.races.race import Race
from evomerge.core.arrays import FloatArray, IntArray, ScoreArray
from evomerge.core.candidate import Candidate, Evaluation, split_scores
from evomerge.core.champion import champion_of
from evomerge.core.pareto import ParetoFront, frozen_reference, hypervolume
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError, EvaluationError, EvomergeError
from evomerge.runtime.in_process import InProcessExecutor
from evomerge.search.loop import LoopPlan, SearchLoop
from evomerge.search.ports import Outcome

N_CHECKPOINTS = 10


@dataclass(frozen=True)
class RunResult:
    """One algorithm on one problem from one seed.

    Attributes:
        problem: Its name.
        algorithm: Registered name.
        seed: Of the algorithm.
        budget: Example-evaluations it was given.
        spent: Example-evaluations it used, founders included.
        steps: (example-evaluations, search mean, held-out mean) each time the reported candidate
            changed; the first is the first candidate scored.
        checkpoints: Ten budgets in example-evaluations.
        hypervolumes: Held-out hypervolume of the search's front at each of them, over a
            reference point that the founders set.
        cpu_seconds: Of the search alone, held-out scoring left out.
        note: Why there are no steps, "" when there are.
    """

    problem: str
    algorithm: str
    seed: int
    budget: int
    spent: int = 0
    steps: list[tuple[int, float, float]] = field(default_factory=list)
    checkpoints: list[int] = field(default_factory=list)
    hypervolumes: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    note: str = ""

    def held_out_at(self, spent: float) -> float:
        """Return the held-out mean of what would be reported after so many example-evaluations."""
        value = self.steps[0][2]
        for when, _, held_out in self.steps:
            if when > spent:
                break
            value = held_out
        return value

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return asdict(self)


class MemoryLog:
    """A run log that keeps the scores alone: the benchmark reads the loop itself."""

    def __init__(self) -> None:
        self._rows: list[tuple[ScoreArray, ScoreArray]] = []

    def append(self, event: Mapping[str, Any]) -> None:
        """Forget an event."""

    def append_scores(
        self, scores: ScoreArray, margins: ScoreArray | None = None
    ) -> tuple[int, str]:
        """Keep a row."""
        missing = np.full_like(scores, np.nan)
        self._rows.append((scores.copy(), missing if margins is None else margins.copy()))
        return len(self._rows) - 1, ""

    def read_scores(self, row: int, digest: str) -> tuple[ScoreArray, ScoreArray]:
        """Return a row."""
        del digest
        return self._rows[row]

    def park(self, evaluation: Evaluation) -> None:
        """Forget a result: nothing can crash between here and its turn."""

    def parked(self, candidate: Candidate) -> Evaluation | None:
        """Return None."""
        del candidate

    def unpark(self, candidate_id: int) -> None:
        """Nothing is parked."""

    def note(self, text: str) -> None:
        """Forget a line."""

    def publish(self, front: Callable[[], list[dict[str, Any]]], *, force: bool = False) -> None:
        """Publish nothing."""


class ProblemScorer:
    """Scores candidates on a problem's search examples."""

    def __init__(self, problem: Problem) -> None:
        """Args: problem: whose candidates are scored."""
        self._problem = problem
        self.recipes: dict[int, Recipe] = {}  # by candidate id
        self.evaluations: dict[int, Evaluation] = {}  # of those scored in full

    def evaluate(self, candidate: Candidate) -> Outcome:
        """Return scores, or the error of a candidate that cannot be merged."""
        self.recipes[candidate.id] = candidate.recipe
        try:
            found = self._problem.evaluation(candidate, "search")
        except (ConfigError, EvaluationError) as error:
            return Outcome(Evaluation(candidate, error=str(error)))
        shown = (only(given, candidate.examples) for given in (found.scores, found.margins))
        scores, margins = shown
        if candidate.examples is None:
            self.evaluations[candidate.id] = found
        return Outcome(Evaluation(candidate, scores, margins=margins))


def only(scores: Mapping[str, ScoreArray], examples: IntArray | None) -> dict[str, ScoreArray]:
    """Return scores with NaN for what was not asked for, so that nobody can look at it."""
    if not scores:
        return {}
    sizes = {task: len(own) for task, own in scores.items()}
    row = np.concatenate([scores[task] for task in sorted(scores)])
    if examples is not None:
        hidden = np.ones(len(row), dtype=bool)
        hidden[examples] = False
        row = np.where(hidden, np.float32(np.nan), row)
    return split_scores(row, sizes)


class Recorder:
    """Follows one loop; see `RunResult` for what it collects."""

    def __init__(self, problem: Problem, scorer: ProblemScorer, checkpoints: list[int]) -> None:
        """Args: scorer: what the search has scored; checkpoints: budgets, rising."""
        self._problem = problem
        self._recipes, self._evaluations = scorer.recipes, scorer.evaluations
        self._held_out: dict[str, FloatArray] = {}
        self._checkpoints = checkpoints
        self._reference: FloatArray | None = None
        self._reported = -1
        self.steps: list[tuple[int, float, float]] = []
        self.hypervolumes: list[float] = []
        self.seconds = 0.0  # of processor time spent here

    def after_tell(self, loop: SearchLoop) -> None:
        """Look at the loop after one more result."""
        started = time.process_time()
        spent = loop.examples_told
        best = self._best(loop)
        if best is not None and best != self._reported:
            self._reported = best
            row = int(np.flatnonzero(loop.population.candidate_ids == best)[0])
            value = float(loop.population.objectives()[row].mean())
            self.steps.append((spent, value, float(self._held_out_values(best).mean())))
        while (
            len(self.hypervolumes) < len(self._checkpoints)
            and spent >= self._checkpoints[len(self.hypervolumes)]
        ):
            self.hypervolumes.append(self._hypervolume(loop.front.front()))
        self.seconds += time.process_time() - started

    def finish(self, loop: SearchLoop) -> None:
        """Fill the checkpoints that a search which ended early did not reach."""
        while len(self.hypervolumes) < len(self._checkpoints):
            self.hypervolumes.append(self._hypervolume(loop.front.front()))

    def _best(self, loop: SearchLoop) -> int | None:
        champion = getattr(loop.algorithm, "champion", None)
        if isinstance(champion, Evaluation) and champion.candidate.id in self._recipes:
            return champion.candidate.id
        if getattr(loop.algorithm, "uses_margins", False) and self._evaluations:
            told = [i for i in self._evaluations if i not in loop.waiting]
            found = champion_of([self._evaluations[i] for i in told], self._problem.objectives)
            return told[found]
        values = loop.population.objectives()
        if not len(values):
            return None
        return int(loop.population.candidate_ids[int(values.mean(axis=1).argmax())])

    def _held_out_values(self, candidate_id: int) -> FloatArray:
        """Return (M,) objectives of a candidate on the held-out examples."""
        recipe = self._recipes[candidate_id]
        key = recipe.digest()
        if key not in self._held_out:
            scores = self._problem.scores(recipe, "held-out")
            evaluation = Evaluation(Candidate(candidate_id, recipe), scores)
            self._held_out[key] = self._problem.objectives.values(evaluation)
        return self._held_out[key]

    def _hypervolume(self, front: ParetoFront) -> float:
        if self._reference is None:
            self._reference = reference_point(self._problem)
        if not len(front):
            return 0.0
        points = np.stack([self._held_out_values(int(i)) for i in front.candidate_ids])
        return hypervolume(points, self._reference)


_REFERENCES: dict[str, FloatArray] = {}


def reference_point(problem: Problem) -> FloatArray:
    """Return (M,) what hypervolumes of a problem start from: its models' held-out nadir, less."""
    if problem.name not in _REFERENCES:
        rows = []
        for proposal in problem.search_space(search_algorithms.get("cma_es")).founders:
            scores = problem.scores(proposal.recipe, "held-out")
            evaluation = Evaluation(Candidate(0, proposal.recipe), scores)
            rows.append(problem.objectives.values(evaluation))
        _REFERENCES[problem.name] = frozen_reference(np.stack(rows))
    return _REFERENCES[problem.name]


def run_search(
    problem: Problem,
    algorithm: str,
    seed: int,
    evaluations: int,
    settings: Mapping[str, Any] | None = None,
    race: Race | None = None,
) -> RunResult:
    """Search one problem with one registered algorithm.

    Args:
        problem: What to search.
        algorithm: Registered name.
        seed: Of the run.
        evaluations: Budget in full evaluations, the founders' included.
        settings: The algorithm's configuration where it differs from its defaults.
        race: How its candidates are raced; None: all are fully scored.

    Returns:
        The result; one without steps and with a note when the algorithm refuses the problem.
    """
    budget = evaluations * problem.n_examples
    checkpoints = [budget * (i + 1) // N_CHECKPOINTS for i in range(N_CHECKPOINTS)]
    cls = search_algorithms.get(algorithm)
    keywords = dict(settings or {})
    if any(item.name == "budget_hint" for item in dataclasses.fields(cls)):
        keywords.setdefault("budget_hint", evaluations)
    scorer = ProblemScorer(problem)
    recorder = Recorder(problem, scorer, checkpoints)
    try:
        loop = SearchLoop(
            algorithm=cls(**keywords) if race is None else race.around(cls(**keywords)),
            space=problem.search_space(cls),
            objectives=problem.objectives,
            log=MemoryLog(),
            plan=LoopPlan(
                seed=seed,
                evaluations=evaluations,
                look_ahead=1,
                tasks=problem.sizes,
                margins=problem.is_margin,
            ),
            on_change=recorder.after_tell,
        )
        started = time.process_time()
        loop.run(InProcessExecutor(scorer))
        seconds = time.process_time() - started - recorder.seconds
    except EvomergeError as error:
        return RunResult(problem.name, algorithm, seed, budget, note=str(error))
    recorder.finish(loop)
    return RunResult(
        problem.name,
        algorithm,
        seed,
        budget,
        loop.examples_told,
        recorder.steps,
        checkpoints,
        recorder.hypervolumes,
        seconds,
    )
