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
    groups: dict[str, list[int]] = {}
    for event in scored.results.told:
        if "error" in event:
            candidate_id = int(event["id"])
            text = str(event["error"]).removeprefix(f"candidate {candidate_id}: ")
            groups.setdefault(text[:MAX_TEXT], []).append(candidate_id)
    kinds = sorted(groups.items(), key=lambda item: -len(item[1]))
    return {
        "total": sum(map(len, groups.values())),
        "kinds": [
            {"error": text, "count": len(ids), "candidates": ids[:MAX_IDS]}
            for text, ids in kinds[:MAX_KINDS]
        ],
        "kinds_left_out": max(0, len(kinds) - MAX_KINDS),
        "lost": timing.lost,
    }
