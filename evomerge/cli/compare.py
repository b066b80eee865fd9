"""`evomerge compare`: two runs on the same examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evomerge.cli.amounts import duration
from evomerge.cli.locate import locate
from evomerge.config.results import RunResults
from evomerge.report.compare import compare_runs


def compare_command(run: Path, other: Path, *, as_json: bool) -> None:
    """Print two runs side by side."""
    facts = compare_runs(RunResults(locate(run)), RunResults(locate(other)))
    if as_json:
        print(json.dumps(facts))
        return
    for line in lines(facts):
        print(line)


def lines(facts: dict[str, Any]) -> list[str]:
    """Return the comparison for people."""
    runs, names = facts["runs"], facts["objectives"]
    rows = [
        ("run", [item["run"] for item in runs]),
        ("algorithm", [item["algorithm"] for item in runs]),
        ("evaluations", [f"{item['cost']:.4g}" for item in runs]),
        ("worker time", [duration(item["seconds"]) for item in runs]),
        ("front", [str(item["front"]) for item in runs]),
    ]
    rows += [(f"best {name}", [_valued(item["best"][name]) for item in runs]) for name in names]
    for name in names:
        knees = (item["knee"] for item in runs)
        shown = [{"value": knee["values"][name], "candidate": knee["candidate"]} for knee in knees]
        rows.append((f"knee {name}", [_valued(item) for item in shown]))
    found = [_row(label, values) for label, values in rows]
    found.append("hypervolume over cost, one reference for both:")
    moments = sorted({row["cost"] for item in runs for row in item["curve"]})
    for cost in moments:
        values = [_volume_at(item["curve"], cost) for item in runs]
        found.append(_row(f"  at {cost:.4g}", values))
    found.append("first minus second, 95 % interval, on the examples that both searched on:")
    return found + [_difference(item) for item in facts["differences"]]


def _row(label: str, values: list[str]) -> str:
    return f"{label:<22}" + "  ".join(f"{value:<28}" for value in values).rstrip()


def _valued(item: dict[str, Any]) -> str:
    return f"{item['value']:.4f} (candidate {item['candidate']})"


def _volume_at(curve: list[dict[str, Any]], cost: float) -> str:
    value = next((row["hypervolume"] for row in curve if row["cost"] == cost), None)
    return "–" if value is None else f"{value:.4f}"


def _difference(item: dict[str, Any]) -> str:
    low, high = item["low"], item["high"]
    verdict = (
        "first is better" if low > 0 else "second is better" if high < 0 else "no clear winner"
    )
    return f"  {item['what']:<20}{item['difference']:+.4f}  [{low:+.4f}, {high:+.4f}]  {verdict}"
