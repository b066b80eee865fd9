"""The Pareto front as JSON-ready rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.core.pareto import ParetoFront


def front_rows(
    front: ParetoFront, names: Sequence[str], digests: Mapping[int, str] | Sequence[str]
) -> list[dict[str, Any]]:
    """Return one row per member: candidate, objectives, recipe; best first objective first.

    Args:
        front: M objectives, higher is better.
        names: M objective names.
        digests: Candidate id -> digest of its recipe.
    """
    order = np.lexsort((front.candidate_ids, -front.objectives[:, 0]))
    return [
        {
            "candidate": int(front.candidate_ids[i]),
            "objectives": dict(zip(names, map(float, front.objectives[i]), strict=True)),
            "recipe": digests[int(front.candidate_ids[i])],
        }
        for i in order
    ]


def best_members(front: ParetoFront, names: Sequence[str]) -> dict[str, dict[str, float | int]]:
    """Return objective -> the member that is best in it and its value; {} for an empty front.

    Of equal members the one that was asked first. A candidate off the front may have the same
    value: it is worse in something else.

    Args:
        front: M objectives, higher is better.
        names: M objective names.
    """
    best: dict[str, dict[str, float | int]] = {}
    for index, name in enumerate(names if len(front) else ()):
        row = int(front.objectives[:, index].argmax())
        value = float(front.objectives[row, index])
        best[name] = {"candidate": int(front.candidate_ids[row]), "value": value}
    return best
