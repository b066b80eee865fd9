"""ChoiceSpace: a search over the merge method itself, each method with parameters of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Proposal
from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SearchedParam, SearchSpace, Stretch

METHOD = "method"  # name of the numbers that choose
# Of the chosen branch and of the others, where a recipe becomes a vector: so near to each other
# that a search with small steps tries other branches at once.
CHOSEN, OTHER = 0.6, 0.4


@dataclass(frozen=True, eq=False)
class ChoiceSpace:
    """Everything an algorithm may propose where there are several merge methods to choose from.

    A search vector has one number per branch, then the numbers of the first branch, of the second
    and so on. The branch whose number is the largest is chosen (the first of equal ones); what
    belongs to the other branches does not count. One number per branch, not one cut into
    intervals: no method then stands between two others, and a Gaussian step reaches each.

    Attributes:
        branches: (B,) search spaces over the same sources, two or more.
        labels: (B,) what people call them, all different.
        founders: Recipes that are scored before the algorithm's own proposals; those of the
            branches are not looked at.
    """

    branches: tuple[SearchSpace, ...]
    labels: tuple[str, ...]
    founders: tuple[Proposal, ...] = ()

    # No branch alone says what the span of the sources is good for.
    span = None

    def __post_init__(self) -> None:
        """Refuse what is no choice.

        Raises:
            ValueError: There are fewer than two branches, labels repeat or are not one per
                branch, or the branches merge different sources.
        """
        if len(self.branches) < 2 or len(set(self.labels)) != len(self.branches):
            raise ValueError(f"expected two or more branches, each with a label: {self.labels}")
        if any(branch.sources != self.sources for branch in self.branches):
            raise ValueError("the branches merge different sources")

    @property
    def methods(self) -> tuple[str, ...]:
        """The merge methods that recipes may name, each once."""
        return tuple(dict.fromkeys(branch.operator for branch in self.branches))

    @property
    def sources(self) -> tuple[str, ...]:
        """(K,) source ids, the base first when there is one."""
        return self.branches[0].sources

    @property
    def n_branches(self) -> int:
        """B."""
        return len(self.branches)

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """(B,) each branch's numbers in a search vector."""
        stops = self.n_branches + np.cumsum([branch.dimension for branch in self.branches])
        return tuple(
            slice(int(stop) - branch.dimension, int(stop))
            for stop, branch in zip(stops, self.branches, strict=True)
        )

    @cached_property
    def layout(self) -> tuple[Stretch, ...]:
        """Which numbers are whose: `METHOD`, then parameters named "<label>.<parameter>"."""
        choice = SearchedParam(METHOD, self.n_branches, False, 0.0, 1.0, 0.5)
        found = [Stretch(choice, 1, 0)]
        for label, branch, place in zip(self.labels, self.branches, self.slices, strict=True):
            found += [
                Stretch(
                    replace(item.param, name=f"{label}.{item.param.name}"),
                    item.rows,
                    place.start + item.start,
                )
                for item in branch.layout
            ]
        return tuple(found)

    @property
    def dimension(self) -> int:
        """D, the length of a search vector."""
        return int(self.slices[-1].stop)

    def initial(self) -> FloatArray:
        """Return the (D,) vector of initial values, no branch before another."""
        parts = [branch.initial() for branch in self.branches]
        return np.concatenate([np.full(self.n_branches, 0.5), *parts])

    def place(self, branch: int, points: FloatArray) -> FloatArray:
        """Return (…, D) vectors that choose a branch, of (…, its dimension) vectors of it."""
        own = np.asarray(points, dtype=np.float64)
        placed: FloatArray = np.broadcast_to(
            self.initial(), (*own.shape[:-1], self.dimension)
        ).copy()
        placed[..., : self.n_branches] = OTHER
        placed[..., branch] = CHOSEN
        placed[..., self.slices[branch]] = own
        return placed

    def chosen(self, vector: FloatArray) -> int:
        """Return the branch that a (D,) vector chooses; values outside [0, 1] are clipped."""
        return int(np.clip(vector[: self.n_branches], 0.0, 1.0).argmax())

    def decode(self, vector: FloatArray) -> Recipe:
        """Return the recipe of a (D,) vector; values outside [0, 1] are clipped."""
        values = np.asarray(vector, dtype=np.float64)
        if values.shape != (self.dimension,):
            raise ValueError(f"expected a vector of shape ({self.dimension},), got {values.shape}")
        branch = self.chosen(values)
        return self.branches[branch].decode(values[self.slices[branch]])

    def encode(self, recipe: Recipe) -> FloatArray | None:
        """Return the (D,) vector of a recipe in the first branch that can express it, or None."""
        for index, branch in enumerate(self.branches):
            vector = branch.encode(recipe)
            if vector is not None:
                return self.place(index, vector)
        return None

    def canonical(self, points: FloatArray) -> FloatArray:
        """Return (n, D) points with the numbers that do not count at fixed values.

        The choice becomes `CHOSEN` and `OTHER`; branches not chosen have their initial values.
        """
        unit = np.clip(points, 0.0, 1.0)
        chosen = unit[:, : self.n_branches].argmax(axis=1)
        found = np.empty_like(unit)
        for index, place in enumerate(self.slices):
            found[chosen == index] = self.place(index, unit[chosen == index, place])
        return found


Space = SearchSpace | ChoiceSpace
