"""The one candidate to hand over: the best mean of the objectives, by margins where they are known.

Of two merges that differ by an example or two, the one whose answers lead by more does better on
other examples (docs/decisions/0006-auto.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from evomerge.core.candidate import Evaluation
from evomerge.core.margins import blur_of, blurred
from evomerge.core.objective import Objectives


def champion_of(evaluations: Sequence[Evaluation], objectives: Objectives) -> int:
    """Return the position of the champion, of equals the first.

    Args:
        evaluations: At least one; each of all examples. Tasks whose margins one of them lacks
            count by their scores.
        objectives: Of the run; their mean decides.
    """
    counted = [dict(item.scores) for item in evaluations]
    for task in evaluations[0].scores:
        known = [item.margins[task] for item in evaluations if task in item.margins]
        if len(known) < len(evaluations) or np.isnan(known).any():
            continue
        margins = np.stack(known).astype(np.float64)
        width = blur_of(margins)
        if width > 0.0:
            for own, row in zip(counted, blurred(margins, width), strict=True):
                own[task] = row.astype(np.float32)
    values = [
        objectives.values(replace(item, scores=own)).mean()
        for item, own in zip(evaluations, counted, strict=True)
    ]
    return int(np.argmax(values))
