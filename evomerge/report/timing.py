"""Seconds and machines, read from events.log: the journal has none, so that it repeats."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from evomerge.errors import RunError
from evomerge.storage.event_lines import parse_loss, parse_machine, parse_result

MAX_LOST = 200  # lines about lost attempts and workers that a report shows


@dataclass(frozen=True)
class Timing:
    """What events.log tells.

    Attributes:
        seconds: Candidate -> seconds its worker spent merging and scoring it; the last attempt.
        by_worker: Worker -> candidates it finished.
        lost: Lines about attempts and workers that were lost, the first `MAX_LOST`.
        machines: Machines that drove the run, each once, in order.
    """

    seconds: dict[int, float] = field(default_factory=dict)
    by_worker: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    machines: list[str] = field(default_factory=list)

    @property
    def total(self) -> float:
        """Worker seconds of all candidates."""
        return sum(self.seconds.values())

    @property
    def text(self) -> str:
        """The total for people, in the unit that suits it."""
        if self.total < 120:
            return f"{self.total:.1f} s"
        if self.total < 2 * 3600:
            return f"{self.total / 60:.1f} min"
        return f"{self.total / 3600:.1f} h"


def read_timing(log: Path) -> Timing:
    """Read a run's events.log; empty where there is none.

    Raises:
        RunError: The file cannot be read.
    """
    timing = Timing()
    if not log.exists():
        return timing
    try:
        with log.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                _take(timing, line.rstrip("\n"))
    except OSError as error:
        raise RunError(f"{log}: cannot be read: {error.strerror or error}") from None
    return timing


def _take(timing: Timing, line: str) -> None:
    if result := parse_result(line):
        timing.seconds[result.candidate] = result.seconds
        timing.by_worker[result.worker] = timing.by_worker.get(result.worker, 0) + 1
    elif (loss := parse_loss(line)) and len(timing.lost) < MAX_LOST:
        timing.lost.append(loss)
    elif (machine := parse_machine(line)) and machine.text not in timing.machines:
        timing.machines.append(machine.text)
