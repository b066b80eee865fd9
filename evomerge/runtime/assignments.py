"""Who scores what: the queue, attempts, deadlines and seats of a worker pool.

Pure bookkeeping, without Ray and with a clock that tests can set. Every candidate leaves
exactly once: through `finish`, through `lose` on its last attempt, or through `withdraw`.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from evomerge.core.candidate import Candidate, Evaluation
from evomerge.runtime.placement_plan import WorkerShape
from evomerge.search.ports import Outcome

# How often a worker process is started in a row without becoming ready.
BUILD_ATTEMPTS = 4
_ONE_CPU = WorkerShape(1.0, 0.0)


@dataclass(eq=False)
class Seat:
    """One place for a worker; its process changes when one dies.

    Attributes:
        number: Place among the workers.
        shape: What its process reserves.
        starts: Processes started so far; part of the worker's name.
        failed_builds: Starts in a row that did not become ready.
        has_refused: Whether the factory has raised here.
        not_before: Clock reading before which no new process is started.
        actor: Handle of the process, None while there is none.
        is_ready: Whether the process has built its worker.
        since: Clock reading of the start of the process.
        node: Id of the node that the process is on, "" where it is not known.
        is_leaving: Whether the seat ends with what it scores now.
        sent: Ids of the ancestors that the process has been sent.
    """

    number: int
    shape: WorkerShape = _ONE_CPU
    starts: int = 0
    failed_builds: int = 0
    has_refused: bool = False
    not_before: float = 0.0
    actor: Any = None
    is_ready: bool = False
    since: float = 0.0
    node: str = ""
    is_leaving: bool = False
    sent: set[str] = field(default_factory=set)

    @property
    def may_start(self) -> bool:
        """Whether the seat is empty and not given up."""
        is_open = self.actor is None and not self.is_leaving
        return is_open and self.failed_builds < BUILD_ATTEMPTS

    @property
    def name(self) -> str:
        """Name of the worker in its present process."""
        return f"ray-{self.number}" + (f".{self.starts}" if self.starts > 1 else "")


@dataclass(frozen=True, eq=False)
class Assignment:
    """A candidate on a worker.

    Attributes:
        candidate: What is being scored.
        attempt: 1 unless earlier attempts were lost.
        started: Clock reading when the worker got it.
        deadline: Clock reading after which the attempt counts as lost.
    """

    candidate: Candidate
    attempt: int
    started: float
    deadline: float


class Assignments:
    """Candidates that are queued or on a worker."""

    def __init__(
        self,
        *,
        max_attempts: int,
        timeout_seconds: float,
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: timeout_seconds: of one attempt, from the moment a worker gets it."""
        self._note = note
        self._max_attempts = max_attempts
        self._timeout = timeout_seconds
        self._clock = clock
        self._queue: deque[Candidate] = deque()
        self._lost: dict[int, int] = {}  # candidate id -> attempts lost so far
        # Worker -> what it scores, by rising deadline: all attempts have the same time.
        self._running: dict[str, Assignment] = {}
        self._outstanding: set[int] = set()

    def __len__(self) -> int:
        """Return how many candidates are queued or running."""
        return len(self._outstanding)

    @property
    def has_queued(self) -> bool:
        """Whether a candidate waits for a worker."""
        return bool(self._queue)

    def submit(self, candidate: Candidate) -> bool:
        """Queue a candidate; False, and nothing happens, when it is queued or running already."""
        if candidate.id in self._outstanding:
            self._note(f"candidate {candidate.id}: submitted while under way; ignored")
            return False
        self._outstanding.add(candidate.id)
        self._queue.append(candidate)
        return True

    def begin(self, worker: str) -> Assignment:
        """Give the first queued candidate to an idle worker."""
        candidate = self._queue.popleft()
        now = self._clock()
        attempt = self._lost.get(candidate.id, 0) + 1
        assignment = Assignment(candidate, attempt, now, now + self._timeout)
        self._running[worker] = assignment
        return assignment

    def finish(self, worker: str) -> Assignment | None:
        """Close what a worker has finished; None when it had been taken away from it."""
        assignment = self._running.pop(worker, None)
        if assignment is None:
            self._note(f"worker {worker}: a late result was dropped")
        else:
            self._forget(assignment.candidate.id)
        return assignment

    def lose(self, worker: str, reason: str, detail: str = "") -> list[Outcome]:
        """Take a candidate away from a worker that failed on it.

        The candidate becomes the first in the queue, with its id and seed; on its last
        attempt it is given up.

        Returns:
            The failed outcome when that was the last attempt, else nothing.
        """
        assignment = self._running.pop(worker, None)
        if assignment is None:
            return []
        candidate, attempt = assignment.candidate, assignment.attempt
        self._note(f"candidate {candidate.id}: attempt {attempt} lost on {worker}: {reason}")
        self._lost[candidate.id] = attempt
        if attempt < self._max_attempts:
            self._queue.appendleft(candidate)
            return []
        self._forget(candidate.id)
        attempts = "1 attempt" if attempt == 1 else f"{attempt} attempts"
        error = f"no result after {attempts}: {reason}"
        seconds = self._clock() - assignment.started
        return [Outcome(Evaluation(candidate, error=error), seconds, worker, attempt, detail)]

    def give_back(self, worker: str, reason: str) -> None:
        """Take a candidate away from a worker that cannot help it; costs it no attempt."""
        assignment = self._running.pop(worker, None)
        if assignment is not None:
            self._note(f"candidate {assignment.candidate.id}: taken from {worker}: {reason}")
            self._queue.appendleft(assignment.candidate)

    def overdue(self) -> list[str]:
        """Return the workers whose deadline has passed."""
        now = self._clock()
        late = takewhile(lambda item: item[1].deadline <= now, self._running.items())
        return [name for name, _ in late]

    def next_deadline(self) -> float:
        """Return the earliest deadline, or infinity."""
        first = next(iter(self._running.values()), None)
        return math.inf if first is None else first.deadline

    def withdraw(self) -> list[int]:
        """Empty the queue; returns the ids that were in it."""
        ids = [candidate.id for candidate in self._queue]
        self._queue.clear()
        self._outstanding.difference_update(ids)
        return ids

    def _forget(self, candidate_id: int) -> None:
        self._outstanding.discard(candidate_id)
        self._lost.pop(candidate_id, None)
