"""When results arrived and how long they took, from an events.log that may still grow.

The journal holds no times, so that it repeats; the driver notes a result's times before it
journals the result.
"""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass
from pathlib import Path

from evomerge.errors import RunError

_RESULT = re.compile(
    rb"^(\S+Z) candidate (\d+) (?:scored|failed) worker=\S+ attempt=\d+ seconds=([0-9.]+)"
)
_MACHINE = re.compile(rb"^(\S+Z) machine ")


@dataclass(frozen=True)
class Arrival:
    """When a result arrived, in seconds since 1970, and the seconds its worker spent on it."""

    ended: float
    seconds: float


class ResultTimes:
    """The arrivals that events.log tells of; every look reads only what is new."""

    def __init__(self, path: Path) -> None:
        """Start before the first line; the file need not exist.

        Attributes set here: `sessions`, the times when drivers began, to be consumed by the reader.
        """
        self._path = path
        self._end = 0
        self._arrivals: dict[int, Arrival] = {}
        self.sessions: list[float] = []

    def poll(self) -> None:
        """Take in whole lines that were added since the last look.

        Raises:
            RunError: The file cannot be read.
        """
        if not self._path.exists():
            return
        try:
            with self._path.open("rb") as file:
                file.seek(self._end)
                data = file.read()
        except OSError as error:
            raise RunError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        whole = data[: data.rfind(b"\n") + 1]
        self._end += len(whole)
        for line in whole.splitlines():
            self._take(line)

    def _take(self, line: bytes) -> None:
        if found := _RESULT.match(line):
            try:
                arrival = Arrival(_seconds_since_1970(found[1]), float(found[3]))
            except ValueError:  # a line that only looks like one, in somebody's traceback
                return
            self._arrivals[int(found[2])] = arrival
        elif found := _MACHINE.match(line):
            try:
                self.sessions.append(_seconds_since_1970(found[1]))
            except ValueError:
                return

    def pop(self, candidate_id: int) -> Arrival | None:
        """Return the arrival of a candidate's result and forget it; None where none was noted."""
        return self._arrivals.pop(candidate_id, None)


def _seconds_since_1970(stamp: bytes) -> float:
    return float(calendar.timegm(time.strptime(stamp.decode(), "%Y-%m-%dT%H:%M:%SZ")))
