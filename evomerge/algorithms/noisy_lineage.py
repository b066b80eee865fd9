"""NoisyLineage: children by SLERP with a split point, plus seeded noise on every weight."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

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

    Noise older than the `max_noise` strongest terms is dropped from a child, as its faintest breaks
    are: the recipe still says exactly what is scored.

    Attributes:
        span: Geometry of the sources.
        sigma: Standard deviation of what is added to every weight of a child.
        max_noise: Most noise terms of a child.
        split_point: See `SpanLineage`.
        is_global: Measure the parents' angle over the whole vector; else on each side.
        max_segments: See `SpanLineage`.
    """

    span: LinearSpan
    sigma: float
    max_noise: int = MAX_NOISE
    split_point: bool = True
    is_global: bool = True
    max_segments: int = 256

    def cross(self, a: NoisySegments, b: NoisySegments, rng: np.random.Generator) -> NoisySegments:
        """Return slerp_w(a, b) before the split, slerp_{1-w}(a, b) after it, plus noise."""
        k, end, space = len(self.span.sources), self.span.n_elements, NoisySpan(self.span)
        w = rng.random()
        split = self.span.snap(int(rng.integers(end))) if self.split_point else end
        seed = int(rng.integers(2**64, dtype=np.uint64))
        noise = tuple(dict.fromkeys((*a.noise, *b.noise)))
        x, y = on_common_breaks(a.over(noise, k), b.over(noise, k), split)
        if self.is_global or split in (0, end):
            before = after = space.angle(x, y)
        else:
            before = space.angle(x, y, 0, split)
            after = space.angle(x, y, split, end)
        left, right = slerp_weights(w, before), slerp_weights(1.0 - w, after)
        child = split_crossover(x, y, split, left, right)
        kept = space.without_faint(NoisySegments(child, noise), self.max_noise - 1)
        return self._mutated(kept, noise_name(seed))

    def _mutated(self, model: NoisySegments, name: str) -> NoisySegments:
        segments = self._few(model)
        new = np.full((len(segments.coefficients), 1), self.sigma)
        rows = np.concatenate((segments.coefficients, new), axis=1)
        return NoisySegments(Segments(segments.breaks, rows), (*model.noise, name))

    def _few(self, model: NoisySegments) -> Segments:
        """Return segments of which those that differ least in the sources are joined."""
        segments, k = model.segments, len(self.span.sources)
        if len(segments.coefficients) <= self.max_segments:
            return segments
        models = Segments(segments.breaks, segments.coefficients[:, :k])
        breaks = self.span.simplify(models, self.max_segments).breaks
        starts = segments.breaks.searchsorted(breaks[:-1])
        lengths = np.diff(segments.breaks).astype(np.float64)
        sums = np.add.reduceat(segments.coefficients * lengths[:, None], starts, axis=0)
        return Segments(breaks, sums / np.diff(breaks)[:, None])

    def warm_up(self, rng: np.random.Generator) -> NoisySegments:
        """Return a child of two different sources, or a mutated copy of the only one."""
        k = len(self.span.sources)
        first, second = rng.permutation(k)[:2] if k > 1 else (0, 0)
        a, b = (NoisySegments(self.span.single(int(i))) for i in (first, second))
        return self.cross(a, b, rng)

    def key(self, genome: NoisySegments) -> bytes:
        """Return a digest of breaks, coefficients and noise."""
        segments = genome.segments
        hasher = hashlib.blake2b(segments.breaks.tobytes(), digest_size=16)
        hasher.update(segments.coefficients.tobytes())
        hasher.update(" ".join(genome.noise).encode())
        return hasher.digest()

    def recipe(self, genome: NoisySegments) -> Recipe:
        """Return the recipe that computes a member."""
        return NoisySpan(self.span).recipe(genome)

    def member(self, recipe: Recipe) -> NoisySegments | None:
        """Return a recipe as a member; None when it is not in the span."""
        return NoisySpan(self.span).read(recipe)
