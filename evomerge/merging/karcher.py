"""The Karcher mean: the point on the sphere with the least squared angles to all models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import mul
from typing import Annotated, ClassVar

import numpy as np
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.genes import Gene
from evomerge.errors import ConfigError
from evomerge.merging.operator import Compat, OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.sphere import Space, is_delta_space, points_gram, sum_of_points
from evomerge.merging.weights import normalized

# Below this the directions cancel, and the rest of them is the rounding of float32 tensors.
_CANCELLED = 1e-4
# Sine below which an angle is as good as 0 or pi: cosines are off by 1e-16 / _CANCELLED = 1e-12
# at worst, which is an angle of 1.4e-6, and at pi an angle is divided by its sine.
_SMALLEST = 1e-5

Rows = tuple[tuple[float, ...], ...]


@merge_operator("karcher")
@dataclass(frozen=True, kw_only=True)
class Karcher(OperatorDefaults):
    """s * argmin_u sum_k w_k angle(u, x_k)^2 over unit vectors u, with s = sum_k w_k |x_k|.

    x_k are the task vectors when there is a base, to which the result is added, else the
    tensors. u stays in their span, so the iteration runs on coefficients and the Gram matrix:
    with q_k = cos(angle(u, x_k)), u moves along the sphere by sum_k w_k log_u(x_k / |x_k|).
    It begins at the direction of `nlerp`. Tensors without length are left out. Where the
    directions cancel there is no such point, and the result is the weighted mean of the x_k.

    Attributes:
        weights: (E,) one per expert, none negative; divided by their sum.
        max_iter: Most steps.
        tol: Length of a step, in radians, at which the iteration ends.
        space: "raw" tensors, "delta" (task vectors), or "auto": delta when there is a base.
        compat: "mergekit" leaves out tensors shorter than `tol` and passes over angles below
            it, and begins at the first model where the directions cancel; give it equal weights.

    Raises:
        ConfigError: The weights are all zero, or `max_iter` or `tol` is negative.

    Source: Karcher 1977, "Riemannian center of mass and mollifier smoothing"; as a merge method
    mergekit's `karcher` (Goddard et al. 2024, arXiv:2403.13257).
    Differs from mergekit: weights; task vectors by default when there is a base; float64 angles.
    """

    needs_base: ClassVar[bool] = False
    needs_gram: ClassVar[bool] = True

    weights: tuple[Annotated[float, Gene(0.0, 1.0, minimum=0.0)], ...]
    max_iter: int = 50
    tol: float = 1e-9
    space: Space = "auto"
    compat: Compat = "paper"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        if self.max_iter < 0 or not 0.0 <= self.tol < math.inf:
            raise ConfigError(
                f"karcher: max_iter is {self.max_iter} and tol is {self.tol:g}; "
                "neither may be negative or infinite"
            )
        self._shares  # noqa: B018  (refuses weights that are all zero)

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        return normalized(self.weights, operator="karcher")

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        is_delta = is_delta_space(tensors, self.space, operator="karcher")
        points = points_gram(tensors, is_delta=is_delta)
        coefficients = self._coefficients(points)
        return sum_of_points(tensors, coefficients, is_delta=is_delta)

    def _coefficients(self, points: FloatArray) -> list[float]:
        """Return (E,) factors of the points with this (E, E) Gram matrix."""
        weights = self._shares
        if max(weights) == 1.0:
            return list(weights)
        shortest = self.tol if self.compat == "mergekit" else 0.0
        weighed = tuple([weight > 0.0 for weight in weights])
        lengths, used, cosines = _directions(points.tobytes(), shortest, weighed)
        if not used:
            return list(weights)
        total = sum([weights[k] for k in used])
        scales = self._mean(cosines, [weights[k] / total for k in used])
        if scales is None:
            return list(weights)
        size = _dot(weights, lengths)
        factors = [0.0] * len(weights)
        for k, scale in zip(used, scales, strict=True):
            factors[k] = size * scale / lengths[k]
        return factors

    def _mean(self, cosines: Rows, weights: Sequence[float]) -> Sequence[float] | None:
        """Return (n,) coefficients of the mean over unit vectors, None where they cancel."""
        at, size = weights, _length(cosines, weights)
        if self.compat == "paper":
            if size < _CANCELLED:
                return None
        elif size <= self.tol:
            at = [1.0] + [0.0] * (len(weights) - 1)
            size = _length(cosines, at)
        at = [x / size for x in at]
        smallest_angle = self.tol if self.compat == "mergekit" else 0.0
        # Plain numbers: numpy takes three times as long for a handful of models.
        for _ in range(self.max_iter):
            cos = [min(max(_dot(row, at), -1.0), 1.0) for row in cosines]
            pulls = [w * _pull(c, smallest_angle) for w, c in zip(weights, cos, strict=True)]
            along = _dot(pulls, cos)
            step = [pull - along * x for pull, x in zip(pulls, at, strict=True)]
            size = _length(cosines, step)
            if size <= self.tol:
                break
            stay, move = math.cos(size), math.sin(size) / size
            at = [stay * x + move * y for x, y in zip(at, step, strict=True)]
            length = _length(cosines, at)
            at = [x / length for x in at]
        return at


@lru_cache(maxsize=1 << 14)
def _directions(
    content: bytes, shortest: float, weighed: tuple[bool, ...]
) -> tuple[tuple[float, ...], tuple[int, ...], Rows]:
    """Return what of a Gram matrix is the same for every candidate of a search.

    Args:
        content: The (E, E) Gram matrix.
        shortest: Length above which a point has a direction.
        weighed: (E,) which points have a weight.

    Returns:
        (E,) lengths of the points; (n,) which are used; (n, n) the cosines of those.
    """
    points = np.frombuffer(content).reshape(len(weighed), len(weighed))
    lengths = np.sqrt(points.diagonal())
    used = np.flatnonzero((lengths > shortest) & np.array(weighed))
    unit = lengths[used]
    cosines = points[np.ix_(used, used)] / (unit[:, np.newaxis] * unit)
    return tuple(lengths.tolist()), tuple(used.tolist()), tuple(map(tuple, cosines.tolist()))


def _pull(cosine: float, smallest_angle: float) -> float:
    """Return angle / sine, with which a point pulls: 1 at 0, nothing from the opposite point."""
    angle = math.acos(cosine)
    sine = math.sin(angle)
    if angle < smallest_angle:
        return 0.0
    if sine > _SMALLEST:
        return angle / sine
    return 1.0 if cosine >= 0.0 else 0.0  # at pi the direction there is anyone's


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    total: float = sum(map(mul, a, b))
    return total


def _length(gram: Rows, x: Sequence[float]) -> float:
    return math.sqrt(max(_dot(x, [_dot(row, x) for row in gram]), 0.0))
