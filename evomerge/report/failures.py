"""Which candidates failed, and why."""

from __future__ import annotations

from typing import Any

from evomerge.report.scored import Scored
from evomerge.report.timing import Timing

MAX_KINDS = 50
MAX_IDS = 20
MAX_TEXT = 600  # characters of one error


def failures(scored: Scored, timing: Timing) -> dict[str, Any]:
    """Return failed candidates grouped by their error, and lines about lost workers."""
    kinds = list(scored.results.failures().items())
    return {
        "total": scored.results.n_failed,
        "kinds": [
            {"error": text[:MAX_TEXT], "count": len(ids), "candidates": ids[:MAX_IDS]}
            for text, ids in kinds[:MAX_KINDS]
        ],
        "kinds_left_out": max(0, len(kinds) - MAX_KINDS),
        "lost": timing.lost,
    }
