"""The search loop: ask, journal, submit; collect, journal, tell.

Ordered mode (`tell_order: asked`): proposal n is made from exactly the results of candidates
0 … n - look_ahead, told in the order they were asked. The run then depends on the seed and
`look_ahead` alone, not on the number of workers or on timing. Completed mode tells results as
they arrive: never idle, not repeatable, but still replayable from the journal.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from evomerge.algorithms.algorithm import SearchAlgorithm
from evomerge.core.arrays import IntArray
from evomerge.core.candidate import Candidate, Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.constrained_front import ConstrainedFront
from evomerge.core.front_rows import front_rows
from evomerge.core.objective import Objectives
from evomerge.core.pareto import frozen_reference
from evomerge.core.population import Population
from evomerge.errors import EvaluationError, ReplayError, RunError
from evomerge.search.events import (
    Event,
    asked_event,
    candidate_of,
    candidate_seed,
    examples_digest,
    told_event,
)
from evomerge.search.ledger import Ledger
from evomerge.search.ports import Executor, Outcome, RunLog
from evomerge.seeding import generator

TellOrder = Literal["asked", "completed"]
StopReason = Literal["budget", "seconds", "interrupted", "exhausted"]

# So many failures in a row are not bad candidates but a broken evaluator or a sick device.
GIVE_UP_AFTER = 10

# How long one wait for results blocks before the stop flag is looked at again.
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class LoopPlan:
    """How far a loop runs and in which order it tells.

    Attributes:
        seed: Root seed of the run.
        evaluations: Stop after this many results, failures included; of candidates that are asked
            for some of the examples, as many count as one as have all examples together.
        look_ahead: Candidates that may be asked for and not yet told.
        tell_order: "asked" (repeatable) or "completed".
        seconds: Stop asking after this much wall time in this session; None: no limit.
        tasks: Task -> number of examples.
        margins: Whether the log keeps margins, and the algorithm is told them.
    """

    seed: int
    evaluations: int
    look_ahead: int
    tell_order: TellOrder = "asked"
    seconds: float | None = None
    tasks: Mapping[str, int] = field(kw_only=True)
    margins: bool = False

    @property
    def n_examples(self) -> int:
        """N, of all tasks."""
        return sum(self.tasks.values())


class SearchLoop:
    """One search: its algorithm, population and front, and the loop that advances them."""

    def __init__(
        self,
        *,
        algorithm: SearchAlgorithm,
        space: Space,
        objectives: Objectives,
        log: RunLog,
        plan: LoopPlan,
        on_change: Callable[[SearchLoop], None] | None = None,
    ) -> None:
        """Start the algorithm; nothing is asked or written yet."""
        self.algorithm = algorithm
        self.objectives = objectives
        self.log = log
        self.plan = plan
        self.population = Population(len(objectives))
        self.front = ConstrainedFront(objectives.constraints, n_objectives=len(objectives))
        self.stop_requested = False
        self.n_asked = 0
        self.n_told = 0
        self.examples_asked = 0
        self.examples_told = 0
        self.waiting: dict[int, Candidate] = {}  # asked and not told, in id order
        self._founders: list[Proposal] = list(space.founders)
        self._n_founders = len(self._founders)
        self._founders_left = self._n_founders
        self._ready: dict[int, Evaluation] = {}  # finished, not yet told
        self._parked: set[int] = set()  # of those, kept on disk
        self._costs: dict[int, int] = {}  # examples asked for, of those waiting
        self._digests: list[str] = []  # of recipes, by candidate id
        self._held: set[str] = set()  # what later recipes may name as ancestors
        self._ledger = Ledger(log, plan.tasks)
        self._streak = 0  # failures in a row, in this process
        self._last: Evaluation | None = None
        self.on_change = on_change or (lambda _: None)
        algorithm.start(space, objectives, generator(plan.seed, "algorithm"))

    # ----------------------------------------------------------------- replay

    def replay(self, events: Iterable[tuple[Event, Evaluation | None]]) -> None:
        """Bring a fresh loop to where the journal ends.

        Args:
            events: The journal after its header; each told event with its evaluation
                (whose candidate may be a stand-in: the re-asked one is used).

        Raises:
            ReplayError: The algorithm proposes something else than it did then.
        """
        for event, evaluation in events:
            if event["kind"] == "asked":
                recorded = candidate_of(event, self.plan.seed)
                again = self._next_proposal()
                if (
                    again is None
                    or again.recipe.digest() != event["digest"]
                    or examples_digest(again.examples) != event.get("examples")
                ):
                    raise ReplayError(
                        f"ask #{recorded.id} now yields recipe "
                        f"{again.recipe.digest() if again else 'nothing'}, the journal has "
                        f"{event['digest']}. Resume with the versions the journal's header "
                        "names, or begin a new run from its evaluations: "
                        "evomerge search CONFIG --run NEW --warm-start RUN"
                    )
                self._register(again)
                self._held.update(again.recipe.lineage(self._held))
            elif event["kind"] == "told" and evaluation is not None:
                candidate = self.waiting.get(int(event["id"]))
                if candidate is None:
                    raise ReplayError(f"the journal tells candidate {event['id']} twice or unasked")
                if evaluation.error is None:
                    self._ledger.enter(
                        self._digests[candidate.id],
                        int(event["row"]),
                        str(event["scores"]),
                        str(event["weights"]),
                    )
                self._learn(replace(evaluation, candidate=candidate))
            else:
                raise ReplayError(f"the journal has an event of unknown kind {event['kind']!r}")
        if self.n_told:
            self.log.publish(self.front_json, force=True)

    # -------------------------------------------------------------------- run

    def run(self, executor: Executor) -> StopReason:
        """Search until the budget is spent or a stop is requested; returns why it ended.

        Raises:
            EvaluationError: `GIVE_UP_AFTER` results in a row, or all of them, were failures.
        """
        started = time.monotonic()
        for candidate in list(self.waiting.values()):  # asked before a crash, never told
            self._submit(candidate, executor)
        reason: StopReason = "budget"
        while True:
            out_of_time = (
                self.plan.seconds is not None and time.monotonic() - started > self.plan.seconds
            )
            if self.stop_requested or out_of_time:
                reason = "interrupted" if self.stop_requested else "seconds"
                self._drain(executor)
                break
            # Ask before telling what was parked: a crash may have come between a tell and
            # the asks that follow it.
            self._fill(executor)
            self._tell_ready(executor)
            if not self.waiting:
                if self.has_budget:
                    reason = "exhausted"
                break
            self._collect(executor)
        self.log.publish(self.front_json, force=True)
        last = self._last
        if last is not None and last.error is not None and not len(self.population):
            self._give_up(f"all {self.n_told} candidates failed", last)
        return reason

    def _fill(self, executor: Executor | None) -> None:
        """Ask until the look-ahead or the budget is reached, or the algorithm waits.

        Without an executor the candidates are journalled only; a resume will submit them.
        """
        while len(self.waiting) < self.plan.look_ahead and self.has_budget:
            proposal = self._next_proposal()
            if proposal is None:
                return
            candidate = self._register(proposal)
            self.log.append(asked_event(candidate, proposal.examples, self._held))
            self._held.update(candidate.recipe.lineage(self._held))
            self._submit(candidate, executor)

    @property
    def has_budget(self) -> bool:
        """Whether more may be asked for."""
        return self.examples_asked < self.plan.evaluations * self.plan.n_examples

    @property
    def done(self) -> float:
        """How many evaluations of all examples were told, or as many examples of more of them."""
        return self.examples_told / self.plan.n_examples

    def _submit(self, candidate: Candidate, executor: Executor | None) -> None:
        """Score a candidate, unless its result is known (a crash, a warm start, the ledger)."""
        if candidate.examples is not None and not len(candidate.examples):
            self._ready[candidate.id] = Evaluation(candidate)
            return
        parked = self.log.parked(candidate)
        if parked is not None and _has_asked(parked, candidate.examples):
            self._ready[candidate.id] = parked
            self._parked.add(candidate.id)
        elif executor is not None:
            executor.submit(candidate)

    def _collect(self, executor: Executor) -> None:
        for outcome in executor.wait(POLL_SECONDS):
            self._accept(outcome)

    def _accept(self, outcome: Outcome) -> None:
        """Take a result in; it is parked on disk unless it is told at once."""
        candidate_id = outcome.evaluation.candidate.id
        if candidate_id not in self.waiting or candidate_id in self._ready:
            self.log.note(f"candidate {candidate_id}: a second result was dropped")
            return
        # The candidate that was asked, not a copy that travelled to a worker and back.
        evaluation = replace(outcome.evaluation, candidate=self.waiting[candidate_id])
        self._ready[candidate_id] = evaluation
        self._note(outcome)
        is_early = self.plan.tell_order == "asked" and candidate_id != next(iter(self.waiting))
        if is_early and evaluation.error is None:  # a failure is worth another try after a crash
            self.log.park(evaluation)
            self._parked.add(candidate_id)

    def _tell_ready(self, executor: Executor | None) -> None:
        """Journal and tell every result whose turn it is, asking anew after each.

        After every single one: which results a proposal has seen must not depend on how many
        happened to arrive together, nor on a stop in between.
        """
        while self._ready:
            turn = next(iter(self.waiting if self.plan.tell_order == "asked" else self._ready))
            if turn not in self._ready:
                return
            evaluation = self._ledger.with_known(self._digests[turn], self._ready.pop(turn))
            if not self.plan.margins:  # a run that keeps none could not tell them again
                evaluation = replace(evaluation, margins={})
            self._journal_told(evaluation)
            if self._learn(evaluation):
                self.log.publish(self.front_json)
            if turn in self._parked:
                self._parked.discard(turn)
                self.log.unpark(turn)
            self._streak = 0 if evaluation.error is None else self._streak + 1
            if self._streak >= GIVE_UP_AFTER:
                self._give_up(f"the last {self._streak} candidates all failed", evaluation)
            self._last = evaluation
            self._fill(executor)

    def _give_up(self, what: str, last: Evaluation) -> None:
        error = (last.error or "").removeprefix(f"candidate {last.candidate.id}: ").rstrip(".")
        raise EvaluationError(
            f"{what}; candidate {last.candidate.id}: {error}. Mend the cause (events.log has the "
            "tracebacks) and resume"
        )

    def _drain(self, executor: Executor) -> None:
        """Let running evaluations finish; queued ones stay asked and are scored on resume."""
        in_flight = set(self.waiting) - set(executor.withdraw())
        self.log.note(f"draining; {len(in_flight - set(self._ready))} evaluations are running")
        self._fill(None)
        while in_flight - set(self._ready):
            self._collect(executor)
        self._tell_ready(None)
        self.log.note(f"drained; {len(self.waiting)} candidates wait for a resume")

    # ------------------------------------------------------------------ state

    def _next_proposal(self) -> Proposal | None:
        return self._founders.pop(0) if self._founders else self.algorithm.ask()

    def _register(self, proposal: Proposal) -> Candidate:
        digest = proposal.recipe.digest()
        candidate = Candidate(
            self.n_asked,
            proposal.recipe,
            proposal.parents,
            candidate_seed(self.plan.seed, self.n_asked),
            proposal.origin,
            self._ledger.missing(digest, proposal.examples),
        )
        self.n_asked += 1
        self.waiting[candidate.id] = candidate
        self._digests.append(digest)
        # What was asked for, whether it must be scored or is known: an algorithm that proposes
        # one recipe again and again has to end.
        asked = self.plan.n_examples if proposal.examples is None else len(proposal.examples)
        self._costs[candidate.id] = asked
        self.examples_asked += asked
        return candidate

    def _journal_told(self, evaluation: Evaluation) -> None:
        if evaluation.error is not None:
            self.log.append(told_event(evaluation, None, -1, ""))
            return
        values, measured = None, None
        if evaluation.examples is None:
            values = [float(value) for value in self.objectives.values(evaluation)]
            measured = [float(value) for value in self.front.feasibility.measure(evaluation)]
            if not np.isfinite(values + measured).all():
                raise RunError(f"candidate {evaluation.candidate.id}: an objective is not finite")
        row, digest = self.log.append_scores(evaluation.flat_scores(), evaluation.flat_margins())
        self.log.append(told_event(evaluation, values, row, digest, measured=measured))
        recipe = self._digests[evaluation.candidate.id]
        self._ledger.enter(recipe, row, digest, evaluation.weights_digest)

    def _learn(self, evaluation: Evaluation) -> bool:
        """Take a result into population, front and algorithm; return whether the front changed."""
        candidate = self.waiting.pop(evaluation.candidate.id)
        self.n_told += 1
        self.examples_told += self._costs.pop(candidate.id)
        changed = False
        if evaluation.error is not None:
            self.population.add(evaluation, None)
        elif evaluation.examples is None:
            values = self.objectives.values(evaluation)
            self.population.add(evaluation, values)
            measured = self.front.feasibility.measure(evaluation)
            changed = self.front.add(candidate.id, values, measured, candidate.origin)
        if candidate.id < self._n_founders:
            self._founders_left -= 1
        if self.front.reference is None and self._founders_left <= 0 and len(self.population):
            # Frozen here: hypervolumes of one run stay comparable from first to last.
            self.front.set_reference(frozen_reference(self.population.objectives()))
        self.algorithm.tell(evaluation)
        self.on_change(self)
        return changed

    def _note(self, outcome: Outcome) -> None:
        evaluation = outcome.evaluation
        state = "failed" if evaluation.error is not None else "scored"
        text = (
            f"candidate {evaluation.candidate.id} {state} worker={outcome.worker} "
            f"attempt={outcome.attempt} seconds={outcome.seconds:.3f}"
        )
        if evaluation.error is not None:
            text += f" error={evaluation.error!r}\n{outcome.detail}".rstrip()
        elif outcome.detail:
            text += f" {outcome.detail}"
        self.log.note(text)

    def front_json(self) -> list[dict[str, Any]]:
        """Return the front's members for front.json, best first objective first."""
        rows = front_rows(self.front.front(), self.objectives.names, self._digests)
        if self.objectives.constraints:
            rows = [row | {"feasible": self.front.is_feasible} for row in rows]
        return rows


def _has_asked(evaluation: Evaluation, examples: IntArray | None) -> bool:
    """Return whether a kept result has the (n,) asked scores: a repaired run may ask for others."""
    if evaluation.error is not None:
        return True
    row = evaluation.flat_scores()
    return not np.isnan(row if examples is None else row[examples]).any()
