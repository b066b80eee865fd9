"""InProcessExecutor: one worker in the driver's own process, one candidate at a time."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from evomerge.core.candidate import Candidate
from evomerge.runtime.worker import CandidateScorer, Worker
from evomerge.search.ports import Outcome


class InProcessExecutor:
    """Scores candidates in the order they were submitted."""

    def __init__(self, worker: CandidateScorer, *, max_attempts: int = 1) -> None:
        """Args: max_attempts: how often a candidate is tried when memory runs out."""
        self._worker = worker
        self._max_attempts = max_attempts
        self._queue: deque[Candidate] = deque()

    def submit(self, candidate: Candidate) -> None:
        """Queue one candidate."""
        self._queue.append(candidate)

    def wait(self, timeout: float) -> list[Outcome]:  # noqa: ARG002 (the port's signature)
        """Score the next queued candidate; its running time is not bounded by `timeout`."""
        if not self._queue:
            return []
        candidate = self._queue.popleft()
        for attempt in range(1, self._max_attempts + 1):
            outcome = replace(self._worker.evaluate(candidate), attempt=attempt)
            if not outcome.is_transient:
                break
        return [outcome]

    def withdraw(self) -> list[int]:
        """Take back every queued candidate; none is ever running between two calls."""
        ids = [candidate.id for candidate in self._queue]
        self._queue.clear()
        return ids

    def last_look(self) -> None:
        """Have the worker look at its known models once more; see `Worker.last_look`."""
        if isinstance(self._worker, Worker):
            self._worker.last_look()

    def close(self) -> None:
        """End what the worker runs beside itself."""
        if isinstance(self._worker, Worker):
            self._worker.close()
