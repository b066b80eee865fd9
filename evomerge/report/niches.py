"""Which examples which members of the front solve."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from evomerge.config.front_views import example_scores
from evomerge.core.arrays import FloatArray, IntArray
from evomerge.report.scored import Scored

MAX_MEMBERS = 80
MAX_EXAMPLES = 400  # of one task


def niches(scored: Scored) -> dict[str, Any] | None:
    """Return scores of the front's members on the examples they differ in; None without a front.

    Returns:
        `members`: ids, best first objective first. `tasks`: for each, `low` and `high` (the
        scores that 0 and 255 stand for), `examples` (positions in the task, those solved by the
        first members first), `cells` (base64 of member-major uint8), how many examples there
        are, how many all members solve alike, and how many more are not shown.
    """
    front = scored.front_ids
    if not front:
        return None
    members = [front[i] for i in spread(len(front), MAX_MEMBERS)]
    scores = example_scores(scored.results, np.array(members, dtype=np.int64))
    return {
        "members": members,
        "left_out": len(front) - len(members),
        "tasks": [_task(name, scores[name].astype(np.float64)) for name in sorted(scores)],
    }


def spread(n: int, most: int) -> list[int]:
    """Return at most `most` of 0 … n - 1, evenly spread, the first and the last among them."""
    if n <= most:
        return list(range(n))
    return [int(i) for i in np.unique(np.linspace(0, n - 1, most).round())]


def _task(name: str, table: FloatArray) -> dict[str, Any]:
    """Return the heat map of one task from (F, N) scores."""
    low, high = float(table.min()), float(table.max())
    width = (high - low) or 1.0
    differs = np.flatnonzero(table.min(axis=0) < table.max(axis=0))
    # The most telling examples: those that split the members most evenly.
    by_variance = differs[np.argsort(-table[:, differs].var(axis=0), kind="stable")]
    shown = _diagonal(table, by_variance[:MAX_EXAMPLES])
    cells = np.round((table[:, shown] - low) / width * 255).astype(np.uint8)
    return {
        "task": name,
        "low": low,
        "high": high,
        "n": table.shape[1],
        "alike": table.shape[1] - len(differs),
        "left_out": len(differs) - len(shown),
        "examples": shown.tolist(),
        "cells": base64.b64encode(cells.tobytes()).decode(),
    }


def _diagonal(table: FloatArray, examples: IntArray) -> IntArray:
    """Return examples by the mean place of the members that solve them: niches form a diagonal."""
    part = table[:, examples] - table.min()
    weight = part.sum(axis=0)
    places = np.arange(len(table)) @ part / np.where(weight > 0.0, weight, 1.0)
    return examples[np.argsort(places, kind="stable")]
