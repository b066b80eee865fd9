"""RejectsEarly: an algorithm that can tell from some scores that the others do not matter.

Whoever scores a candidate may ask after any part of the examples, and stop when the answer is
yes. The candidate is then told with an `error`: to such an algorithm a failure and a rejected
candidate are the same, so that its state is what full scoring would have made it.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.core.candidate import Proposal


@runtime_checkable
class RejectsEarly(Protocol):
    """Optional part of a search algorithm; only for scores in [0, 1]."""

    def example_order(self, proposal: Proposal) -> IntArray | None:
        """Return (N,) positions in `Evaluation.flat_scores`, the most telling examples first.

        None while nothing can be rejected.
        """
        ...

    def rejects(self, examples: IntArray, scores: ScoreArray) -> bool:
        """Return whether a candidate leaves no trace whatever its other scores are.

        Args:
            examples: (n,) positions in `Evaluation.flat_scores` that are scored.
            scores: (n,) their scores.
        """
        ...
