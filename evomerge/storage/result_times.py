"""When results arrived and how long they took, from an events.log that may still grow.

The journal holds no times, so that it repeats; the driver notes a result's times before it
journals the result.
"""

from __future__ import annotations

from pathlib import Path

from evomerge.errors import RunError
from evomerge.storage.appended import appended_lines
from evomerge.storage.event_lines import Result, parse_machine, parse_result


class ResultTimes:
    """The arrivals that events.log tells of; every look reads only what is new."""

    def __init__(self, path: Path) -> None:
        """Start before the first line; the file need not exist.

        Attributes set here: `sessions`, the times when drivers began, to be consumed by the reader.
        """
        self._path = path
        self._end = 0
        self._arrivals: dict[int, Result] = {}
        self.sessions: list[float] = []

    def poll(self) -> None:
        """Take in whole lines that were added since the last look.

        Raises:
            RunError: The file cannot be read.
        """
        try:
            whole, start = appended_lines(self._path, self._end)
        except OSError as error:
            raise RunError(f"{self._path}: cannot be read: {error.strerror or error}") from None
        if start < self._end:  # somebody cut the log: what is left of it was taken in before
            return
        self._end += len(whole)
        for line in whole.splitlines():
            self._take(line.decode(errors="replace"))

    def _take(self, line: str) -> None:
        if result := parse_result(line):
            self._arrivals[result.candidate] = result
        elif machine := parse_machine(line):
            self.sessions.append(machine.at)

    def pop(self, candidate_id: int) -> Result | None:
        """Return the arrival of a candidate's result and forget it; None where none was noted."""
        return self._arrivals.pop(candidate_id, None)
