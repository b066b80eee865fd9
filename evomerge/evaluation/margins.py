"""Margins: how far on the right side each answer is, from the forward passes that score it.

A 0 or 1 says little of an example; the lead of the right answer over the best wrong one says how
near it is to changing sides. Algorithms that model scores learn more from it (`algorithms.auto`).
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray, ScoreArray
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.examples import chosen
from evomerge.evaluation.part import Part, whole_of

# Of an example with one possible answer, which is always right.
UNRIVALLED = 1.0


@runtime_checkable
class GivesMargins(Protocol):
    """An evaluator that may also say how far from the other side each answer is."""

    @property
    def has_margins(self) -> bool:
        """Whether it does: its scores are 0 or 1."""
        ...

    def evaluate_with_margins(
        self, subject: Any, positions: IntArray | None = None
    ) -> tuple[ScoreArray, ScoreArray]:
        """Return what `Evaluator.evaluate` does, and (n,) float32 margins.

        A margin is the logit or log-likelihood of the right answer less that of the best wrong
        one, in nats: above 0 where the score is 1, below 0 where it is 0, and about 0 at ties.
        Asked for only where `has_margins`.
        """
        ...


def gives_margins(evaluator: Evaluator) -> bool:
    """Return whether an evaluator, or the one that it is a part of, gives margins."""
    whole = whole_of(evaluator)
    return isinstance(whole, GivesMargins) and whole.has_margins


def score_with_margins(
    evaluator: Evaluator, subject: Any, positions: IntArray | None
) -> tuple[ScoreArray, ScoreArray]:
    """Return an evaluator's (n,) scores and margins, NaN where it gives none.

    Args:
        evaluator: Any one.
        subject: What it scores.
        positions: (n,) examples; None: all.

    Raises:
        EvaluationError: As `Evaluator.evaluate` does.
    """
    whole = whole_of(evaluator)
    if not (isinstance(whole, GivesMargins) and whole.has_margins):
        scores = evaluator.evaluate(subject, positions)
        return scores, np.full(np.shape(scores), np.nan, np.float32)
    if isinstance(evaluator, Part):
        positions = evaluator.kept[chosen(len(evaluator.kept), positions)]
    return whole.evaluate_with_margins(subject, positions)


def margin_of(values: FloatArray, gold: int) -> float:
    """Return by how much values[gold] leads the best of the other (options,) values."""
    others = np.delete(values, gold)
    return float(values[gold] - others.max()) if len(others) else UNRIVALLED
