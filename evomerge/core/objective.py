"""Objectives: reduce per-example scores to the M numbers a front is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import FloatArray, ScoreArray
from evomerge.core.candidate import Evaluation
from evomerge.errors import ConfigError, nearest


@dataclass(frozen=True)
class Objective:
    """A weighted mean of task means, higher is better.

    Attributes:
        name: What users call it.
        weights: Task -> weight; divided by their sum.
    """

    name: str
    weights: Mapping[str, float]

    def __post_init__(self) -> None:
        """Refuse an objective that measures nothing."""
        if not self.weights or any(w <= 0 for w in self.weights.values()):
            raise ConfigError(f"objective {self.name!r}: task weights must be positive")

    def value(self, scores: Mapping[str, ScoreArray]) -> float:
        """Return the weighted mean over tasks of the mean score over examples."""
        total = sum(self.weights.values())
        return float(
            sum(
                weight * float(np.mean(scores[task], dtype=np.float64))
                for task, weight in self.weights.items()
            )
            / total
        )


@dataclass(frozen=True)
class Objectives:
    """The M objectives of a run, in a fixed order."""

    items: tuple[Objective, ...]

    def __post_init__(self) -> None:
        """Refuse an empty or ambiguous list."""
        names = [item.name for item in self.items]
        if not names:
            raise ConfigError("objectives: at least one is needed")
        if len(set(names)) != len(names):
            raise ConfigError(f"objectives: names repeat: {names}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(item.name for item in self.items)

    def __len__(self) -> int:
        return len(self.items)

    def index(self, name: str) -> int:
        """Return the position of an objective, or raise ConfigError with the nearest name."""
        if name not in self.names:
            raise ConfigError(
                f"{name!r} is not an objective.{nearest(name, self.names)} "
                f"Objectives: {', '.join(self.names)}."
            )
        return self.names.index(name)

    def values(self, evaluation: Evaluation) -> FloatArray:
        """Return (M,) objective values of a successful evaluation."""
        return np.array([item.value(evaluation.scores) for item in self.items])
