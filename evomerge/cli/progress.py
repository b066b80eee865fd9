"""Progress of a search: a live table on a terminal, plain lines elsewhere, JSON on request."""

from __future__ import annotations

import json
import sys
import time
from typing import TYPE_CHECKING, Any

from evomerge.cli.output import say
from evomerge.core.counts import shown_count
from evomerge.core.front_rows import best_members

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType
    from rich.live import Live

    from evomerge.search.loop import SearchLoop

PLAIN_SECONDS = 5.0
LIVE_SECONDS = 0.25


class Progress:
    """Shows a loop while it runs; use as a context manager around `Session.run`."""

    def __init__(self, loop: SearchLoop, name: str, *, as_json: bool) -> None:
        """Args: name: the run's; as_json: one JSON object per report on stderr."""
        self._loop = loop
        self._name = name
        self._as_json = as_json
        self._live: Live | None = None
        self._started = time.monotonic()
        self._told_before = loop.done
        self._last = 0.0
        self._is_over = False

    def __enter__(self) -> Progress:
        self._loop.on_change = lambda _: self._maybe_report()
        if not self._as_json and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._live = Live(console=Console(stderr=True), auto_refresh=False, transient=True)
            self._on_terminal(self._live.start)
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._on_terminal(self._live.stop)

    def facts(self) -> dict[str, Any]:
        """Return what is shown: counts, best values, speed and remaining time."""
        loop = self._loop
        seconds = time.monotonic() - self._started
        done = loop.done - self._told_before
        rate = done / seconds if done and seconds > 0 else None
        best = best_members(loop.front.front(), loop.objectives.names)
        left = max(0, loop.plan.evaluations - loop.done)  # below 0: the budget was lowered
        return {
            "run": self._name,
            "done": shown_count(loop.done),
            "budget": loop.plan.evaluations,
            "running": len(loop.waiting),
            "failed": loop.population.failures,
            "feasible": loop.front.n_feasible if loop.objectives.constraints else None,
            "best": {name: row["value"] for name, row in best.items()},
            "front": len(loop.front),
            "hypervolume": loop.front.hypervolume(),
            "evaluations_per_s": rate,
            "eta_s": left / rate if rate else None,
        }

    def _maybe_report(self) -> None:
        now = time.monotonic()
        pause = LIVE_SECONDS if self._live is not None else PLAIN_SECONDS
        loop = self._loop
        is_last = not loop.has_budget and not loop.waiting
        if self._is_over or (now - self._last < pause and not is_last):
            return
        self._last = now
        self._is_over = is_last
        facts = self.facts()
        if self._live is not None:
            view, live = live_view(facts), self._live
            self._on_terminal(lambda: live.update(view, refresh=True))
        else:
            say(json.dumps(facts) if self._as_json else describe(facts))

    def _on_terminal(self, draw: Callable[[], None]) -> None:
        """Draw, and stop drawing when the terminal is gone: the search must outlive it."""
        try:
            draw()
        except (OSError, SystemExit):  # rich turns a broken pipe into an exit
            self._live = None


def describe(facts: dict[str, Any]) -> str:
    """Return one line such as ``digits 40/240 · 3 running · best low 0.91 · front 7 · …``."""
    best = " ".join(f"{name} {value:.4f}" for name, value in facts["best"].items())
    parts = [
        f"{facts['run']} {facts['done']}/{facts['budget']}",
        f"{facts['running']} in flight",
        f"{facts['failed']} failed",
        f"best {best}" if best else "",
        f"{facts['feasible']} feasible" if facts["feasible"] is not None else "",
        f"front {facts['front']}",
        f"hypervolume {facts['hypervolume']:.4f}" if facts["hypervolume"] is not None else "",
        f"{facts['evaluations_per_s']:.1f}/s" if facts["evaluations_per_s"] else "",
        f"ETA {facts['eta_s']:.0f} s" if facts["eta_s"] is not None else "",
    ]
    return " · ".join(part for part in parts if part)


def live_view(facts: dict[str, Any]) -> RenderableType:
    """Return the live view of a terminal: a bar and a table of the same facts."""
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    head = Table.grid(padding=(0, 2))
    eta = f"ETA {facts['eta_s']:.0f} s" if facts["eta_s"] is not None else ""
    rate = f"{facts['evaluations_per_s']:.1f}/s" if facts["evaluations_per_s"] else ""
    bar = ProgressBar(total=facts["budget"], completed=facts["done"], width=40)
    head.add_row(f"[bold]{facts['run']}", bar, f"{facts['done']}/{facts['budget']}", rate, eta)
    body = Table.grid(padding=(0, 2))
    for name, value in facts["best"].items():
        body.add_row(f"best {name}", f"[bold]{value:.4f}")
    volume = facts["hypervolume"]
    body.add_row("front", f"{facts['front']} candidates")
    body.add_row("hypervolume", "–" if volume is None else f"{volume:.4f}")
    body.add_row("in flight", str(facts["running"]))
    body.add_row("failed", str(facts["failed"]), style="red" if facts["failed"] else "")
    return Group(head, body)
