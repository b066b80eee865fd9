"""Charts of a run in TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evomerge.trackers.places import SentFile, own_place
from evomerge.trackers.tracker import (
    Ending,
    RunFacts,
    Sent,
    Step,
    front_table,
    require_package,
    tracker,
)

SENT_FILE = "evomerge.json"


@tracker("tensorboard")
@dataclass(eq=False)
class TensorboardTracker:
    """Writes event files: a chart per metric, the front and the config as texts.

    Attributes:
        folder: Where; a run has a folder of its own. None: trackers/tensorboard in the run folder.
    """

    folder: Path | None = None
    _writer: Any = field(default=None, init=False, repr=False)
    _sent: SentFile | None = field(default=None, init=False, repr=False)
    _place: Path = field(default=Path(), init=False, repr=False)
    _names: tuple[str, ...] = field(default=(), init=False, repr=False)

    def check(self) -> None:
        """Raise ConfigError unless tensorboard is installed."""
        require_package("tensorboard", "tensorboard")

    def start(self, run: RunFacts) -> Sent:
        """Open a new event file beside those of earlier sessions.

        Raises:
            ConfigError: tensorboard is not installed.
            RunError: The folder holds another run.
        """
        self.check()
        from torch.utils.tensorboard import SummaryWriter

        self._names = run.objectives
        self._place = self.folder or own_place(run, "tensorboard")
        self._place.mkdir(parents=True, exist_ok=True)
        self._sent = SentFile(self._place / SENT_FILE, run)
        # Steps that reached a file, but not the note of them, before a crash are hidden.
        self._writer = SummaryWriter(str(self._place), purge_step=self._sent.sent.number + 1)
        return self._sent.sent

    def log(self, steps: Sequence[Step]) -> None:
        """Write a point per chart and step."""
        assert self._sent is not None
        for step in steps:
            for chart, value in step.metrics.items():
                self._writer.add_scalar(chart, value, step.number, walltime=step.ended)
        self._writer.flush()
        if steps:
            self._sent.keep(Sent(steps[-1].number, steps[-1].mark))

    def finish(self, ending: Ending) -> None:
        """Write the front and the config as texts."""
        assert self._sent is not None
        last = self._sent.sent.number
        self._writer.add_text("front", front_table(ending, self._names), last)
        self._writer.add_text("config", f"```yaml\n{ending.config}\n```", last)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()

    def where(self) -> str:
        """Return the command that shows it."""
        return f"tensorboard --logdir {self._place}"
