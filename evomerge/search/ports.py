"""What the loop needs from the outside: somewhere to run candidates, somewhere to write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from evomerge.core.arrays import ScoreArray
from evomerge.core.candidate import Candidate, Evaluation


@dataclass(frozen=True, eq=False)
class Outcome:
    """One finished evaluation and how it went.

    Attributes:
        evaluation: Scores or error; what the algorithm learns.
        seconds: Wall seconds on the worker.
        worker: Which worker did it.
        attempt: 1 unless earlier attempts were lost with their worker.
        detail: Traceback or other text for events.log.
        is_transient: The failure was a lack of memory; another attempt may succeed.
    """

    evaluation: Evaluation
    seconds: float = 0.0
    worker: str = ""
    attempt: int = 1
    detail: str = ""
    is_transient: bool = False


class Executor(Protocol):
    """Scores candidates somewhere. Each submitted candidate comes back exactly once."""

    def submit(self, candidate: Candidate) -> None:
        """Queue one candidate; returns at once."""
        ...

    def wait(self, timeout: float) -> list[Outcome]:
        """Return what finished; blocks until something did or `timeout` seconds passed."""
        ...

    def withdraw(self) -> list[int]:
        """Take back every queued candidate that no worker has begun; returns their ids."""
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...


class RunLog(Protocol):
    """Durable record of a run."""

    def append(self, event: Mapping[str, Any]) -> None:
        """Append one event to the journal; it survives the death of this process."""
        ...

    def append_scores(
        self, scores: ScoreArray, margins: ScoreArray | None = None
    ) -> tuple[int, str]:
        """Append one row, (N,) per-example scores and margins; return its number and digest."""
        ...

    def read_scores(self, row: int, digest: str) -> tuple[ScoreArray, ScoreArray]:
        """Return the (N,) scores and margins of a row; a log without margins says NaN."""
        ...

    def park(self, evaluation: Evaluation) -> None:
        """Keep a result that arrived before its turn, so that a crash does not lose it."""
        ...

    def parked(self, candidate: Candidate) -> Evaluation | None:
        """Return the result parked for a candidate by this or an earlier process."""
        ...

    def unpark(self, candidate_id: int) -> None:
        """Forget a parked result once its event is in the journal."""
        ...

    def note(self, text: str) -> None:
        """Write a line to events.log."""
        ...

    def publish(self, front: Callable[[], list[dict[str, Any]]], *, force: bool = False) -> None:
        """Rewrite front.json with what `front` returns, at most once a second unless forced."""
        ...
