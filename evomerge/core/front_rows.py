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
