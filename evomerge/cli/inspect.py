"""`evomerge status` and `evomerge front`: read-only looks at a run, while it runs or later."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any

from evomerge.cli.output import say
from evomerge.config.front_views import confident_front, thin_front
from evomerge.config.locate import locate
from evomerge.config.results import RunResults
from evomerge.core.picking import pick as picked
from evomerge.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from evomerge.storage.run_store import RunFolder


def status_command(run: Path, *, as_json: bool) -> None:
    """Print how far a run is."""
    folder = locate(run)
    facts = status_facts(folder)
    if as_json:
        print(json.dumps(facts))
        return
    best = facts["best"].items()
    shown = {name: f"{row['value']:.4f} (candidate {row['candidate']})" for name, row in best}
    facts |= {"best": shown, "done": str(facts["done"])}
    unfinished = facts.pop("unfinished")
    if unfinished:
        facts["in_flight"] = f"0 ({unfinished} cut off by the stop are scored again on resume)"
    if facts["state"] == "interrupted":
        facts["next"] = f"evomerge resume {folder.where}"
    for key, value in facts.items():
        print(f"{key:<14}{_plain(value)}")


def status_facts(folder: RunFolder) -> dict[str, Any]:
    """Return how far a run is; see `RunResults.status`."""
    return RunResults(folder).status()


def front_command(
    run: Path,
    *,
    confident: float | None,
    thin: bool,
    pick: str | None,
    as_csv: bool,
    as_json: bool,
) -> None:
    """Print the Pareto front, best first objective first.

    Args:
        run: The run.
        confident: Instead of the front, all that nothing beats with this confidence.
        thin: One candidate per box of one standard error.
        pick: Only these of them, see `core.picking`.
        as_csv: Rows as CSV.
        as_json: Rows as JSON.

    Raises:
        ConfigError: Both views or both forms are asked for, or an option's value is wrong.
    """
    if as_csv and as_json:
        raise ConfigError("--csv and --json are two forms of the same rows; give one of them")
    if confident is not None and thin:
        raise ConfigError("--confident and --thin are two views of the front; give one of them")
    results = RunResults(locate(run))
    front = results.front()
    if confident is not None:
        front = confident_front(results, confident)
    elif thin:
        front = thin_front(results)
    members = results.front_members(front)
    if pick is not None:
        wanted = picked(front, results.objectives.names, pick)
        members = [member for member in members if member["candidate"] in wanted]
        if not members:
            raise ConfigError(f"--pick {pick!r}: not one of the candidates that are listed here")
        if (results.folder.path / "validation.json").exists():
            say("picked by search scores; `evomerge export` picks by the validation scores")
    if as_json:
        print(json.dumps(members))
        return
    if as_csv:
        _print_csv(members, results)
        return
    if members and not results.front_is_feasible:
        say("no candidate keeps all constraints; these come nearest:")
    for line in results.feasibility.describe():
        say(f"constraint: {line}")
    names = results.objectives.names
    print("candidate  " + "  ".join(f"{name:>12}" for name in names) + "  recipe            origin")
    for member in members:
        values = "  ".join(f"{member['objectives'][name]:12.4f}" for name in names)
        print(f"{member['candidate']:>9}  {values}  {member['recipe']}  {member['origin']}")


def _print_csv(members: list[dict[str, Any]], results: RunResults) -> None:
    """Print a line of names and one per candidate: values as they are, ids of parents by spaces."""
    names = results.objectives.names
    constraints = [str(item) for item in results.objectives.constraints]
    feasible = ["feasible"] if constraints else []
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["candidate", *names, *feasible, *constraints, "recipe", "origin", "parents"])
    for row in members:
        writer.writerow(
            [
                row["candidate"],
                *(row["objectives"][name] for name in names),
                *(row[key] for key in feasible),
                *(row["constraints"][name] for name in constraints),
                row["recipe"],
                row["origin"],
                " ".join(map(str, row["parents"])),
            ]
        )


def _plain(value: Any) -> str:
    if value is None or value == {}:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_plain(item) for item in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)
