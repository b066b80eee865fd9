"""The lines of events.log that programs read: results, losses, sessions.

The journal holds no times, so that it repeats; events.log has them, for people, and for reports
and screens that want to say how long things took.
"""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass

_RESULT = re.compile(
    r"^(\S+Z) candidate (\d+) (scored|failed) worker=(\S+) attempt=\d+ seconds=([0-9.]+)"
)
_LOST = re.compile(r"^(\S+Z) (candidate \d+: attempt \d+ lost on .*|worker \S+ died .*)$")
_MACHINE = re.compile(r"^(\S+Z) machine (.*)$")
_DRAINING = re.compile(r"^\S+Z draining;")


@dataclass(frozen=True)
class Result:
    """A finished evaluation.

    Attributes:
        at: When it arrived, in seconds since 1970; whole seconds.
        candidate: Its id.
        is_failed: Whether it failed.
        worker: Who did it.
        seconds: What the worker spent on it.
    """

    at: float
    candidate: int
    is_failed: bool
    worker: str
    seconds: float


@dataclass(frozen=True)
class Machine:
    """The beginning of a session: a driver started its workers.

    Attributes:
        at: When, in seconds since 1970.
        text: The machine it runs on.
    """

    at: float
    text: str


def parse_result(line: str) -> Result | None:
    """Return the result a line tells of, None for other lines."""
    found = _RESULT.match(line)
    if found is None:
        return None
    try:
        return Result(
            seconds_since_1970(found[1]),
            int(found[2]),
            found[3] == "failed",
            found[4],
            float(found[5]),
        )
    except ValueError:  # a line that only looks like one, in somebody's traceback
        return None


def parse_machine(line: str) -> Machine | None:
    """Return the beginning of a session a line tells of, None for other lines."""
    found = _MACHINE.match(line)
    if found is None:
        return None
    try:
        return Machine(seconds_since_1970(found[1]), found[2])
    except ValueError:
        return None


def parse_loss(line: str) -> str | None:
    """Return time and text of a lost attempt or worker, None for other lines."""
    found = _LOST.match(line)
    return None if found is None else f"{found[1]} {found[2]}"


def is_draining(line: str) -> bool:
    """Return whether a line says that a search finishes what is running and then stops."""
    return _DRAINING.match(line) is not None


def seconds_since_1970(stamp: str) -> float:
    """Return the time of a stamp such as 2026-11-22T10:00:00Z.

    Raises:
        ValueError: It is no such stamp.
    """
    return float(calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ")))
