"""events.log while it grows: its last lines, and what the workers of the latest session did."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from evomerge.errors import RunError
from evomerge.storage.appended import appended_lines
from evomerge.storage.event_lines import (
    Result,
    is_draining,
    parse_loss,
    parse_machine,
    parse_result,
)

MAX_LINES = 500  # of the log that are kept
MAX_LOST = 50  # lost attempts and workers that are kept
WINDOW_SECONDS = 60.0  # speed is that of the last minute …
WINDOW_RESULTS = 20  # … or of so many results where they take longer


@dataclass(frozen=True)
class Worker:
    """What one worker did in the latest session.

    Attributes:
        name: The worker.
        finished: Candidates it finished, failures included.
        failed: Of those, the failures.
        mean_seconds: It spent on one.
        last: When its last result arrived, in seconds since 1970.
    """

    name: str
    finished: int = 0
    failed: int = 0
    mean_seconds: float = 0.0
    last: float = 0.0

    def after(self, result: Result) -> Worker:
        """Return the same with one result more."""
        finished = self.finished + 1
        mean = self.mean_seconds + (result.seconds - self.mean_seconds) / finished
        return Worker(self.name, finished, self.failed + result.is_failed, mean, result.at)


@dataclass(frozen=True)
class Speed:
    """How fast results arrive.

    Attributes:
        evaluations_per_minute: Results per minute, failures included.
        examples_per_second: Examples of these results per second.
    """

    evaluations_per_minute: float
    examples_per_second: float


class LogFollower:
    """What events.log says so far; every look reads only what is new, and writes nothing."""

    def __init__(self, path: Path) -> None:
        """Start before the first line; the file need not exist yet."""
        self._path = path
        self._end = 0
        self._forget()

    def _forget(self) -> None:
        self._end = 0
        self.lines: deque[str] = deque(maxlen=MAX_LINES)
        self.n_lines = 0  # also those no longer kept
        self.lost: deque[str] = deque(maxlen=MAX_LOST)
        self.workers: dict[str, Worker] = {}  # of the latest session
        self.session: list[Result] = []
        self._began: float | None = None
        self.is_draining = False

    def poll(self) -> None:
        """Take in whole lines that were added since the last look.

        Raises:
            RunError: The file cannot be read.
        """
        try:
            whole, start = appended_lines(self._path, self._end)
        except OSError as error:
            raise RunError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        if start < self._end:
            self._forget()
        self._end = start + len(whole)
        for line in whole.split(b"\n")[:-1]:
            self._take(line.decode("utf-8", errors="replace").rstrip("\r"))

    def _take(self, line: str) -> None:
        self.lines.append(line)
        self.n_lines += 1
        if result := parse_result(line):
            self.session.append(result)
            known = self.workers.get(result.worker, Worker(result.worker))
            self.workers[result.worker] = known.after(result)
        elif loss := parse_loss(line):
            self.lost.append(loss)
        elif machine := parse_machine(line):  # a new session begins
            self.session, self.workers = [], {}
            self._began, self.is_draining = machine.at, False
        elif is_draining(line):
            self.is_draining = True

    def speed(self, n_examples_of: Callable[[int], int], *, now: float | None) -> Speed | None:
        """Return how fast results arrive, None before the first one.

        Args:
            n_examples_of: Candidate -> how many examples it is scored on.
            now: In seconds since 1970, of a search that is running: the speed of its last minute.
                None: the speed of the whole session, which is over.
        """
        if not self.session:
            return None
        end = self.session[-1].at if now is None else max(now, self.session[-1].at)
        start = self.session[0].at if self._began is None else self._began
        if now is not None:
            recent = (
                self.session[-WINDOW_RESULTS].at if len(self.session) > WINDOW_RESULTS else start
            )
            start = max(start, min(recent, end - WINDOW_SECONDS))
        results = list(takewhile(lambda result: result.at >= start, reversed(self.session)))
        seconds = max(end - start, 1.0)  # stamps are whole seconds
        examples = sum(n_examples_of(result.candidate) for result in results)
        return Speed(60.0 * len(results) / seconds, examples / seconds)
