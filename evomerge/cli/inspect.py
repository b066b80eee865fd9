"""`evomerge status` and `evomerge front`: read-only looks at a run, while it runs or later."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from evomerge.cli.locate import locate
from evomerge.config.results import RunResults

if TYPE_CHECKING:
    from pathlib import Path


def status_command(run: Path, *, as_json: bool) -> None:
    """Print how far a run is."""
    results = RunResults(locate(run))
    facts = results.status()
    if as_json:
        print(json.dumps(facts))
        return
    for key, value in facts.items():
        print(f"{key:<14}{_plain(value)}")


def front_command(run: Path, *, as_json: bool) -> None:
    """Print the Pareto front, best first objective first."""
    results = RunResults(locate(run))
    members = results.front_members()
    if as_json:
        print(json.dumps(members))
        return
    names = results.objectives.names
    print("candidate  " + "  ".join(f"{name:>12}" for name in names) + "  recipe            origin")
    for member in members:
        values = "  ".join(f"{member['objectives'][name]:12.4f}" for name in names)
        print(f"{member['candidate']:>9}  {values}  {member['recipe']}  {member['origin']}")


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return f"{value:.4f}" if isinstance(value, float) else str(value)
