"""Proposal, Candidate, Evaluation: a recipe before, while and after it is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evomerge.core.arrays import ScoreArray
from evomerge.core.recipe import Recipe


@dataclass(frozen=True, eq=False)
class Proposal:
    """What an algorithm asks for: a recipe and the candidates it was bred from."""

    recipe: Recipe
    parents: tuple[int, ...] = ()
    origin: str = ""  # how it came about, for people: "crossover", "founder: mean", …


@dataclass(frozen=True, eq=False)
class Candidate:
    """A proposal with its place in the run."""

    id: int
    recipe: Recipe
    parents: tuple[int, ...] = ()
    seed: int = 0
    origin: str = ""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The scores of one candidate, or the reason there are none.

    Attributes:
        candidate: What was scored.
        scores: Task -> (N_task,) float32 per-example scores, higher is better; empty on failure.
        error: One line that says why scoring failed, else None. Scores are never NaN.
        weights_digest: Digest of the merged tensors that were scored ("" when unknown).
    """

    candidate: Candidate
    scores: Mapping[str, ScoreArray] = field(default_factory=dict)
    error: str | None = None
    weights_digest: str = ""

    def flat_scores(self) -> ScoreArray:
        """Return (N,) scores of all tasks, joined in task-name order."""
        if not self.scores:
            return np.zeros(0, np.float32)
        return np.concatenate([self.scores[task] for task in sorted(self.scores)])
