"""Votes: several models answer the same examples, and what most of them answer counts.

Only evaluators whose scores come from one answer per example can be voted on; those that are
scored by a probability or a text as a whole cannot.

Source: arXiv:2503.01155 (GENOME+), its ensemble of the best members; spec: algorithms.md §2.
Differs from the authors' code, which gives half a point for a tied vote: a tie goes to the answer
of the member that comes first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.errors import ConfigError
from evomerge.evaluation.evaluator import Evaluator
from evomerge.evaluation.part import Part

Answer = Hashable | None


@runtime_checkable
class GivesAnswers(Protocol):
    """An evaluator that scores one answer per example."""

    def why_no_vote(self) -> str:
        """Return why its answers cannot be voted on, "" when they can."""
        ...

    def answers(self, subject: Any, positions: IntArray) -> Sequence[Answer]:
        """Return (n,) answers of the model; None where it gives none."""
        ...

    def marks(self, answers: Sequence[Answer], positions: IntArray) -> ScoreArray:
        """Return (n,) float32 scores of answers to these examples."""
        ...


def require_votes(task: str, evaluator: Evaluator) -> None:
    """Refuse an evaluator whose answers cannot be voted on.

    Raises:
        ConfigError: It scores no single answers; names the task and the reason.
    """
    whole = evaluator.whole if isinstance(evaluator, Part) else evaluator
    reason = "its evaluator gives scores only"
    if isinstance(whole, GivesAnswers):
        reason = whole.why_no_vote()
    if reason:
        raise ConfigError(
            f"--ensemble: task {task!r} cannot be voted on: {reason}. A vote needs one answer per "
            "example, as classification (metric: accuracy), multiple_choice and exact_match give"
        )


def answers_of(evaluator: Evaluator, subject: Any) -> Sequence[Answer]:
    """Return a model's (N,) answers to the examples of an evaluator that gives them."""
    whole, positions = _whole(evaluator)
    return whole.answers(subject, positions)


def marks_of(evaluator: Evaluator, answers: Sequence[Answer]) -> ScoreArray:
    """Return (N,) float32 scores of answers to the examples of an evaluator."""
    whole, positions = _whole(evaluator)
    return whole.marks(answers, positions)


def majority(ballots: Sequence[Sequence[Answer]]) -> list[Answer]:
    """Return (N,) what most members answer, of equally many the one that comes first.

    A member without an answer does not vote.

    Args:
        ballots: (K,) answers of each member, (N,) each; the best member first.
    """
    return [_winner(votes) for votes in zip(*ballots, strict=True)]


def _winner(votes: Sequence[Answer]) -> Answer:
    counts = Counter(vote for vote in votes if vote is not None)
    return max(counts, key=lambda vote: counts[vote], default=None)  # the first of equals


def _whole(evaluator: Evaluator) -> tuple[GivesAnswers, IntArray]:
    whole = evaluator.whole if isinstance(evaluator, Part) else evaluator
    kept = evaluator.kept if isinstance(evaluator, Part) else np.arange(evaluator.n_examples())
    if not isinstance(whole, GivesAnswers):
        raise ConfigError("this evaluator gives scores only, no answers")
    return whole, kept
