"""From two warm-up candidates to the cost of a search and what its examples can tell apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from evomerge.config.plan_run import Measured, WarmUp
from evomerge.core.arrays import ScoreArray
from evomerge.core.power import detectable_difference, examples_needed
from evomerge.runtime.placement import is_gpu


def estimate(measured: Measured, detect: float | None = None) -> dict[str, Any]:
    """Return what a search costs, JSON-ready; seconds are wall seconds unless a key says CPU.

    The second warm-up counts, for the first one also pays for what is done once. `examples_needed`
    is there with `detect`. Noise is None where it cannot be told: from a single example, or where
    both warm-ups score every example alike.

    Args:
        measured: The warm-ups.
        detect: Difference of scores that is to be told apart.
    """
    config, last = measured.config, measured.warm_ups[-1]
    budget = config.budget.evaluations
    runtime = config.runtime
    workers = (runtime.workers or 1) if runtime.executor == "ray" else 1
    return {
        "config": config.name,
        "device": measured.device,
        "threads": measured.threads,
        "executor": runtime.executor,
        "workers": workers,
        "is_raced": config.racing is not None,
        "start_seconds": measured.start_seconds,
        "warm_ups": [_warm_up_facts(item) for item in measured.warm_ups],
        "seconds_per_candidate": last.seconds,
        "budget": _cost(measured, workers, budget, last.seconds),
        "half_the_budget": _cost(measured, workers, math.ceil(budget / 2), last.seconds),
        "half_the_examples": _cost(measured, workers, budget, _seconds_of_half(last)),
        "noise": _noise(measured, detect),
        "disk": {
            "run_bytes": last.event_bytes * budget,
            "export_bytes": measured.model_bytes,
            "free_bytes": measured.free_bytes,
        },
    }


def _warm_up_facts(item: WarmUp) -> dict[str, Any]:
    return {
        "origin": item.origin,
        "merge_seconds": item.merge_seconds,
        "score_seconds": dict(item.task_seconds),
        "cpu_seconds": item.cpu_seconds,
        "scores": {task: float(values.mean()) for task, values in item.scores.items()},
    }


def _seconds_of_half(item: WarmUp) -> float:
    return item.merge_seconds + sum(item.task_seconds.values()) / 2


def _cost(measured: Measured, workers: int, evaluations: int, seconds: float) -> dict[str, Any]:
    """Return time and device hours; hours are those reserved, busy or not."""
    runtime = measured.config.runtime
    total = evaluations * seconds
    limit = measured.config.budget.seconds
    wall = measured.start_seconds + total / workers
    if is_gpu(measured.device):
        share = 1.0 if runtime.executor == "in-process" else (runtime.gpus_per_worker or 1.0)
        hours = {"gpu_hours": total * share / 3600}
    else:
        hours = {"cpu_hours": total * measured.threads / 3600}
    return {
        "evaluations": evaluations,
        "seconds": wall,
        "stops_at_seconds": limit if limit is not None and limit < wall else None,
        **hours,
    }


def _noise(measured: Measured, detect: float | None) -> dict[str, dict[str, Any]]:
    first, last = (item.scores for item in measured.warm_ups[-2:])
    return {task: _task_noise(first[task], last[task], detect) for task in last}


def _task_noise(before: ScoreArray, after: ScoreArray, detect: float | None) -> dict[str, Any]:
    n = len(after)
    facts: dict[str, Any] = {"n": n, "score": float(after.mean()), "standard_error": None}
    facts |= {"spread": None, "detectable": None, "detectable_with_half": None}
    if detect is not None:
        facts["examples_needed"] = None
    if n < 2:
        return facts
    values = after.astype(np.float64)
    spread = float((values - before).std(ddof=1))
    facts["standard_error"] = float(values.std(ddof=1)) / math.sqrt(n)
    if spread == 0.0:
        return facts
    facts |= {
        "spread": spread,
        "detectable": detectable_difference(spread, n),
        "detectable_with_half": detectable_difference(spread, max(n // 2, 1)),
    }
    if detect is not None:
        facts["examples_needed"] = examples_needed(spread, detect)
    return facts
