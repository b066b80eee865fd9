"""Tracker: takes the results of a run, in the order of its journal, to where people look at them.

A tracker is a dataclass whose fields are its config keys, registered with `@tracker("name")`. It
is given what a journal holds, never the search itself, so that it may be slow, fail, or begin long
after the search has ended. It knows how far it got: `start` says so, and nothing is sent twice.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from evomerge.errors import ConfigError
from evomerge.registry import Registry

trackers = Registry("tracker", "evomerge.trackers")
tracker = trackers.register

State = Literal["scored", "partial", "failed"]


@dataclass(frozen=True)
class Parameter:
    """One searched number of a recipe, or the choice of a merge method.

    Attributes:
        name: For people: "weights/layer.3/maths".
        value: Its value, in the unit of the parameter.
        low: Lower end of the range it is searched in; of a choice 0.
        high: Upper end.
        choices: All a choice may be; empty for a number.
    """

    name: str
    value: float | str
    low: float = 0.0
    high: float = 0.0
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Step:
    """One result of the journal and how the search stood after it.

    Attributes:
        number: Its place among the results, from 1.
        candidate: Id of the candidate.
        state: "partial" where a race had only some of the examples scored.
        digest: Of the recipe.
        origin: How the candidate came about.
        parents: Ids of the candidates it was bred from.
        parameters: The searched numbers of its recipe.
        examples: How many examples it was asked for.
        objectives: Objective -> value, higher is better; {} unless scored.
        gaps: Constraint -> how far it is missed, 0 or less where it is kept.
        error: Why it could not be scored.
        ended: When the result arrived, in seconds since 1970; of a result that was taken over or
            known already, when the one before it did.
        seconds: What merging and scoring took; None where nothing was done.
        metrics: Chart -> value after this result; see `config.run_steps`.
        mark: 16 hex digits that tell it from the result of another run with the same number.
    """

    number: int
    candidate: int
    state: State
    digest: str
    origin: str
    parents: tuple[int, ...]
    parameters: tuple[Parameter, ...]
    examples: int
    objectives: Mapping[str, float]
    gaps: Mapping[str, float]
    error: str | None
    ended: float
    seconds: float | None
    metrics: Mapping[str, float]
    mark: str


@dataclass(frozen=True)
class RunFacts:
    """The run that is followed.

    Attributes:
        name: The config's.
        folder: The run folder.
        identity: 16 hex digits, the same at every resume; of the journal's header and the
            folder's name.
        objectives: Their names.
        config: The resolved config, JSON-ready.
        began: When the first result arrived, in seconds since 1970.
    """

    name: str
    folder: Path
    identity: str
    objectives: tuple[str, ...]
    config: Mapping[str, Any]
    began: float


@dataclass(frozen=True)
class Sent:
    """How far a tracker got: `number` and `mark` of the last step it has."""

    number: int = 0
    mark: str = ""


@dataclass(frozen=True)
class Ending:
    """How a session of a search ended.

    Attributes:
        is_done: The budget is spent; else it was interrupted.
        front: Rows of the front: candidate, objectives, recipe; best first objective first.
        config: The resolved config as YAML.
    """

    is_done: bool
    front: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    config: str = ""


class Tracker(Protocol):
    """Takes a run's results somewhere; used by one thread."""

    def check(self) -> None:
        """Raise ConfigError, with the remedy, unless this tracker can be used here."""
        ...

    def start(self, run: RunFacts) -> Sent:
        """Begin, or go on with what an earlier session began; return how far that got.

        Raises:
            EvomergeError: It cannot, or what is there belongs to another run.
        """
        ...

    def log(self, steps: Sequence[Step]) -> None:
        """Take the next steps, in order. Those of one call are kept together where possible."""
        ...

    def finish(self, ending: Ending) -> None:
        """Take the front and the config at the end of a session."""
        ...

    def close(self) -> None:
        """Let go of files and connections; called once, also after a failure."""
        ...

    def where(self) -> str:
        """Return where to look, for people; without passwords. Known after `start`."""
        ...


def require_package(package: str, extra: str) -> None:
    """Raise ConfigError, with the pip command, unless a package is installed."""
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"tracker {extra!r} needs the package {package!r}: pip install 'evomerge[{extra}]'"
        )


def front_table(ending: Ending, objectives: Sequence[str]) -> str:
    """Return the front as a Markdown table, a line per candidate."""
    lines = [
        "| " + " | ".join(("candidate", *objectives, "recipe")) + " |",
        "|" + "---|" * (len(objectives) + 2),
    ]
    for row in ending.front:
        values = [f"{row['objectives'][name]:.4f}" for name in objectives]
        lines.append("| " + " | ".join((str(row["candidate"]), *values, str(row["recipe"]))) + " |")
    return "\n".join(lines)
