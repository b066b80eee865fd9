"""An executor with made-up workers, evaluation times and clock, and the real bookkeeping.

`SimulatedPool` stands where `RayPool` stands and leaves every decision to the same
`runtime.assignments.Assignments`. Time is virtual: it jumps to the next event, and it passes
while the manager (everything outside this file) works, by the manager's own CPU seconds.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from evomerge.core.candidate import Candidate, Evaluation
from evomerge.runtime.assignments import Assignments
from evomerge.search.ports import Outcome

BUILD_SECONDS = 30.0  # from the start of a worker process until it takes candidates


@dataclass(frozen=True)
class Weather:
    """What the simulated machines are like; times in virtual seconds.

    Attributes:
        mean_seconds: Mean of an evaluation's time, which is log-normal.
        cv: Coefficient of variation of that time.
        p_death: Chance that a worker dies in the middle of an evaluation.
        p_hang: Chance that an evaluation never ends; its worker is ended at the deadline.
        timeout_seconds: Deadline of an attempt.
        node_workers: Workers on one node.
        node_leaves: Expected departures of a node per node and 1,000 mean evaluation times.
        away_seconds: How long a node that left stays away.
    """

    mean_seconds: float = 60.0
    cv: float = 0.5
    p_death: float = 2e-3
    p_hang: float = 5e-4
    timeout_seconds: float = 600.0
    node_workers: int = 8
    node_leaves: float = 2.0
    away_seconds: float = 600.0


@dataclass
class Worker:
    """One simulated worker.

    Attributes:
        seat: Its number.
        starts: Processes so far; events of an earlier process mean nothing.
        is_here: Whether there is a process that takes candidates.
        since: When it came, or when its evaluation began.
        candidate: What it scores, None while idle.
    """

    seat: int
    starts: int = 0
    is_here: bool = False
    since: float = 0.0
    candidate: Candidate | None = None

    @property
    def name(self) -> str:
        """Name of the present process."""
        return f"sim-{self.seat}.{self.starts}"


@dataclass
class Tally:
    """Seconds of workers: there, at work, and at work on a result that was taken."""

    here: float = 0.0
    busy: float = 0.0
    useful: float = 0.0


class SimulatedPool:
    """Scores candidates on `workers` made-up workers, with random 0/1 scores."""

    def __init__(self, workers: int, weather: Weather, *, candidates: int, examples: int) -> None:
        """Args: candidates: how many will be submitted in all; examples: scores of each."""
        self.now = 0.0
        self.notes = 0
        self.lost = 0
        self.own_cpu = 0.0  # CPU seconds spent on making up times and scores
        self._weather, self._examples, self._candidates = weather, examples, candidates
        self._rng = np.random.default_rng(0)  # for nodes; evaluations have their own
        self._assignments = Assignments(
            max_attempts=3,
            timeout_seconds=weather.timeout_seconds,
            note=self.note,
            clock=lambda: self.now,
        )
        self._workers = [Worker(seat) for seat in range(workers)]
        self._by_name: dict[str, Worker] = {}
        self._idle: deque[Worker] = deque()
        self._events: list[tuple[float, int, str, Worker, int]] = []
        self._n_events = 0
        self._submitted = 0
        self._tally = Tally()
        self.steady: tuple[float, Tally] | None = None  # when the last candidate was handed out
        for worker in self._workers:
            self._come(worker)
        self._nodes = max(1, workers // weather.node_workers)
        self._schedule(self._until_departure(), "departure", self._workers[0])
        self._handed_back = time.thread_time()

    def note(self, _text: str) -> None:
        """Count what would go to events.log."""
        self.notes += 1

    # ------------------------------------------------------------------- port

    def submit(self, candidate: Candidate) -> None:
        """Queue one candidate."""
        self._submitted += self._assignments.submit(candidate)

    def wait(self, timeout: float) -> list[Outcome]:  # noqa: ARG002 (the port's signature)
        """Return what finished next, at the virtual time when the manager can look at it."""
        self.now += time.thread_time() - self._handed_back
        outcomes: list[Outcome] = []
        while len(self._assignments) and not outcomes:
            self._dispatch()
            soonest = min(self._events[0][0], self._assignments.next_deadline())
            self.now = max(self.now, soonest)
            while self._events and self._events[0][0] <= self.now:
                outcomes += self._happen(*heapq.heappop(self._events))
            for name in self._assignments.overdue():
                worker = self._by_name[name]
                outcomes += self._assignments.lose(name, "deadline passed")
                self._go(worker, self.now, back_after=BUILD_SECONDS)
        self._dispatch()
        self._handed_back = time.thread_time()
        return outcomes

    def withdraw(self) -> list[int]:
        """Empty the queue."""
        return self._assignments.withdraw()

    def close(self) -> None:
        """Nothing to stop."""

    def tally(self, at: float | None = None) -> Tally:
        """Return the seconds so far, with those of workers and evaluations still under way."""
        at = self.now if at is None else at
        total = Tally(self._tally.here, self._tally.busy, self._tally.useful)
        for worker in self._workers:
            if worker.is_here:
                running = max(0.0, at - worker.since)
                total.here += running
                if worker.candidate is not None:
                    total.busy += running
                    total.useful += running
        return total

    # ---------------------------------------------------------------- workers

    def _dispatch(self) -> None:
        while self._idle and self._assignments.has_queued:
            worker = self._idle.popleft()
            if worker.is_here and worker.candidate is None:
                self._begin(worker)
        is_last = self._submitted == self._candidates and not self._assignments.has_queued
        if is_last and self.steady is None:
            self.steady = (self.now, self.tally())

    def _begin(self, worker: Worker) -> None:
        self._count(worker, self.now)
        assignment = self._assignments.begin(worker.name)
        candidate, weather = assignment.candidate, self._weather
        worker.candidate = candidate
        started = time.thread_time()
        rng = np.random.default_rng((candidate.seed, assignment.attempt))
        sigma = math.sqrt(math.log1p(weather.cv**2))
        seconds = weather.mean_seconds * math.exp(rng.normal(-(sigma**2) / 2, sigma))
        fate = rng.random()
        self.own_cpu += time.thread_time() - started
        if fate < weather.p_hang:
            return
        if fate < weather.p_hang + weather.p_death:
            self._schedule(self.now + seconds * rng.random(), "death", worker)
        else:
            self._schedule(self.now + seconds, "done", worker)

    def _happen(
        self, when: float, _number: int, kind: str, worker: Worker, starts: int
    ) -> list[Outcome]:
        if kind == "departure":
            return self._depart(when)
        if starts != worker.starts:
            return []  # of a process that is gone
        if kind == "arrival":
            worker.is_here, worker.since = True, when
            self._idle.append(worker)
            return []
        if kind == "death":
            self.lost += 1
            outcomes = self._assignments.lose(worker.name, "worker died")
            self._go(worker, when, back_after=BUILD_SECONDS)
            return outcomes
        return self._finish(worker, when)

    def _finish(self, worker: Worker, when: float) -> list[Outcome]:
        assignment = self._assignments.finish(worker.name)
        self._count(worker, when, is_useful=assignment is not None)
        worker.candidate = None
        self._idle.append(worker)
        if assignment is None:
            return []
        started = time.thread_time()
        rng = np.random.default_rng(assignment.candidate.seed)
        scores = (rng.random(self._examples) < 0.5).astype(np.float32)
        self.own_cpu += time.thread_time() - started
        evaluation = Evaluation(assignment.candidate, {"task": scores}, None, "none")
        return [Outcome(evaluation, when - assignment.started, worker.name, assignment.attempt)]

    def _depart(self, when: float) -> list[Outcome]:
        """Take a whole node away; what ran there is lost."""
        size, outcomes = self._weather.node_workers, list[Outcome]()
        first = int(self._rng.integers(self._nodes)) * size
        for worker in self._workers[first : first + size]:
            if worker.is_here:
                if worker.candidate is not None:
                    self.lost += 1
                    outcomes += self._assignments.lose(worker.name, "node left")
                self._go(worker, when, back_after=self._weather.away_seconds)
        self._schedule(when + self._until_departure(), "departure", self._workers[0])
        return outcomes

    def _until_departure(self) -> float:
        rate = self._weather.node_leaves * self._nodes / (1000.0 * self._weather.mean_seconds)
        return float(self._rng.exponential(1.0 / rate))

    def _go(self, worker: Worker, when: float, *, back_after: float) -> None:
        self._count(worker, when)
        worker.is_here, worker.candidate = False, None
        self._by_name.pop(worker.name, None)
        self._come(worker, when + back_after)

    def _come(self, worker: Worker, when: float = 0.0) -> None:
        worker.starts += 1
        self._by_name[worker.name] = worker
        self._schedule(when, "arrival", worker)

    def _count(self, worker: Worker, until: float, *, is_useful: bool = False) -> None:
        """Book the seconds since the last booking of a worker that is here."""
        seconds = max(0.0, until - worker.since)
        self._tally.here += seconds
        if worker.candidate is not None:
            self._tally.busy += seconds
            self._tally.useful += seconds * is_useful
        worker.since = until

    def _schedule(self, when: float, kind: str, worker: Worker) -> None:
        self._n_events += 1
        heapq.heappush(self._events, (when, self._n_events, kind, worker, worker.starts))
