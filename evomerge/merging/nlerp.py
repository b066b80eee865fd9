"""NLERP: the weighted mean of directions, at the weighted mean of lengths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar

import numpy as np
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.genes import Gene
from evomerge.merging.operator import Compat, OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.sphere import Space, is_delta_space, points_gram, sum_of_points
from evomerge.merging.weights import normalized

# Relative to the sum of absolute weights: below this the directions cancel, and the rest of them
# is the rounding of float32 tensors.
_CANCELLED = 1e-4
# mergekit's `eps`: added to every length, and the length below which directions cancel.
_MERGEKIT_EPS = 1e-8


@merge_operator("nlerp")
@dataclass(frozen=True, kw_only=True)
class Nlerp(OperatorDefaults):
    """s * sum_k w_k u_k / |sum_k w_k u_k| with u_k = x_k / |x_k| and s = sum_k w_k |x_k|.

    x_k are the task vectors when there is a base, to which the result is added, else the
    tensors. A tensor without length has no direction. Where the directions cancel, the result
    is the plain weighted sum of the x_k.

    Attributes:
        weights: (E,) one per expert.
        normalize: Divide the weights by their sum.
        space: "raw" tensors, "delta" (task vectors), or "auto": delta when there is a base.
        compat: "mergekit" adds 1e-8 to every length and takes a lone model as it is.

    Raises:
        ConfigError: `normalize` is on and the weights cancel.

    Source: mergekit's `multislerp` (Goddard et al. 2024, arXiv:2403.13257), under the name of
    what it computes: its mean of tangent vectors is zero at the point it is taken at. Angles
    are therefore not divided in the ratio of the weights; `slerp` and `karcher` do that.
    Differs from mergekit: float64 lengths; more than two models whose directions cancel are
    interpolated linearly instead of refused.
    """

    needs_base: ClassVar[bool] = False
    needs_gram: ClassVar[bool] = True

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]
    normalize: bool = True
    space: Space = "auto"
    compat: Compat = "paper"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        self._shares  # noqa: B018  (refuses weights that cancel)

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        return normalized(self.weights, operator="nlerp") if self.normalize else self.weights

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        is_delta = is_delta_space(tensors, self.space, operator="nlerp")
        points = points_gram(tensors, is_delta=is_delta)
        coefficients = self._coefficients(points)
        return sum_of_points(tensors, coefficients, is_delta=is_delta)

    def _coefficients(self, points: FloatArray) -> list[float]:
        """Return (E,) factors of the points with this (E, E) Gram matrix."""
        shares = self._shares
        if self.compat == "mergekit" and len(shares) == 1:
            return [1.0]
        if sum(share != 0.0 for share in shares) == 1:
            return [abs(share) for share in shares]
        weights = np.array(shares)
        lengths = np.sqrt(points.diagonal())
        smallest = _CANCELLED * float(np.abs(weights).sum())
        divisors = lengths
        if self.compat == "mergekit":
            divisors, smallest = lengths + _MERGEKIT_EPS, _MERGEKIT_EPS
        scaled = np.divide(weights, divisors, out=np.zeros(len(weights)), where=lengths > 0.0)
        length = math.sqrt(max(float(scaled @ points @ scaled), 0.0))
        if length <= smallest:
            return list(shares)
        factors: list[float] = (scaled * (float(weights @ lengths) / length)).tolist()
        return factors
