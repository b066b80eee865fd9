"""Proposal, Candidate, Evaluation: a recipe before, while and after it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evomerge.core.arrays import IntArray, ScoreArray
from evomerge.core.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Proposal:
    """What an algorithm asks for: a recipe and the candidates it was bred from.

    Attributes:
        recipe: What to merge.
        parents: Candidates it was bred from.
        origin: How it came about, for people: "crossover", "founder: mean", …
        examples: (n,) positions in `Evaluation.flat_scores` to score; None: all. What was scored
            of the same recipe before is told with them.
    """

    recipe: Recipe
    parents: tuple[int, ...] = ()
    origin: str = ""
    examples: IntArray | None = None


@dataclass(frozen=True, eq=False)
class Candidate:
    """A proposal with its place in the run.

    `examples` are those that are still to be scored: None for all.
    """

    id: int
    recipe: Recipe
    parents: tuple[int, ...] = ()
    seed: int = 0
    origin: str = ""
    examples: IntArray | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of one candidate, or the reason there are none.

    Attributes:
        candidate: What was scored.
        scores: Task -> (N_task,) float32 per-example scores, higher is better; empty on failure.
            NaN where an example was not scored, which only algorithms that ask for some of the
            examples are told.
        error: One line that says why scoring failed, else None.
        weights_digest: Digest of the merged tensors that were scored ("" when unknown).
        examples: (n,) positions in `flat_scores` that were scored; None: all.
        margins: Task -> (N_task,) float32, how far on the right side each answer is: the right
            answer's logit or log-likelihood less the best wrong one's, in nats. NaN where an
            example was not scored or its evaluator does not say; empty when nothing is known.
    """

    candidate: Candidate
    scores: Mapping[str, ScoreArray] = field(default_factory=dict)
    error: str | None = None
    weights_digest: str = ""
    examples: IntArray | None = None
    margins: Mapping[str, ScoreArray] = field(default_factory=dict)

    def flat_scores(self) -> ScoreArray:
        """Return (N,) scores of all tasks, joined in task-name order."""
        if not self.scores:
            return np.zeros(0, np.float32)
        return np.concatenate([self.scores[task] for task in sorted(self.scores)])

    def flat_margins(self) -> ScoreArray:
        """Return (N,) margins in the order of `flat_scores`, NaN where none is known."""
        if not self.scores:
            return np.zeros(0, np.float32)
        return np.concatenate(
            [
                self.margins.get(task, np.full(len(self.scores[task]), np.nan, np.float32))
                for task in sorted(self.scores)
            ]
        )


def split_scores(row: ScoreArray, tasks: Mapping[str, int]) -> dict[str, ScoreArray]:
    """Cut an (N,) row of `Evaluation.flat_scores` into tasks, in task-name order."""
    parts: dict[str, ScoreArray] = {}
    start = 0
    for task in sorted(tasks):
        parts[task] = row[start : start + tasks[task]]
        start += tasks[task]
    return parts


def scored_examples(row: ScoreArray) -> IntArray | None:
    """Return the positions of an (N,) row that are not NaN; None when that is all of them."""
    scored = ~np.isnan(row)
    return None if scored.all() else np.flatnonzero(scored)


def known_margins(row: ScoreArray, tasks: Mapping[str, int]) -> dict[str, ScoreArray]:
    """Cut an (N,) row of `Evaluation.flat_margins` into tasks; those without any are left out."""
    parts = split_scores(row, tasks)
    return {task: own for task, own in parts.items() if not np.isnan(own).all()}
