"""A run in Weights & Biases."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from evomerge.trackers.places import SentFile, own_place
from evomerge.trackers.tracker import Ending, RunFacts, Sent, Step, require_package, tracker

_TOLD = "told"  # a row's place in the journal, which charts are drawn over
# Of connecting, and of the last uploads: less than the end of a search waits for its trackers, and
# also what a process then waits for at its exit.
_TIMEOUT = 20.0


@tracker("wandb")
@dataclass(eq=False)
class WandbTracker:
    """Logs a row per result; a resume goes on in the same W&B run.

    The API key comes from WANDB_API_KEY or `wandb login`. Of the machine only what the run folder
    says is sent: no console output, code, git state or system metrics.

    Attributes:
        project: W&B project.
        entity: W&B team or user; None: the default one of the account.
        mode: "offline" writes to `folder` only; `wandb sync` uploads it.
        folder: Where W&B keeps its files; None: trackers/wandb in the run folder.
    """

    project: str = "evomerge"
    entity: str | None = None
    mode: Literal["online", "offline"] = "online"
    folder: Path | None = None
    _run: Any = field(default=None, init=False, repr=False)
    _sent: SentFile | None = field(default=None, init=False, repr=False)
    _place: Path = field(default=Path(), init=False, repr=False)
    _names: tuple[str, ...] = field(default=(), init=False, repr=False)

    def check(self) -> None:
        """Raise ConfigError unless wandb is installed."""
        require_package("wandb", "wandb")

    def start(self, run: RunFacts) -> Sent:
        """Begin a W&B run with the run's identity, or go on with it.

        Raises:
            ConfigError: wandb is not installed.
            RunError: The folder holds another run.
        """
        self.check()
        # Its crashes are no business of a third service that the config does not name.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        os.environ.setdefault("WANDB_SILENT", "true")  # else it speaks before it has settings
        import wandb

        self._names = run.objectives
        self._place = self.folder or own_place(run, "wandb")
        self._place.mkdir(parents=True, exist_ok=True)
        # What one project has, another does not.
        goal = hashlib.blake2b(f"{self.entity}/{self.project}".encode(), digest_size=4).hexdigest()
        self._sent = SentFile(self._place / f"{run.identity}-{self.mode}-{goal}.json", run)
        self._run = wandb.init(
            project=self.project,
            entity=self.entity,
            id=run.identity,
            name=run.folder.resolve().name,
            resume="allow",
            mode=self.mode,
            dir=str(self._place),
            config=dict(run.config),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_code=True,
                disable_git=True,
                finish_timeout=_TIMEOUT,
                finish_timeout_raises=True,
                init_timeout=_TIMEOUT,
                reinit="create_new",  # another run's tracker in this process is left alone
                x_disable_machine_info=True,
                x_disable_meta=True,
                x_disable_stats=True,
                x_save_requirements=False,
            ),
        )
        self._run.define_metric("*", step_metric=_TOLD)
        return self._sent.sent

    def log(self, steps: Sequence[Step]) -> None:
        """Send a row per step."""
        assert self._sent is not None
        for step in steps:
            row: dict[str, Any] = {_TOLD: step.number, "candidate": step.candidate, **step.metrics}
            self._run.log(row, step=step.number)
        if steps:
            self._sent.keep(Sent(steps[-1].number, steps[-1].mark))

    def finish(self, ending: Ending) -> None:
        """Send the front as a table, and as the run's summary how it ended."""
        import wandb

        rows = [
            [row["candidate"], *(row["objectives"][name] for name in self._names), row["recipe"]]
            for row in ending.front
        ]
        table = wandb.Table(columns=["candidate", *self._names, "recipe"], data=rows)
        self._run.summary["front"] = table
        self._run.summary["state"] = "done" if ending.is_done else "interrupted"

    def close(self) -> None:
        """Finish the W&B run; what is not uploaded yet is uploaded first."""
        if self._run is not None:
            self._run.finish()

    def where(self) -> str:
        """Return the page of the run, or the command that uploads it."""
        if self.mode == "offline":
            return f"wandb sync {self._place}/wandb/offline-run-*"
        return str(getattr(self._run, "url", None) or self.project)
