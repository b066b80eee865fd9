"""How a search vector is spelled as optuna's parameters: numbers, or a method and its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.choice_space import METHOD, ChoiceSpace, Space

# Samplers that model every set of parameters that occurs; the others draw at random what not every
# trial has, so they are given all numbers of all methods.
CONDITIONAL = ("TPESampler",)
# Samplers that draw at random what is no number: the choice stays numbers, one per method.
NUMBERS_ONLY = ("CmaEsSampler", "QMCSampler")


class OptunaParameters:
    """Asks a study for points of one search space, and says points in its parameters.

    A number is a float in [0, 1]. The method of a `ChoiceSpace` is a categorical parameter of its
    branches' labels; a sampler of `CONDITIONAL` is then asked for the numbers of that branch only.
    """

    def __init__(self, space: Space, sampler: str) -> None:
        """Args: space: what is searched; sampler: class name in optuna.samplers."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        self._choice: ChoiceSpace | None = None
        if isinstance(space, ChoiceSpace) and sampler not in NUMBERS_ONLY:
            self._choice = space
        self.is_conditional = self._choice is not None and sampler in CONDITIONAL
        self._numbers: dict[str, int] = {f"x{i:03d}": i for i in range(space.dimension)}
        self._distributions: dict[str, Any] = dict.fromkeys(
            self._numbers, FloatDistribution(0.0, 1.0)
        )
        if self._choice is not None:
            own = {} if self.is_conditional else self._distributions
            chosen = {METHOD: CategoricalDistribution(self._choice.labels)}
            self._distributions = chosen | dict(list(own.items())[self._choice.n_branches :])

    def options_for(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return a sampler's options with what it needs for these parameters."""
        if self.is_conditional and options.get("multivariate"):
            # Without groups it falls back to one number at a time.
            return {"group": True, **options}
        return dict(options)

    def ask(self, study: Any) -> tuple[Any, FloatArray]:
        """Return the study's next trial and its (D,) vector."""
        trial = study.ask(self._distributions)
        if self._choice is None:
            return trial, np.array([trial.params[name] for name in self._numbers])
        branch = self._choice.labels.index(trial.params[METHOD])
        own = [trial.suggest_float(name, 0.0, 1.0) for name in self._names_of(branch)]
        return trial, self._choice.place(branch, np.array(own))

    def point(self, vector: FloatArray) -> dict[str, float | str]:
        """Return what `ask` would find in a trial's parameters for a (D,) vector."""
        values = {name: float(vector[i]) for name, i in self._numbers.items()}
        if self._choice is None:
            return dict(values)
        branch = self._choice.chosen(vector)
        wanted = {*self._distributions, *self._names_of(branch)}
        point: dict[str, float | str] = {METHOD: self._choice.labels[branch]}
        return point | {name: value for name, value in values.items() if name in wanted}

    def _names_of(self, branch: int) -> list[str]:
        assert self._choice is not None
        return list(self._numbers)[self._choice.slices[branch]]
