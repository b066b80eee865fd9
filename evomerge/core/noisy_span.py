"""Models in the span of their sources, of seeded noise and of ancestors (from-scratch evolution).

Noise is never looked at here: standard normal vectors of many elements are as good as orthogonal
to each other and to every model, so that <e_i, e_j> over n elements counts as n when i = j, else
as 0. That moves an angle by about 1e-3 at 1e6 elements; the recipe stays exact, since it is
the recorded coefficients that say what the child is. `core.lineage_sketch` has the angles of models
with ancestors, whose noise overlaps.

Shape letters: K sources, S segments, M terms of noise and ancestors.

Source: spec algorithms.md §11 (recipes with noise terms, noise norms).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from evomerge.core.ancestry import is_made
from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.linear_span import LinearSpan, Segments
from evomerge.core.recipe import SEGMENTS, Recipe


@dataclass(frozen=True, eq=False)
class NoisySegments:
    """Piecewise-constant coefficients over K sources and M terms of noise and ancestors.

    Attributes:
        segments: With (S, K + M) coefficients, those of the sources first.
        made: (M,) names of noise (`core.noise`) and ancestors (`core.ancestry`).
    """

    segments: Segments
    made: tuple[str, ...] = ()

    def over(self, made: Sequence[str], k: int) -> Segments:
        """Return the same model's segments over K sources and other terms that include its own."""
        own = self.segments.coefficients
        wide = np.zeros((len(own), k + len(made)))
        columns = [*range(k), *(k + made.index(name) for name in self.made)]
        wide[:, columns] = own
        return Segments(self.segments.breaks, wide)


@dataclass(frozen=True, eq=False)
class NoisySpan:
    """Geometry of the span of K sources and any noise.

    Attributes:
        span: That of the sources alone.
    """

    span: LinearSpan

    def angle(self, a: Segments, b: Segments, start: int = 0, stop: int | None = None) -> float:
        """Return the angle between a and b over elements [start, stop), 0 for a zero vector.

        Args:
            a: (S, K + M) coefficients, over noise and no ancestors.
            b: On the same breaks, over the same noise.
            start: First element.
            stop: One past the last element; None: to the end.
        """
        norm_a = self._norm(a.breaks, a.coefficients, start, stop)
        norm_b = self._norm(a.breaks, b.coefficients, start, stop)
        if norm_a == 0.0 or norm_b == 0.0:
            return 0.0
        gap = a.coefficients / norm_a - b.coefficients / norm_b
        return 2.0 * math.asin(min(self._norm(a.breaks, gap, start, stop) / 2.0, 1.0))

    def _norm(self, breaks: IntArray, rows: FloatArray, start: int, stop: int | None) -> float:
        k, end = len(self.span.sources), self.span.n_elements
        models = Segments(breaks, rows[:, :k])
        lengths = np.diff(breaks.clip(start, end if stop is None else stop)).astype(np.float64)
        square = self.span.inner(models, models, start, stop)
        square += float(np.add.reduce(rows[:, k:] ** 2 * lengths[:, None], axis=None))
        return math.sqrt(max(square, 0.0))

    def read(self, recipe: Recipe) -> NoisySegments | None:
        """Return a recipe as coefficients, or None when it is no raw linear recipe of this span."""
        k = len(self.span.sources)
        made = recipe.sources[k:]
        raw = recipe.operator == "linear" and recipe.settings.get("normalize") is False
        if not raw or recipe.sources[:k] != self.span.sources or set(recipe.params) != {"weights"}:
            return None
        if not all(map(is_made, made)):
            return None
        weights = recipe.params["weights"]
        if recipe.grouping == SEGMENTS and recipe.breaks is not None:
            return NoisySegments(Segments(recipe.breaks, weights), made)
        if recipe.grouping == "global":
            whole = np.array([0, self.span.n_elements])
            return NoisySegments(Segments(whole, weights), made)
        return None

    def recipe(
        self, model: NoisySegments, ancestors: Mapping[str, Recipe] = MappingProxyType({})
    ) -> Recipe:
        """Return the raw linear recipe that computes a model; `ancestors` has those it names."""
        segments = model.segments
        return Recipe(
            "linear",
            (*self.span.sources, *model.made),
            {"weights": segments.coefficients},
            SEGMENTS,
            segments.breaks,
            {"normalize": False},
            ancestors,
        )
