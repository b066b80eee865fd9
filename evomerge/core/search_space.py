"""SearchSpace: vectors in [0, 1]^D <-> recipes, and the founders every search starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Proposal
from evomerge.core.linear_span import LinearSpan
from evomerge.core.recipe import Recipe, Setting


@dataclass(frozen=True)
class SearchedParam:
    """One searched parameter.

    Attributes:
        name: Operator field, or a parameter of the layer scale.
        width: Values per group: number of weighted sources, or 1.
        per_source: Whether rows are (width,) arrays or plain numbers.
        low: Value at 0 of the unit interval.
        high: Value at 1.
        initial: Value a search starts from.
    """

    name: str
    width: int
    per_source: bool
    low: float
    high: float
    initial: float


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Everything an algorithm may propose.

    Attributes:
        operator: Registered name of the merge operator.
        sources: (K,) source ids, the base first when there is one.
        grouping: Grouping of the recipes this space decodes to.
        n_groups: G.
        searched: Searched parameters in declaration order.
        fixed: Parameter -> one value per group row, (G,) or (G, width); not searched.
        settings: Fixed constructor keywords of the operator.
        span: Geometry of the sources' span; None unless the algorithm asked for it.
        founders: Recipes that are scored before the algorithm's own proposals.
    """

    operator: str
    sources: tuple[str, ...]
    grouping: str
    n_groups: int
    searched: tuple[SearchedParam, ...]
    fixed: Mapping[str, FloatArray] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)
    span: LinearSpan | None = None
    founders: tuple[Proposal, ...] = ()

    @property
    def dimension(self) -> int:
        """D, the length of a search vector."""
        return sum(item.width * self.n_groups for item in self.searched)

    def initial(self) -> FloatArray:
        """Return the (D,) vector of every parameter's initial value."""
        parts = [
            np.full(item.width * self.n_groups, (item.initial - item.low) / (item.high - item.low))
            for item in self.searched
        ]
        return np.clip(np.concatenate(parts), 0.0, 1.0) if parts else np.zeros(0)

    def decode(self, vector: FloatArray) -> Recipe:
        """Return the recipe of a (D,) vector; values outside [0, 1] are clipped."""
        unit = np.clip(np.asarray(vector, dtype=np.float64), 0.0, 1.0)
        if unit.shape != (self.dimension,):
            raise ValueError(f"expected a vector of shape ({self.dimension},), got {unit.shape}")
        params = dict(self.fixed)
        start = 0
        for item in self.searched:
            stop = start + item.width * self.n_groups
            values = item.low + unit[start:stop] * (item.high - item.low)
            rows = values.reshape(self.n_groups, item.width)
            params[item.name] = rows if item.per_source else rows[:, 0]
            start = stop
        return Recipe(self.operator, self.sources, params, self.grouping, None, self.settings)

    def encode(self, recipe: Recipe) -> FloatArray | None:
        """Return the (D,) vector of a recipe, or None when this space cannot express it."""
        same = (
            recipe.operator == self.operator
            and recipe.sources == self.sources
            and recipe.grouping == self.grouping
            and recipe.settings == dict(self.settings)
            and set(recipe.params) == {*self.fixed, *(item.name for item in self.searched)}
            and all(
                np.array_equal(recipe.params[name], value) for name, value in self.fixed.items()
            )
        )
        if not same:
            return None
        parts = []
        for item in self.searched:
            if recipe.params[item.name].shape[0] != self.n_groups:
                return None
            unit = (recipe.params[item.name].reshape(-1) - item.low) / (item.high - item.low)
            if (unit < -1e-12).any() or (unit > 1.0 + 1e-12).any():
                return None
            parts.append(np.clip(unit, 0.0, 1.0))
        return np.concatenate(parts) if parts else np.zeros(0)
