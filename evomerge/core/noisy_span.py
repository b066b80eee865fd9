"""Models in the span of their sources and of seeded noise (from-scratch evolution).

Noise is never looked at here: standard normal vectors of many elements are as good as orthogonal
to each other and to every model, so that <e_i, e_j> over n elements counts as n when i = j, else
as 0. That moves an angle by about 1e-3 at 1e6 elements; the recipe stays exact, since it is
the recorded coefficients that say what the child is.

Shape letters: K sources, S segments, M noise terms.

Source: spec algorithms.md §11 (recipes with noise terms, noise norms).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.linear_span import LinearSpan, Segments
from evomerge.core.noise import noise_seed
from evomerge.core.recipe import SEGMENTS, Recipe


@dataclass(frozen=True, eq=False)
class NoisySegments:
    """Piecewise-constant coefficients over K sources and M noise terms.

    Attributes:
        segments: With (S, K + M) coefficients, those of the noise last.
        noise: (M,) names of the noise, see `core.noise`.
    """

    segments: Segments
    noise: tuple[str, ...] = ()

    def over(self, noise: Sequence[str], k: int) -> Segments:
        """Return the same model's segments over K sources and other noise that includes its own."""
        own = self.segments.coefficients
        wide = np.zeros((len(own), k + len(noise)))
        columns = [*range(k), *(k + noise.index(name) for name in self.noise)]
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
            a: (S, K + M) coefficients.
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

    def without_faint(self, model: NoisySegments, most: int) -> NoisySegments:
        """Return a model with at most `most` noise terms: those of the largest norm, in order."""
        if len(model.noise) <= most:
            return model
        k = len(self.span.sources)
        rows, lengths = model.segments.coefficients, np.diff(model.segments.breaks)
        squares = np.add.reduce(rows[:, k:] ** 2 * lengths[:, None], axis=0)
        kept = np.sort(np.argsort(-squares, kind="stable")[:most])
        columns = [*range(k), *(k + kept).tolist()]
        noise = tuple(model.noise[i] for i in kept)
        return NoisySegments(Segments(model.segments.breaks, rows[:, columns]), noise)

    def read(self, recipe: Recipe) -> NoisySegments | None:
        """Return a recipe as coefficients, or None when it is no raw linear recipe of this span."""
        k = len(self.span.sources)
        noise = recipe.sources[k:]
        raw = recipe.operator == "linear" and recipe.settings.get("normalize") is False
        if not raw or recipe.sources[:k] != self.span.sources or set(recipe.params) != {"weights"}:
            return None
        if any(noise_seed(name) is None for name in noise):
            return None
        weights = recipe.params["weights"]
        if recipe.grouping == SEGMENTS and recipe.breaks is not None:
            return NoisySegments(Segments(recipe.breaks, weights), noise)
        if recipe.grouping == "global":
            whole = np.array([0, self.span.n_elements])
            return NoisySegments(Segments(whole, weights), noise)
        return None

    def recipe(self, model: NoisySegments) -> Recipe:
        """Return the raw linear recipe that computes a model."""
        segments = model.segments
        return Recipe(
            "linear",
            (*self.span.sources, *model.noise),
            {"weights": segments.coefficients},
            SEGMENTS,
            segments.breaks,
            {"normalize": False},
        )
