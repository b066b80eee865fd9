"""The candidates a report shows one by one: the front, the models, and a sample of the rest."""

from __future__ import annotations

from typing import Any

import numpy as np

from evomerge.config.finalists import FOUNDER
from evomerge.report.niches import spread
from evomerge.report.numbers import short, shorts
from evomerge.report.scored import Scored
from evomerge.report.timing import Timing

MAX_FRONT = 500  # members of the front that are shown; a plot of more is a blot
MAX_OTHERS = 1500  # dominated candidates that are drawn
MAX_TEXT = 200  # characters of an origin


def candidates(scored: Scored, timing: Timing) -> dict[str, Any]:
    """Return columns of the shown candidates, front first, best first objective first.

    Columns: `id`, `objectives` (M columns), `origin`, `parents`, `digest` (of the recipe),
    `seconds`, `feasible` (only with constraints), `measured` (C columns), and `role`: "front",
    "model" (an unmerged source), "founder" (another founder) or "other". `models` maps sources
    to their candidates, `total` counts all candidates with scores.
    """
    results = scored.results
    ids, roles = _shown(scored)
    row_of = {int(candidate_id): row for row, candidate_id in enumerate(scored.ids)}
    rows = [row_of[i] for i in ids]
    columns: dict[str, Any] = {
        "id": ids,
        "role": roles,
        "objectives": [shorts(scored.objectives[rows, m]) for m in range(len(results.objectives))],
        "origin": [scored.origin(i)[:MAX_TEXT] for i in ids],
        "parents": [scored.parents_of(i) for i in ids],
        "digest": [str(results.asked[i]["digest"])[:MAX_TEXT] for i in ids],
        "seconds": [short(timing.seconds.get(i)) for i in ids],
        "models": scored.models,
        "total": len(scored),
        "front_left_out": len(scored.front) - roles.count("front"),
    }
    if results.objectives.constraints:
        measured = [np.array(scored.told[row].get("measured", [])) for row in rows]
        columns["feasible"] = [results.feasibility.is_feasible(values) for values in measured]
        columns["measured"] = [shorts(column) for column in np.array(measured).T]
    return columns


def _shown(scored: Scored) -> tuple[list[int], list[str]]:
    """Return ids and roles of the candidates that are shown."""
    front = [scored.front_ids[i] for i in spread(len(scored.front), MAX_FRONT)]
    roles = dict.fromkeys(front, "front")
    for candidate_id in scored.models.values():
        roles.setdefault(candidate_id, "model")
    rest = [int(i) for i in scored.ids if int(i) not in roles]
    for candidate_id in rest:
        if scored.origin(candidate_id).startswith(FOUNDER):
            roles[candidate_id] = "founder"
    others = [candidate_id for candidate_id in rest if candidate_id not in roles]
    roles |= {others[i]: "other" for i in spread(len(others), MAX_OTHERS)}
    return list(roles), list(roles.values())
