"""Objectives and constraints: reduce per-example scores to the numbers a front is made of."""

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
        means = (
            weight * float(np.add.reduce(scores[task], dtype=np.float64) / len(scores[task]))
            for task, weight in self.weights.items()
        )
        return float(sum(means) / total)


@dataclass(frozen=True)
class Bound:
    """A limit: `offset`, or `factor` times what a source scores, plus `offset`."""

    offset: float = 0.0
    factor: float = 0.0
    source: str | None = None

    def __str__(self) -> str:
        """Return it as a config spells it."""
        if self.source is None:
            return f"{self.offset:g}"
        text = self.source if self.factor == 1.0 else f"{self.factor:g} * {self.source}"
        if self.offset:
            text += f" {'-' if self.offset < 0 else '+'} {abs(self.offset):g}"
        return text


@dataclass(frozen=True)
class Constraint:
    """A weighted mean of task means that must be at least, or at most, a bound.

    Attributes:
        measure: What is measured, in the unit of the scores.
        bound: The limit.
        is_minimum: "at least", else "at most".
    """

    measure: Objective
    bound: Bound
    is_minimum: bool = True

    def __str__(self) -> str:
        """Return it for people: "general >= 0.95 * base"."""
        return f"{self.measure.name} {'>=' if self.is_minimum else '<='} {self.bound}"


@dataclass(frozen=True)
class Objectives:
    """The M objectives of a run, in a fixed order, and the constraints beside them."""

    items: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an empty or ambiguous list."""
        names = [item.name for item in self.items]
        if not names:
            raise ConfigError("objectives: at least one is needed")
        if len(set(names)) != len(names):
            raise ConfigError(f"objectives: names repeat: {names}")
        texts = [str(item) for item in self.constraints]
        if len(set(texts)) != len(texts):
            raise ConfigError(f"constraints: the same one is given twice: {texts}")

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


def mixture(weights: Mapping[str, float] | None, objectives: Objectives, where: str) -> FloatArray:
    """Return (M,) weights of a mean of the objectives, with sum 1; None weighs all alike.

    Args:
        weights: Objective -> weight; those left out weigh nothing.
        objectives: The M objectives.
        where: Config key, for errors.

    Raises:
        ConfigError: A name is no objective, or the weights are not positive.
    """
    if weights is None:
        return np.full(len(objectives), 1.0 / len(objectives))
    mixed = np.zeros(len(objectives))
    for name, weight in weights.items():
        mixed[objectives.index(name)] = weight
    if not np.isfinite(mixed).all() or (mixed < 0).any() or mixed.sum() <= 0:
        raise ConfigError(f"{where}: must be non-negative with a positive sum, got {dict(weights)}")
    normalised: FloatArray = mixed / mixed.sum()
    return normalised
