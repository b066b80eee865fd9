"""Feasibility: which candidates keep a run's constraints, as far as the bounds are known.

Shapes: C constraints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Evaluation
from evomerge.core.objective import Constraint


class Feasibility:
    """Which measured candidates keep the constraints, as far as the bounds are known.

    A bound relative to a source is known once that source, a founder of the run, is scored.
    Until then nothing counts as feasible, and that bound adds nothing to a violation.
    """

    def __init__(self, constraints: Sequence[Constraint]) -> None:
        """Start with the C constraints and no source scored."""
        self.constraints = tuple(constraints)
        self._reference: list[float | None] = [
            0.0 if item.bound.source is None else None for item in self.constraints
        ]

    def __len__(self) -> int:
        """C."""
        return len(self.constraints)

    @property
    def is_known(self) -> bool:
        """Whether every bound is a number by now."""
        return None not in self._reference

    def measure(self, evaluation: Evaluation) -> FloatArray:
        """Return (C,) measured values of a successful evaluation."""
        return np.array([item.measure.value(evaluation.scores) for item in self.constraints])

    def learn(self, origin: str, measured: FloatArray) -> bool:
        """Take in a scored candidate; return whether a bound has become known by it.

        Args:
            origin: How the candidate came about; "founder: <source>" is that source itself.
            measured: (C,) its values.
        """
        learnt = False
        for index, item in enumerate(self.constraints):
            if self._reference[index] is None and origin == f"founder: {item.bound.source}":
                self._reference[index] = float(measured[index])
                learnt = True
        return learnt

    def limits(self) -> list[float | None]:
        """Return the C bounds as numbers; None for one that is not known yet."""
        return [
            None if known is None else item.bound.factor * known + item.bound.offset
            for item, known in zip(self.constraints, self._reference, strict=True)
        ]

    def gaps(self, measured: FloatArray) -> FloatArray:
        """Return (C,) how far each bound is missed, negative where it is kept, 0 if not known."""
        found = np.zeros(len(self))
        for index, (item, limit) in enumerate(zip(self.constraints, self.limits(), strict=True)):
            if limit is not None:
                gap = limit - float(measured[index])
                found[index] = gap if item.is_minimum else -gap
        return found

    def violation(self, measured: FloatArray) -> float:
        """Return what the known bounds are missed by, summed; 0 when all of them are kept."""
        return float(np.maximum(self.gaps(measured), 0.0).sum())

    def is_feasible(self, measured: FloatArray) -> bool:
        """Return whether every bound is known and kept."""
        return self.is_known and self.violation(measured) == 0.0

    def describe(self, measured: Mapping[str, float] | None = None) -> list[str]:
        """Return one line per constraint, with its bound as a number and what was measured.

        Args:
            measured: Text of a constraint -> value; None: the bounds alone.
        """
        lines = []
        for item, limit in zip(self.constraints, self.limits(), strict=True):
            text = str(item)
            if item.bound.source is not None:
                text += " = not known yet" if limit is None else f" = {limit:.4f}"
            if measured is not None:
                value = measured[str(item)]
                text += f": measured {value:.4f}"
                if limit is not None:
                    kept = value >= limit if item.is_minimum else value <= limit
                    text += ", met" if kept else ", NOT met"
            lines.append(text)
        return lines
