"""What a run looks like now: everything the screen shows, without a screen.

P = candidates with all objectives, M = objectives.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.config.results import RunResults
from evomerge.core.arrays import BoolArray, FloatArray, IntArray
from evomerge.core.counts import shown_count
from evomerge.errors import EvomergeError
from evomerge.storage.journal_follower import JournalFollower
from evomerge.storage.run_store import RunFolder
from evomerge.watch.driver import Driver, find_driver
from evomerge.watch.log import LogFollower, Speed, Worker

SHOWN_LINES = 20  # of the log, in JSON


@dataclass(frozen=True)
class Failure:
    """One reason for failures: its text and the candidates, oldest first."""

    reason: str
    candidates: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Points:
    """The scored candidates, oldest first.

    Attributes:
        names: (M,) objectives; higher is better.
        ids: (P,) candidates.
        values: (P, M) objective values.
        on_front: (P,) whether it is a member of the front.
    """

    names: tuple[str, ...]
    ids: IntArray
    values: FloatArray
    on_front: BoolArray

    @classmethod
    def of(cls, results: RunResults) -> Points:
        """Take them from a run."""
        scored = results.scored
        ids = np.array([int(event["id"]) for event in scored], dtype=np.int64)
        values = np.array([event["objectives"] for event in scored], dtype=np.float64)
        shape = (len(scored), len(results.objectives))
        on_front = np.isin(ids, results.front().candidate_ids)
        return cls(tuple(results.objectives.names), ids, values.reshape(shape), on_front)

    def front_rows(self) -> list[dict[str, Any]]:
        """Return the front as JSON-ready rows, best first objective first."""
        rows = np.flatnonzero(self.on_front)
        rows = rows[np.lexsort((self.ids[rows], -self.values[rows, 0]))]
        return [
            {
                "candidate": int(self.ids[row]),
                "objectives": dict(zip(self.names, self.values[row].tolist(), strict=True)),
            }
            for row in rows
        ]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One look at a run.

    Attributes:
        folder: The run.
        state: "running", "draining", "interrupted", "done", "new" (nothing evaluated yet) or
            "unreadable".
        error: Why it cannot be read, "" otherwise. What else is here is then of the last look
            that succeeded.
        status: What `RunResults.status` says; {} before the first result.
        driver: Who drives it, None when nobody does.
        points: The scored candidates; None before the first look.
        failures: Reasons for failures, the most frequent first.
        lost: Lines about lost attempts and workers.
        workers: What each did in the latest session.
        n_workers: How many the config asks for.
        speed: None before the first result.
        eta_seconds: Until the budget is spent, of a search that is running.
        lines: The end of events.log.
        n_lines: Of events.log.
        at: When this was seen, in seconds since 1970.
    """

    folder: RunFolder
    state: str = "new"
    error: str = ""
    status: dict[str, Any] = field(default_factory=dict)
    driver: Driver | None = None
    points: Points | None = None
    failures: tuple[Failure, ...] = ()
    lost: tuple[str, ...] = ()
    workers: tuple[Worker, ...] = ()
    n_workers: int = 1
    speed: Speed | None = None
    eta_seconds: float | None = None
    lines: tuple[str, ...] = ()
    n_lines: int = 0
    at: float = 0.0

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.path.name or str(self.folder.path.resolve().name)

    def as_draining(self) -> Snapshot:
        """Return the same of a search that was just asked to drain."""
        return dataclasses.replace(self, state="draining", eta_seconds=None)

    def to_json(self) -> dict[str, Any]:
        """Return it JSON-ready: status, and what comes on top; times in seconds since 1970."""
        driver = self.driver
        return self.status | {
            "run": self.folder.where,
            "state": self.state,
            "error": self.error or None,
            "driver": None if driver is None else dataclasses.asdict(driver.holder),
            "workers": [dataclasses.asdict(worker) for worker in self.workers],
            "workers_wanted": self.n_workers,
            "speed": None if self.speed is None else dataclasses.asdict(self.speed),
            "eta_seconds": self.eta_seconds,
            "front_members": [] if self.points is None else self.points.front_rows(),
            "failures": [dataclasses.asdict(failure) for failure in self.failures],
            "lost": list(self.lost),
            "log": list(self.lines[-SHOWN_LINES:]),
            "at": self.at,
        }


