"""NuSLERP: SLERP with two weights, on task vectors when there is a base, optionally per row.

Shape legend: a tensor of shape (…, n, …) seen as vectors of n elements along one axis.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.core.linear_span import slerp_weights
from evomerge.errors import ConfigError
from evomerge.merging.fused import write_rounded
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.passes import blocks
from evomerge.merging.sphere import angle, required_gram

_SMALLEST_SUM = 1e-6
_SMALLEST_SINE = 1e-6


@merge_operator("nuslerp")
@dataclass(frozen=True, kw_only=True)
class NuSlerp(OperatorDefaults):
    """SLERP of two experts at t = w_2 / (w_1 + w_2); of their task vectors when there is a base.

    Attributes:
        weights: (2,) one per expert. Only their ratio counts; a sum near zero means t = 1/2.
        flatten: Take each tensor as one vector. When off, interpolate every vector along
            `axis` by its own angle.
        axis: Axis along which a vector runs when `flatten` is off: -1 makes each row of a
            matrix a vector, 0 each column.

    Source: mergekit's `nuslerp` (Goddard et al. 2024, arXiv:2403.13257).
    Differs from mergekit: the angle is computed in float64 from the difference of the unit
    vectors, and linear interpolation starts at a sine of 1e-6 instead of 1e-8. mergekit's
    `nuslerp_row_wise: true` normalises along axis 0, against its name; that is `axis: 0` here.
    """

    needs_base: ClassVar[bool] = False
    n_models: ClassVar[int | None] = 2
    needs_gram: ClassVar[bool] = True

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]
    flatten: bool = True
    axis: int = -1

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        if len(self.weights) != 2:
            raise ConfigError(f"nuslerp merges two experts, got {len(self.weights)} weights")

    @property
    def t(self) -> float:
        """Where on the arc: 0 is the first expert, 1 the second."""
        total = math.fsum(self.weights)
        return 0.5 if abs(total) < _SMALLEST_SUM else self.weights[1] / total

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor.

        Raises:
            ConfigError: There are not exactly two experts.
        """
        if len(tensors.experts) != 2:
            raise ConfigError(
                f"{tensors.name}: nuslerp merges two experts, got {len(tensors.experts)}"
            )
        if self.flatten or tensors.is_vector or self.t in (0.0, 1.0):
            return tensors.weighted_sum(self._coefficients(tensors))
        out = tensors.empty_result()
        # Cut along another axis than that of the vectors.
        for part, target in blocks(tensors, out, axis=1 if self.axis in (0, -out.dim()) else 0):
            if part.base is None:
                a, b = (expert.float() for expert in part.experts)
                write_rounded(target, slerp_along(a, b, self.t, axis=self.axis))
            else:
                a, b = part.deltas
                change = slerp_along(a, b, self.t, axis=self.axis)
                write_rounded(target, change.add_(part.base.float()))
        return out

    def _coefficients(self, tensors: TensorInputs) -> tuple[float, ...]:
        """Return (K,) coefficients over the sources for one angle per tensor."""
        gram = required_gram(tensors)
        if tensors.base is None:
            return slerp_weights(self.t, angle(gram, (1.0, 0.0), (1.0, 1.0)))
        u, v = slerp_weights(self.t, angle(gram, (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
        return (1.0 - u - v, u, v)


def slerp_along(a: Tensor, b: Tensor, t: float, *, axis: int) -> Tensor:
    """Return the SLERP of each pair of vectors along `axis`.

    Args:
        a: (…, n, …) float32.
        b: Same shape as `a`.
        t: Position; 0 gives `a`.
        axis: The axis of length n.

    Returns:
        Same shape, float32. Pairs with a zero vector, or nearly (anti)parallel ones, are
        interpolated linearly.
    """
    a64, b64 = a.double(), b.double()
    length_a = a64.square().sum(axis, keepdim=True).sqrt_()
    length_b = b64.square().sum(axis, keepdim=True).sqrt_()
    tiny = torch.finfo(torch.float64).tiny
    gap = a64.div_(length_a.clamp(min=tiny)).sub_(b64.div_(length_b.clamp(min=tiny)))
    distance = gap.square_().sum(axis, keepdim=True).sqrt_()
    omega = 2.0 * torch.asin((distance / 2.0).clamp_(max=1.0))
    sine = torch.sin(omega)
    is_flat = (sine <= _SMALLEST_SINE) | (length_a == 0.0) | (length_b == 0.0)
    safe = torch.where(is_flat, 1.0, sine)
    u = torch.where(is_flat, 1.0 - t, torch.sin((1.0 - t) * omega) / safe)
    v = torch.where(is_flat, t, torch.sin(t * omega) / safe)
    return a * u.float() + b * v.float()
