"""SearchSpace: vectors in [0, 1]^D <-> recipes, and the founders every search starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Proposal
from evomerge.core.linear_span import LinearSpan
from evomerge.core.recipe import Recipe, Setting

SWITCH = "modules"  # the searched parameter that is none of the operator's, see `SearchSpace`


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
        curve: (G, k) shares of k knots in each group's value, rows that sum to 1: the knots are
            searched then. None: every group has a value of its own.
    """

    name: str
    width: int
    per_source: bool
    low: float
    high: float
    initial: float
    curve: tuple[tuple[float, ...], ...] | None = None

    def __post_init__(self) -> None:
        """Make the curve hashable, wherever it was read from."""
        if self.curve is not None:
            object.__setattr__(self, "curve", tuple(tuple(row) for row in self.curve))

    def n_rows(self, n_groups: int) -> int:
        """Return how many rows of `width` values are searched: one per knot, or per group."""
        return n_groups if self.curve is None else len(self.curve[0])

    def size(self, n_groups: int) -> int:
        """Return how many numbers of the search vector belong to this parameter."""
        return self.width * self.n_rows(n_groups)

    def rows_of(self, unit: FloatArray) -> FloatArray:
        """Return (G, width) values of (size,) numbers in [0, 1]."""
        rows: FloatArray = (self.low + unit * (self.high - self.low)).reshape(-1, self.width)
        if self.curve is None:
            return rows
        # Rounding must not carry a value out of what is legal.
        return np.clip(np.array(self.curve) @ rows, self.low, self.high)

    def unit_of(self, rows: FloatArray) -> FloatArray | None:
        """Return (size,) numbers of (G, width) values; None when this parameter cannot say them."""
        slack = 1e-12
        if self.curve is not None:
            shares, slack = np.array(self.curve), 1e-9
            if len(shares) != len(rows):
                return None
            knots: FloatArray = np.linalg.lstsq(shares, rows, rcond=None)[0]
            if not np.allclose(shares @ knots, rows, rtol=0.0, atol=slack * (self.high - self.low)):
                return None
            rows = knots
        unit: FloatArray = (rows.reshape(-1) - self.low) / (self.high - self.low)
        if (unit < -slack).any() or (unit > 1.0 + slack).any():
            return None
        return np.clip(unit, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """Everything an algorithm may propose.

    A searched parameter called `SWITCH` is a gene per group: below 0.5 the group goes back to the
    base, by weights of 0. Its other parameters then have their initial values, so that vectors
    which differ in nothing else decode to one recipe.

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
        return sum(item.size(self.n_groups) for item in self.searched)

    def initial(self) -> FloatArray:
        """Return the (D,) vector of every parameter's initial value."""
        parts = [
            np.full(item.size(self.n_groups), (item.initial - item.low) / (item.high - item.low))
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
            stop = start + item.size(self.n_groups)
            rows = item.rows_of(unit[start:stop])
            params[item.name] = rows if item.per_source else rows[:, 0]
            start = stop
        if SWITCH in params:
            params = self._switched(params)
        return Recipe(self.operator, self.sources, params, self.grouping, None, self.settings)

    def _switched(self, params: dict[str, FloatArray]) -> dict[str, FloatArray]:
        is_off = params.pop(SWITCH) < 0.5
        for item in self.searched:
            if item.name in params:
                params[item.name][is_off] = 0.0 if item.name == "weights" else item.initial
        return params

    def encode(self, recipe: Recipe) -> FloatArray | None:
        """Return the (D,) vector of a recipe, or None when this space cannot express it."""
        same = (
            recipe.operator == self.operator
            and recipe.sources == self.sources
            and recipe.grouping == self.grouping
            and recipe.settings == dict(self.settings)
            and {*recipe.params, SWITCH} == {*self.fixed, *self._searched_names, SWITCH}
            and all(
                np.array_equal(recipe.params[name], value) for name, value in self.fixed.items()
            )
        )
        if not same or (self.searched and recipe.n_groups != self.n_groups):
            return None
        parts = []
        params = dict(recipe.params)
        if SWITCH in self._searched_names:
            params = self._with_switch(params)
        for item in self.searched:
            unit = item.unit_of(params[item.name].reshape(-1, item.width))
            if unit is None:
                return None
            parts.append(unit)
        return np.concatenate(parts) if parts else np.zeros(0)

    @property
    def _searched_names(self) -> set[str]:
        return {item.name for item in self.searched}

    def _with_switch(self, params: dict[str, FloatArray]) -> dict[str, FloatArray]:
        """Return a recipe's parameters with the switch that they amount to."""
        is_off = (params["weights"] == 0.0).all(axis=1)
        found: dict[str, FloatArray] = {}
        for item in self.searched:
            if item.name == SWITCH:
                found[SWITCH] = np.where(is_off, 1.0 - item.initial, item.initial)
            else:
                found[item.name] = params[item.name].copy()
                found[item.name][is_off] = item.initial
        return found
