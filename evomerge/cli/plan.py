"""`evomerge plan`: cost and noise of a search before it begins."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from evomerge.config.plan_estimate import estimate
from evomerge.config.plan_run import measure
from evomerge.config.schema import load_config
from evomerge.core.amounts import duration, size
from evomerge.errors import ConfigError


def plan_command(
    config_path: Path, *, detect: float | None, overrides: list[str], as_json: bool
) -> None:
    """Print what a search of this config will cost and what its examples can tell apart.

    Raises:
        ConfigError: The config or `detect` is wrong.
        PreflightError: Models or data cannot be used.
        EvaluationError: A warm-up cannot be scored.
    """
    if detect is not None and not (math.isfinite(detect) and detect > 0.0):
        raise ConfigError(f"--detect is {detect:g}, must be above 0")
    config = load_config(config_path, overrides)
    facts = estimate(measure(config, config_path.resolve().parent), detect)
    if as_json:
        print(json.dumps(facts))
        return
    for line in lines(facts, detect):
        print(line)
    print(f"next           evomerge search {config_path}")


def lines(facts: dict[str, Any], detect: float | None = None) -> list[str]:
    """Return the facts for people."""
    last = facts["warm_ups"][-1]
    parts = [f"merge {duration(last['merge_seconds'])}"]
    parts += [f"{task} {duration(s)}" for task, s in last["score_seconds"].items()]
    n, threads = facts["workers"], _count(facts["threads"], "thread")
    found = [
        f"per candidate  {' · '.join(parts)}  (second of two warm-ups; CPU "
        f"{duration(last['cpu_seconds'])}; {facts['device']}, {threads})",
        f"before them    {duration(facts['start_seconds'])} for statistics and loading",
        f"budget         {_cost(facts['budget'])} with {_count(n, 'worker')}",
        f"disk           {size(facts['disk']['run_bytes'])} for the run, "
        f"{size(facts['disk']['export_bytes'])} per exported model, "
        f"{size(facts['disk']['free_bytes'])} free",
    ]
    if facts["is_raced"]:
        found.append("racing         scores fewer examples: time is at most what stands here")
    if facts["executor"] == "ray":
        found.append("ray            measured in this process; workers elsewhere may differ")
    found += [f"noise          {_noise(task, row)}" for task, row in facts["noise"].items()]
    if detect is not None:
        found += [
            f"detect {detect:<8g}{_wanted(task, row)}" for task, row in facts["noise"].items()
        ]
    found.append(f"half budget    {_cost(facts['half_the_budget'])}")
    half = [
        f"{task} {row['detectable_with_half']:.2g}"
        for task, row in facts["noise"].items()
        if row["detectable_with_half"] is not None
    ]
    detectable = f"; detectable difference {', '.join(half)}" if half else ""
    return [*found, f"half examples  {_cost(facts['half_the_examples'])}{detectable}"]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _cost(facts: dict[str, Any]) -> str:
    unit, hours = (
        ("GPU", facts["gpu_hours"]) if "gpu_hours" in facts else ("CPU", facts["cpu_hours"])
    )
    stop = facts["stops_at_seconds"]
    stopped = f", stops at budget.seconds, {duration(stop)}" if stop is not None else ""
    return (
        f"{facts['evaluations']} evaluations in {duration(facts['seconds'])}{stopped} · "
        f"{f'{hours:.2g}' if hours >= 0.01 else 'under 0.01'} {unit}-hours"
    )


def _noise(task: str, row: dict[str, Any]) -> str:
    if row["standard_error"] is None:
        return f"{task}: {row['n']} example, nothing can be told"
    score = f"{task}: score {row['score']:.3f} ± {row['standard_error']:.3f} (n = {row['n']})"
    if row["detectable"] is None:
        return f"{score}; both warm-ups score every example alike, so differences are unknown"
    return (
        f"{score}; detectable difference {row['detectable']:.2g}, paired "
        "(80 % power, 95 % confidence)"
    )


def _wanted(task: str, row: dict[str, Any]) -> str:
    needed = row["examples_needed"]
    if needed is None:
        return f"{task}: unknown"
    enough = "enough" if needed <= row["n"] else f"there are {row['n']:,}"
    return f"{task}: needs {needed:,} examples, {enough}"
