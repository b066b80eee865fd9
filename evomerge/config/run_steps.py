"""A run's journal as steps for trackers, also while a search writes it.

Charts of a step, the state after it: ``objective/NAME`` (of this candidate), ``best/NAME``
(largest so far), ``search/hypervolume``, ``search/front`` (members), ``search/examples`` (asked
for), ``search/failed``, ``search/candidates_per_second`` (of the last `RATE_OVER` in this session)
and ``candidate/seconds``.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np

from evomerge.config.build import build_objectives
from evomerge.config.recipe_columns import merged_tensors
from evomerge.config.searched_numbers import SearchedNumbers
from evomerge.config.workers import read_run_config
from evomerge.config.yaml_file import dump_yaml
from evomerge.core.arrays import FloatArray
from evomerge.core.constrained_front import ConstrainedFront
from evomerge.core.front_rows import front_rows
from evomerge.core.pareto import frozen_reference
from evomerge.core.recipe import canonical_json
from evomerge.errors import JournalError, RunError
from evomerge.search.events import Event, candidate_of
from evomerge.storage.journal_events import event_fault
from evomerge.storage.journal_follower import JournalFollower
from evomerge.storage.result_times import ResultTimes
from evomerge.storage.run_store import RunFolder, check_header
from evomerge.trackers.tracker import Ending, RunFacts, State, Step

RATE_OVER = 50  # results that a rate is measured over


class RunSteps:
    """Reads a run's journal step by step; keeps what the next steps need, no more."""

    def __init__(self, folder: RunFolder) -> None:
        """Read config and journal header.

        Raises:
            RunError: There is no run, or nothing was evaluated yet.
            JournalError: The journal is damaged.
        """
        self._folder = folder
        self.config = read_run_config(folder)
        self.objectives = build_objectives(self.config)
        self._numbers = SearchedNumbers(self.config.merge, merged_tensors(folder))
        self._journal = JournalFollower(folder.journal)
        self._times = ResultTimes(folder.events)
        self._journal.poll()
        if not self._journal.events:
            folder.header()  # raises, and says what to do
        self._header = check_header(self._journal.events.pop(0), folder.journal)
        fault = event_fault(self._header)
        if fault:
            raise JournalError(f"{folder.journal}: line 1: {fault}")
        tasks: dict[str, int] = self._header["tasks"]
        self._n_examples = sum(tasks.values())
        self._asked: dict[int, Event] = {}  # and not told
        self._digests: dict[int, str] = {}
        self._founders = set(range(int(self._header.get("founders", 0))))
        self._seen: list[FloatArray] = []  # until the reference point is known
        self._front = ConstrainedFront(
            self.objectives.constraints, n_objectives=len(self.objectives)
        )
        self._best = np.full(len(self.objectives), -np.inf)
        self._told = self._failed = self._examples = 0
        self._ended = 0.0
        self._recent: deque[float] = deque(maxlen=RATE_OVER + 1)

    def facts(self) -> RunFacts:
        """Return what a tracker is told of the run."""
        self._times.poll()
        body = self.config.model_dump(mode="json")
        name = self._folder.path.resolve().name
        began = self._times.sessions[0] if self._times.sessions else self._now()
        return RunFacts(
            name=self.config.name,
            folder=self._folder.path,
            identity=_digest(self._header, name),
            objectives=tuple(self.objectives.names),
            config=body,
            began=began,
        )

    def _now(self) -> float:
        return self._folder.journal.stat().st_mtime

    @property
    def told(self) -> int:
        """How many results were read so far."""
        return self._told

    def ending(self) -> Ending:
        """Return how the search stands now."""
        budget = self.config.budget.evaluations + int(self._header.get("warm", 0))
        return Ending(
            is_done=self._examples >= budget * self._n_examples,
            front=front_rows(self._front.front(), self.objectives.names, self._digests),
            config=dump_yaml(self.config.model_dump(mode="json")),
        )

    def poll(self, *, after: int = 0) -> Iterator[Step]:
        """Yield the results that are new since the last look, in the journal's order.

        Args:
            after: Steps of up to this number are taken in and not yielded.

        Raises:
            JournalError: The journal was damaged or cut.
            RunError: events.log cannot be read.
        """
        self._journal.poll()
        self._times.poll()  # after the journal: what that has was noted before
        events, self._journal.events = self._journal.events, []
        for event in events:
            fault = event_fault(event)
            if fault:
                raise JournalError(f"{self._folder.journal}: {fault}")
            if event["kind"] == "asked":
                self._asked[int(event["id"])] = event
            elif event["kind"] == "told":
                step = self._step(event, is_wanted=self._told >= after)
                if step is not None:
                    yield step
            else:
                raise RunError(f"{self._folder.journal}: was cut while it was followed")

    def _step(self, event: Event, *, is_wanted: bool) -> Step | None:
        """Take in a result; return the step if it is wanted."""
        candidate_id = int(event["id"])
        asked = self._asked.pop(candidate_id, None)
        if asked is None:
            raise JournalError(
                f"{self._folder.journal}: has a result of {candidate_id}, which was not asked for"
            )
        share = asked.get("examples")
        n_examples = self._n_examples if share is None else int(share.split(":")[0])
        self._told += 1
        self._examples += n_examples
        self._founders.discard(candidate_id)
        arrival = self._times.pop(candidate_id)
        self._tick(None if arrival is None else arrival.at)
        measured = np.array(event.get("measured", []))
        state = self._learn(event, str(asked["digest"]), str(asked["origin"]), measured)
        if not is_wanted:
            return None
        values = event.get("objectives") or []
        constraints = (str(item) for item in self.objectives.constraints)
        gaps = self._front.feasibility.gaps(measured) if len(measured) else ()
        seconds = None if arrival is None else arrival.seconds
        return Step(
            number=self._told,
            candidate=candidate_id,
            state=state,
            digest=str(asked["digest"]),
            origin=str(asked["origin"]),
            parents=tuple(int(parent) for parent in asked["parents"]),
            parameters=self._numbers.of(candidate_of(asked, self.config.seed).recipe),
            examples=n_examples,
            objectives=dict(zip(self.objectives.names, map(float, values), strict=bool(values))),
            gaps=dict(zip(constraints, map(float, gaps), strict=False)),
            error=event.get("error"),
            ended=self._ended,
            seconds=seconds,
            metrics=self._metrics(values, seconds),
            mark=_digest(str(asked["digest"]), event),
        )

    def _tick(self, ended: float | None) -> None:
        """Take in when a result arrived; in ordered mode it may be told much later."""
        if ended is None:
            self._ended = self._ended or self._now()
        self._ended = max(self._ended, ended or 0.0)
        while self._times.sessions and self._times.sessions[0] <= self._ended:
            self._recent.clear()  # the pause between two sessions is nobody's rate
            self._recent.append(self._times.sessions.pop(0))
        self._recent.append(self._ended)

    def _learn(self, event: Event, digest: str, origin: str, measured: FloatArray) -> State:
        candidate_id = int(event["id"])
        if "error" in event:
            self._failed += 1
        elif "objectives" in event:
            values = np.array(event["objectives"], dtype=np.float64)
            try:
                self._front.add(candidate_id, values, measured, origin)
            except ValueError as error:
                raise JournalError(
                    f"{self._folder.journal}: does not fit config.yaml: {error}"
                ) from None
            self._digests[candidate_id] = digest
            self._best = np.maximum(self._best, values)
            if self._front.reference is None:
                self._seen.append(values)
        if self._front.reference is None and not self._founders and self._seen:
            self._front.set_reference(frozen_reference(np.array(self._seen)))
            self._seen = []
        return "failed" if "error" in event else "scored" if "objectives" in event else "partial"

    def _metrics(self, values: list[Any], seconds: float | None) -> dict[str, float]:
        names = self.objectives.names
        found = {f"objective/{name}": float(v) for name, v in zip(names, values, strict=False)}
        if np.isfinite(self._best).all():
            found |= {f"best/{name}": float(v) for name, v in zip(names, self._best, strict=True)}
        volume = self._front.hypervolume()
        if volume is not None:
            found["search/hypervolume"] = float(volume)
        found["search/front"] = float(len(self._front))
        found["search/examples"] = float(self._examples)
        found["search/failed"] = float(self._failed)
        passed = self._recent[-1] - self._recent[0]
        if passed > 0:
            found["search/candidates_per_second"] = (len(self._recent) - 1) / passed
        if seconds is not None:
            found["candidate/seconds"] = seconds
        return found


def _digest(*parts: Any) -> str:
    """Return 16 hex digits of JSON values."""
    return hashlib.blake2b(canonical_json(parts).encode(), digest_size=8).hexdigest()