class RunFollower:
    """The newest snapshot of a run; reads what is new, computes when the run has moved on."""

    def __init__(self, folder: RunFolder) -> None:
        """Read nothing yet."""
        self.folder = folder
        self._journal = JournalFollower(folder.journal)
        self._log = LogFollower(folder.events)
        self._version: tuple[str, bool] | None = None
        self._seen: tuple[tuple[str, bool] | None, int] | None = None  # of a run that rests
        self._results: RunResults | None = None
        self._not_before = 0.0  # of the monotonic clock
        self._last = Snapshot(folder)

    def newest(self) -> Snapshot:
        """Return how the run is now; never raises because of what is in its folder."""
        now = time.time()
        try:
            self.folder.require()
            self._log.poll()
            if time.monotonic() >= self._not_before:
                self._read()
        except (EvomergeError, OSError) as error:
            # The next look begins anew.
            self._version, self._seen, self._not_before = None, None, 0.0
            self._last = dataclasses.replace(
                self._last, state="unreadable", error=str(error), driver=None, at=now
            )
        else:
            driver = find_driver(self.folder.path)
            seen = (self._version, self._log.n_lines)
            # Nothing changes with time in a run that rests.
            changes = {} if driver is None and seen == self._seen else self._of_now(driver, now)
            self._last = dataclasses.replace(self._last, at=now, **changes)
            self._seen = None if driver is not None else seen
        return self._last

    def _read(self) -> None:
        started = time.monotonic()
        self.folder.refresh()
        self._journal.poll()
        version = (self._journal.chain, self.folder.is_driven())
        if version == self._version:
            return
        # Its own list: the journal goes on.
        results = RunResults(self.folder, events=list(self._journal.events))
        has_begun = self.folder.journal.exists() and bool(results.header)
        runtime = results.config.runtime
        self._last = dataclasses.replace(
            self._last,
            error="",
            status=results.status() if has_begun else {},
            points=Points.of(results),
            failures=tuple(
                Failure(reason, tuple(ids)) for reason, ids in results.failures().items()
            ),
            n_workers=(runtime.workers or 1) if runtime.executor == "ray" else 1,
        )
        self._results, self._version, self._seen = results, version, None
        # The search may need the processor: at most a tenth of its time goes to watching.
        self._not_before = started + 10 * (time.monotonic() - started)

    def _of_now(self, driver: Driver | None, now: float) -> dict[str, Any]:
        """Return what changes with time or with the log, too."""
        log, results, status = self._log, self._results, self._last.status
        state = str(status.get("state", "new"))
        if driver is not None:
            state = "draining" if log.is_draining else "running"
        speed, eta = None, None
        if results is not None:
            asked = results.asked

            def n_examples_of(candidate_id: int) -> int:
                # The log may be ahead of the journal.
                known = candidate_id in asked
                return results.n_examples_of(candidate_id) if known else results.n_examples

            speed = log.speed(n_examples_of, now=None if driver is None else now)
            if state == "running" and speed is not None and speed.examples_per_second > 0.0:
                left = max(0.0, float(status["budget"]) - results.done) if status else 0.0
                eta = left * results.n_examples / speed.examples_per_second
        return {
            "state": state,
            "driver": driver,
            "workers": tuple(sorted(log.workers.values(), key=lambda worker: worker.name)),
            "speed": speed,
            "eta_seconds": eta,
            "lost": tuple(log.lost),
            "lines": tuple(log.lines),
            "n_lines": log.n_lines,
        }


def progress_text(snapshot: Snapshot) -> str:
    """Return such as "40/240"; "–" before the search has begun."""
    status = snapshot.status
    return f"{shown_count(status['done'])}/{status['budget']}" if status else "–"
