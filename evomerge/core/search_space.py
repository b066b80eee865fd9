"""SearchSpace: vectors in [0, 1]^D <-> recipes, and the founders every search starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

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


@dataclass(frozen=True)
class Stretch:
    """Where the numbers of one searched parameter stand in a search vector.

    Attributes:
        param: The parameter, its name the one algorithms know it by.
        rows: It has `rows` times `param.width` numbers, row by row.
        start: Where the first of them stands.
    """

    param: SearchedParam
    rows: int
    start: int

    @property
    def stop(self) -> int:
        """Where the next stretch begins."""
        return self.start + self.rows * self.param.width

    @property
    def slice(self) -> slice:
        """The numbers, in a (D,) vector."""
        return slice(self.start, self.stop)


@dataclass(frozen=True, eq=False)
class SearchSpace:
    """All recipes of one merge method that an algorithm may propose; see also `ChoiceSpace`.

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
        breaks: (G + 1,) element offsets between the groups of grouping "segments"; else empty.
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
    breaks: tuple[int, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The merge methods that recipes may name: one."""
        return (self.operator,)

    @cached_property
    def layout(self) -> tuple[Stretch, ...]:
        """Which numbers of a search vector are whose, in order."""
        found: list[Stretch] = []
        for item in self.searched:
            start = found[-1].stop if found else 0
            found.append(Stretch(item, item.n_rows(self.n_groups), start))
        return tuple(found)

    @property
    def dimension(self) -> int:
        """D, the length of a search vector."""
        return self.layout[-1].stop if self.layout else 0

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
        for stretch in self.layout:
            item = stretch.param
            rows = item.rows_of(unit[stretch.slice])
            params[item.name] = rows if item.per_source else rows[:, 0]
        if SWITCH in params:
            params = self._switched(params)
        return self.recipe(params)

    def recipe(self, params: Mapping[str, FloatArray]) -> Recipe:
        """Return the recipe with these values of the operator's parameters, (G,) or (G, width)."""
        breaks = np.array(self.breaks, dtype=np.int64) if self.breaks else None
        return Recipe(self.operator, self.sources, params, self.grouping, breaks, self.settings)

    def canonical(self, points: FloatArray) -> FloatArray:
        """Return (n, D) points with numbers that do not count at a fixed value: the same points."""
        return points

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
            and np.array_equal(() if recipe.breaks is None else recipe.breaks, self.breaks)
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
