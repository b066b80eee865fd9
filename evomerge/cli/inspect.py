"""`evomerge status` and `evomerge front`: read-only looks at a run, while it runs or later."""

from __future__ import annotations

import csv
import json
import sys
from typing import TYPE_CHECKING, Any

from evomerge.cli.output import say
from evomerge.config.front_views import confident_front, front_noise, thin_front
from evomerge.config.locate import locate
from evomerge.config.results import RunResults
from evomerge.core.picking import pick as picked
from evomerge.errors import ConfigError, JournalError

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
    shown = {name: _best_text(row) for name, row in facts["best"].items()}
    facts |= {"best": shown, "done": str(facts["done"])}
    unfinished = facts.pop("unfinished")
    if unfinished:
        facts["in_flight"] = f"0 ({unfinished} cut off by the stop are scored again on resume)"
    if facts["state"] == "interrupted":
        facts["next"] = f"evomerge resume {folder.where}"
    for key, value in facts.items():
        print(f"{key:<14}{_plain(value)}")


def status_facts(folder: RunFolder) -> dict[str, Any]:
    """Return how far a run is (see `RunResults.status`), its best values with n and interval."""
    results = RunResults(folder)
    facts = results.status()
    try:
        noise = front_noise(results, results.front())
    except JournalError as error:  # after a power cut, say, which a resume mends
        return facts | {"damage": str(error)}
    for name, row in facts["best"].items():
        own = noise[row["candidate"]]
        row |= {"n": own["n"][name], "interval": list(own["intervals"][name])}
    return facts


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
    noise = front_noise(results, front)
    members = [row | noise[row["candidate"]] for row in results.front_members(front)]
    if pick is not None:
        wanted = picked(front, results.objectives.names, pick)
        for candidate_id in wanted:
            results.objectives_of(candidate_id)  # which says what is wrong with an id
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
    _print_table(members, results)


def _print_table(members: list[dict[str, Any]], results: RunResults) -> None:
    """Print one line per candidate: search scores with 95 % intervals over n examples."""
    sizes = members[0]["n"] if members else dict.fromkeys(results.objectives.names, 0)
    heads = [f"{name}, n = {n}" for name, n in sizes.items()]
    rows = [
        [_estimate(row["objectives"][name], row["intervals"][name]) for name in sizes]
        for row in members
    ]
    width = max(len(cell) for row in [heads, *rows] for cell in row)
    print(
        "  ".join(
            ["candidate", *(f"{head:>{width}}" for head in heads), "recipe            origin"]
        )
    )
    for member, row in zip(members, rows, strict=True):
        cells = "  ".join(f"{cell:>{width}}" for cell in row)
        print(f"{member['candidate']:>9}  {cells}  {member['recipe']}  {member['origin']}")


def _best_text(row: dict[str, Any]) -> str:
    value = f"{row['value']:.4f}"
    if "interval" in row:
        value = f"{_estimate(row['value'], row['interval'])}, n = {row['n']}"
    return f"{value} (candidate {row['candidate']})"


def _estimate(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"


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
