"""The Karcher mean: the point on the sphere with the least squared angles to all models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
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
        shares = np.array(weights)
        lengths = np.sqrt(points.diagonal())
        shortest = self.tol if self.compat == "mergekit" else 0.0
        used = np.flatnonzero((lengths > shortest) & (shares > 0.0))
        if not len(used):
            return list(weights)
        unit = lengths[used]
        kept = points if len(used) == len(weights) else points[np.ix_(used, used)]
        cosines = kept / (unit[:, np.newaxis] * unit)
        scales = self._mean(cosines, shares[used] / shares[used].sum())
        if scales is None:
            return list(weights)
        factors = np.zeros(len(weights))
        factors[used] = float(shares @ lengths) * scales / unit
        return list(map(float, factors))

    def _mean(self, cosines: FloatArray, weights: FloatArray) -> FloatArray | None:
        """Return (n,) coefficients of the mean over unit vectors, None where they cancel."""
        at, size = weights, _length(cosines, weights)
        if self.compat == "paper":
            if size < _CANCELLED:
                return None
        elif size <= self.tol:
            at = np.eye(len(weights))[0]
            size = _length(cosines, at)
        at = at / size
        smallest_angle = self.tol if self.compat == "mergekit" else 0.0
        for _ in range(self.max_iter):
            cos = np.minimum(np.maximum(cosines @ at, -1.0), 1.0)
            angles = np.arccos(cos)
            sines = np.sin(angles)
            # angle / sine is 1 at 0; at pi the direction to the opposite point is anyone's.
            pulls = np.divide(angles, sines, out=np.ones(len(cos)), where=sines > _SMALLEST)
            pulls[(cos < 0.0) & (sines <= _SMALLEST)] = 0.0
            pulls[angles < smallest_angle] = 0.0
            pulls *= weights
            step = pulls - float(pulls @ cos) * at
            size = _length(cosines, step)
            if size <= self.tol:
                break
            at = math.cos(size) * at + (math.sin(size) / size) * step
            at = at / _length(cosines, at)
        return at


def _length(gram: FloatArray, x: FloatArray) -> float:
    return math.sqrt(max(float(x @ gram @ x), 0.0))
