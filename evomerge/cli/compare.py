"""`evomerge compare`: two runs on the same examples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evomerge.config.locate import locate
from evomerge.config.results import RunResults
from evomerge.core.amounts import duration
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
    labels = _labels([str(item["run"]) for item in runs])
    rows = [
        ("", labels),
        ("algorithm", [item["algorithm"] for item in runs]),
        ("evaluations", [f"{item['cost']:.4g}" for item in runs]),
        ("time of all workers", [duration(item["seconds"]) for item in runs]),
        ("size of the front", [str(item["front"]) for item in runs]),
    ]
    rows += [(f"best {name}", [_valued(item["best"][name]) for item in runs]) for name in names]
    for name in names:
        knees = (item["knee"] for item in runs)
        shown = [{"value": knee["values"][name], "candidate": knee["candidate"]} for knee in knees]
        rows.append((f"knee {name}", [_valued(item) for item in shown]))
    found = [_row(label, values) for label, values in rows]
    found += ["", "hypervolume, over one reference point for both (more is better)"]
    moments = sorted({row["cost"] for item in runs for row in item["curve"]})
    for cost in moments:
        values = [_volume_at(item["curve"], cost) for item in runs]
        found.append(_row(f"  after {cost:.4g} evaluations", values))
    found += ["", f"{labels[0]} minus {labels[1]}, with paired 95 % intervals over the examples"]
    found += [_difference(item, labels) for item in facts["differences"]]
    return [
        *found,
        "Scores are of the examples that both searched on, so the best ones are too high on "
        "average; `evomerge validate RUN` scores others.",
    ]


def _labels(runs: list[str]) -> list[str]:
    """Return names that tell the runs apart: of their folders, or the paths where those agree."""
    names = [Path(run).name for run in runs]
    return names if len(set(names)) == len(names) else runs


def _row(label: str, values: list[str]) -> str:
    return (f"{label:<26}" + "  ".join(f"{value:<26}" for value in values)).rstrip()


def _valued(item: dict[str, Any]) -> str:
    return f"{item['value']:.4f} (candidate {item['candidate']})"


def _volume_at(curve: list[dict[str, Any]], cost: float) -> str:
    value = next((row["hypervolume"] for row in curve if row["cost"] == cost), None)
    return "–" if value is None else f"{value:.4f}"


def _difference(item: dict[str, Any], labels: list[str]) -> str:
    low, high = item["low"], item["high"]
    verdict = "no difference can be told"
    if low > 0 or high < 0:
        verdict = f"{labels[0] if low > 0 else labels[1]} is better"
    elif low == high == 0:
        verdict = "the same on every example"
    return f"  {item['what']:<24}{item['difference']:+.4f}  [{low:+.4f}, {high:+.4f}]  {verdict}"
