"""NuSLERP: SLERP with two weights, on task vectors when there is a base, optionally per row.

Shape letters: m, n, r a tensor of shape (…, n, …) as m times r vectors of n elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
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
from evomerge.merging.sums import ROW, row_sums, total

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
            ConfigError: There are not exactly two experts, or `axis` is none of the tensor's.
        """
        if len(tensors.experts) != 2:
            raise ConfigError(
                f"{tensors.name}: nuslerp merges two experts, got {len(tensors.experts)}"
            )
        shape = tuple(tensors.experts[0].shape)
        is_whole = self.flatten or tensors.is_vector or 0 in shape
        if is_whole or self.t in (0.0, 1.0):
            return tensors.weighted_sum(self._coefficients(tensors))
        if not -len(shape) <= self.axis < len(shape):
            raise ConfigError(
                f"{tensors.name}: nuslerp's axis is {self.axis}, the tensor has {len(shape)} axes"
            )
        axis = self.axis % len(shape)
        matrices = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
        vectors = tensors.seen_as(lambda tensor: tensor.reshape(matrices))
        out = tensors.empty_result()
        for rows, row_target in blocks(vectors, out.view(matrices), axis=0):
            for block, target in blocks(rows, row_target, axis=2):
                self._write_arcs(block, target)
        return out

    def _write_arcs(self, tensors: TensorInputs, out: Tensor) -> None:
        """Write the SLERP of each vector along the middle axis; a long one is read in pieces."""
        pieces = list(blocks(tensors, out, axis=1, run=ROW))
        pair = lru_cache(maxsize=1)(_pair)  # most vectors are one piece, which is read once
        u, v = arc_shares([partial(pair, piece) for piece, _ in pieces], out.shape[1], self.t)
        for piece, target in pieces:
            a, b = pair(piece)
            change = a * u + b * v
            write_rounded(target, change if piece.base is None else change.add_(piece.base.float()))

    def _coefficients(self, tensors: TensorInputs) -> tuple[float, ...]:
        """Return (K,) coefficients over the sources for one angle per tensor."""
        gram = required_gram(tensors)
        if tensors.base is None:
            return slerp_weights(self.t, angle(gram, (1.0, 0.0), (1.0, 1.0)))
        u, v = slerp_weights(self.t, angle(gram, (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)))
        return (1.0 - u - v, u, v)


def _pair(tensors: TensorInputs) -> list[Tensor]:
    """Return what is interpolated, float32: task vectors if there is a base, else the experts."""
    if tensors.base is None:
        return [expert.float() for expert in tensors.experts]
    return [tensors.delta(0), tensors.delta(1)]


def arc_shares(
    pieces: Sequence[Callable[[], Sequence[Tensor]]], n: int, t: float
) -> tuple[Tensor, Tensor]:
    """Return the (m, 1, r) float32 shares of each pair of vectors along the middle axis.

    Args:
        pieces: Each gives a stretch of the pairs, twice (m, …, r); all but the last are of whole
            runs of `ROW` elements.
        n: Elements of a vector.
        t: Position; 0 is the first vector.

    Returns:
        Those of linear interpolation for pairs with a zero vector, or nearly (anti)parallel ones.
    """

    def squares(values: Tensor) -> Tensor:
        return row_sums(values.square_().transpose(1, 2), min(n, ROW))

    def norms(of_piece: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
        return total((squares(of_piece(piece())) for piece in pieces), n)[:, None].sqrt()

    length_a = norms(lambda pair: pair[0].double())
    length_b = norms(lambda pair: pair[1].double())
    tiny = torch.finfo(torch.float64).tiny
    unit_a, unit_b = length_a.clamp(min=tiny), length_b.clamp(min=tiny)
    distance = norms(lambda pair: pair[0].double().div_(unit_a).sub_(pair[1].double().div_(unit_b)))
    omega = 2.0 * torch.asin((distance / 2.0).clamp_(max=1.0))
    sine = torch.sin(omega)
    is_flat = (sine <= _SMALLEST_SINE) | (length_a == 0.0) | (length_b == 0.0)
    safe = torch.where(is_flat, 1.0, sine)
    u = torch.where(is_flat, 1.0 - t, torch.sin((1.0 - t) * omega) / safe)
    v = torch.where(is_flat, t, torch.sin(t * omega) / safe)
    return u.float(), v.float()
