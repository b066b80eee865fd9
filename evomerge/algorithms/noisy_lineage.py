"""NoisyLineage: children by SLERP with a split point, plus seeded noise on every weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from evomerge.core.ancestry import ancestor_name
from evomerge.core.arrays import FloatArray
from evomerge.core.lineage_sketch import LineageSketch
from evomerge.core.linear_span import (
    LinearSpan,
    Segments,
    on_common_breaks,
    slerp_weights,
    split_crossover,
)
from evomerge.core.noise import noise_name
from evomerge.core.noisy_span import NoisySegments, NoisySpan
from evomerge.core.recipe import Recipe

MAX_NOISE = 32  # terms of a recipe; each costs a pass over all elements per merge


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisyLineage:
    """From-scratch evolution in coefficients over sources and noise: no weights are touched.

    Members are their recipes. Nothing of a lineage is ever lost: a child that would inherit too
    many terms or segments gets a recipe over its two parents instead, as ancestors that are
    computed once and then read like models (the rebase rule). The angle of members with ancestors
    is approximate, see `core.lineage_sketch`; what their recipes say is not.

    Attributes:
        span: Geometry of the sources.
        sigma: Standard deviation of what is added to every weight of a child.
        max_noise: Most terms of noise and ancestors, but for the three of a child of ancestors.
        split_point: See `SpanLineage`.
        is_global: Measure the parents' angle over the whole vector; else on each side.
        max_segments: Most segments of a child.

    Source: spec algorithms.md §11 (rebase rule).
    """

    span: LinearSpan
    sigma: float
    max_noise: int = MAX_NOISE
    split_point: bool = True
    is_global: bool = True
    max_segments: int = 256
    _checked: set[str] = field(default_factory=set, init=False)  # ancestors that can be read

    def cross(self, a: Recipe, b: Recipe, rng: np.random.Generator) -> Recipe:
        """Return slerp_w(a, b) before the split, slerp_{1-w}(a, b) after it, plus noise."""
        k, end, space = len(self.span.sources), self.span.n_elements, NoisySpan(self.span)
        w = rng.random()
        split = self.span.snap(int(rng.integers(end))) if self.split_point else end
        noise = noise_name(int(rng.integers(2**64, dtype=np.uint64)))
        one, other = space.read(a), space.read(b)
        assert one is not None
        assert other is not None
        made = tuple(dict.fromkeys((*one.made, *other.made)))
        x, y = on_common_breaks(one.over(made, k), other.over(made, k), split)

        def angle(start: int = 0, stop: int | None = None) -> float:
            if a.ancestors or b.ancestors:
                return self._sketch.angle(a, b, start, stop)
            return space.angle(x, y, start, stop)

        if self.is_global or split in (0, end):
            before = after = angle()
        else:
            before, after = angle(0, split), angle(split, end)
        left, right = slerp_weights(w, before), slerp_weights(1.0 - w, after)
        child = split_crossover(x, y, split, left, right)
        ancestors = {**a.ancestors, **b.ancestors}
        if len(made) >= self.max_noise or len(child.coefficients) > self.max_segments:
            ancestors = {ancestor_name(parent.digest()): parent for parent in (a, b)}
            made = tuple(ancestors)
            x, y = self._alone(k, made[0], made), self._alone(k, made[-1], made)
            child = split_crossover(x, y, split, left, right)
        rows = self._mutated(child.coefficients)
        model = NoisySegments(Segments(child.breaks, rows), (*made, noise))
        return space.recipe(model, ancestors)

    @cached_property
    def _sketch(self) -> LineageSketch:
        return LineageSketch(self.span)

    def _alone(self, k: int, name: str, made: tuple[str, ...]) -> Segments:
        """Return one of the `made` terms, by itself."""
        row = np.zeros((1, k + len(made)))
        row[0, k + made.index(name)] = 1.0
        return Segments(np.array([0, self.span.n_elements]), row)

    def _mutated(self, rows: FloatArray) -> FloatArray:
        return np.concatenate((rows, np.full((len(rows), 1), self.sigma)), axis=1)

    def warm_up(self, rng: np.random.Generator) -> Recipe:
        """Return a child of two different sources, or a mutated copy of the only one."""
        k, space = len(self.span.sources), NoisySpan(self.span)
        first, second = rng.permutation(k)[:2] if k > 1 else (0, 0)
        a, b = (space.recipe(NoisySegments(self.span.single(int(i)))) for i in (first, second))
        return self.cross(a, b, rng)

    def key(self, genome: Recipe) -> bytes:
        """Return the recipe's digest."""
        return genome.digest().encode()

    def recipe(self, genome: Recipe) -> Recipe:
        """Return the recipe that computes a member: itself."""
        return genome

    def member(self, recipe: Recipe) -> Recipe | None:
        """Return a recipe as a member; None when it, or an ancestor, is not in the span."""
        space, found = NoisySpan(self.span), recipe.closure(self._checked)
        if any(space.read(part) is None for part in (*found.values(), recipe)):
            return None
        self._checked.update(found)
        return recipe
