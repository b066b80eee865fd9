"""How best values, front and hypervolume grew over the search."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.core.arrays import IntArray
from evomerge.core.constrained_front import ConstrainedFront
from evomerge.core.hypervolume_estimate import estimate_hypervolume
from evomerge.core.pareto import frozen_reference
from evomerge.report.numbers import short, shorts
from evomerge.report.scored import Scored
from evomerge.report.timing import Timing
from evomerge.seeding import generator

MAX_POINTS = 400
MAX_POINTS_MANY = 60  # from 4 objectives on, where one hypervolume takes up to a second
_SAMPLES = 4000  # of an estimated hypervolume


def history(scored: Scored, timing: Timing) -> dict[str, Any]:
    """Return columns over at most `MAX_POINTS` moments of the search, the last one included.

    Columns: `told` (candidates told, failures included), `seconds` (worker seconds by then;
    None where events.log does not have them all), `best` (M columns), `front` (members),
    `hypervolume` (None until the founders are scored). With constraints, `best` is that of
    feasible candidates once the front is feasible.
    """
    results = scored.results
    n_objectives = len(results.objectives)
    moments = _moments(len(results.told), MAX_POINTS if n_objectives < 4 else MAX_POINTS_MANY)
    wanted = set(moments.tolist())
    front = ConstrainedFront(results.objectives.constraints, n_objectives=n_objectives)
    founders = set(range(int(results.header.get("founders", 0))))
    seen: list[Any] = []
    seconds: float | None = 0.0
    rows: list[tuple[int, float | None, list[float | None], int, float | None]] = []
    volume: float | None = None
    changed = False
    for position, event in enumerate(results.told, start=1):
        candidate_id = int(event["id"])
        founders.discard(candidate_id)
        spent = timing.seconds.get(candidate_id)
        seconds = None if seconds is None or spent is None else seconds + spent
        if event.get("objectives") is not None:
            values = np.array(event["objectives"], dtype=np.float64)
            measured = np.array(event.get("measured", []))
            changed |= front.add(candidate_id, values, measured, scored.origin(candidate_id))
            if front.reference is None:
                seen.append(values)
        if front.reference is None and not founders and seen:
            front.set_reference(frozen_reference(np.array(seen)))
            changed = True
        if position in wanted:
            if changed:
                volume, changed = _volume(front, results.config.seed), False
            members = front.front().objectives
            empty: list[float | None] = [None] * n_objectives
            best = shorts(members.max(axis=0)) if len(members) else empty
            rows.append((position, short(seconds), best, len(members), short(volume)))
    return {
        "told": [row[0] for row in rows],
        "seconds": [row[1] for row in rows],
        "best": [[row[2][m] for row in rows] for m in range(n_objectives)],
        "front": [row[3] for row in rows],
        "hypervolume": [row[4] for row in rows],
        "reference": None if front.reference is None else shorts(front.reference),
    }


def _moments(n: int, most: int) -> IntArray:
    """Return rising numbers of told candidates in 1 … n: close together at first."""
    if n <= most:
        return np.arange(1, n + 1)
    # Square root spacing: most happens early.
    return np.unique(np.ceil(n * np.linspace(0.0, 1.0, most) ** 2).astype(np.int64).clip(1))


def _volume(front: ConstrainedFront, seed: int) -> float | None:
    """Return the hypervolume, exact where that is fast, else estimated within about 1 %."""
    exact = front.hypervolume()
    if exact is not None or front.reference is None:
        return exact
    if not front.is_feasible:
        return 0.0
    rng = generator(seed, "report", "hypervolume")
    return estimate_hypervolume(
        front.front().objectives, front.reference, rng, n_samples=_SAMPLES
    ).value
