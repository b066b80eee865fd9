"""OPCM: experts added one after the other, each without what lies along the sum so far.

Shape legend: E experts; m x n matrices (outputs x inputs); r numerical rank of the sum so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.merging.sums import square_sum
from evomerge.merging.transform import (
    DeltaInputs,
    TransformDefaults,
    delta_transform,
    mean_parts,
    not_a_linear_map,
)
from evomerge.merging.transforms.ranges import check_settings
from evomerge.merging.transforms.spectral import as_matrices, thin_svd


@delta_transform("opcm")
@dataclass(frozen=True, kw_only=True)
class Opcm(TransformDefaults):
    """d = s D_E, D_t = D_{t-1} + U P(U^T d_t V) V^T, D_1 = d_1, in the order of the experts.

    U S V^T is D_{t-1}; P sets the block of the leading singular vectors, which hold the fraction
    `alpha` of the sum of S, and the diagonal to zero. s gives the result the mean of the experts'
    norms. (Published as a scale in every step; only the last one counts.)

    Attributes:
        alpha: Fraction of the singular values' sum that is protected, in [0, 1].
        norm: Norms of what s compares: those over the "model", as published, which takes a
            second pass, or those of each "tensor".

    Source: Tang et al. 2025, arXiv:2501.09522; agrees with fusion_bench's `opcm` without shuffled
    order. Other tensors are summed and scaled by s (with `norm: tensor`, averaged).
    Differs from fusion_bench: thin instead of full SVDs, which compute the same; directions below
    the numerical rank of D have no diagonal to remove (there it depends on arbitrary vectors);
    alpha 1 protects all directions, there none.
    """

    is_ordered: ClassVar[bool] = True
    needs_survey: ClassVar[bool] = True

    alpha: float = 0.5
    norm: Literal["model", "tensor"] = "model"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, alpha=(0.0, 1.0))

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how a tensor that is no linear map is handled, or None."""
        reason = not_a_linear_map(name, shape)
        if reason is None or self.norm == "tensor":
            return reason
        return f"{reason.partition(',')[0]}, sum of the task vectors at the model's scale"

    def survey(self, tensors: Iterable[DeltaInputs]) -> FloatArray:
        """Return the scale s as one number, or nothing when each tensor has its own."""
        if self.norm == "tensor":
            return np.zeros(0)
        totals: list[FloatArray] = []
        for item in tensors:
            parts = (self._summed(item), *item.deltas)
            totals.append(np.array([square_sum(part) for part in parts]))
        if not totals:
            return np.ones(1)
        norms = [math.sqrt(math.fsum(column)) for column in np.stack(totals).T]
        return np.array([_scale(norms[0], norms[1:])])

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return the merged task vector."""
        if self.norm == "model":
            if survey is None:
                raise ValueError("opcm with norm 'model' needs the result of its survey")
            scale = float(survey[0])
        elif not_a_linear_map(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        summed = self._summed(tensors)
        if self.norm == "tensor":
            norms = [math.sqrt(square_sum(delta)) for delta in tensors.deltas]
            scale = _scale(math.sqrt(square_sum(summed)), norms)
        return ((summed * scale).float(),)

    def _summed(self, tensors: DeltaInputs) -> Tensor:
        """Return D_E before scaling, in the shape of the tensor."""
        if not_a_linear_map(tensors.name, tensors.shape) is not None:
            return reduce(torch.add, (delta.double() for delta in tensors.deltas))
        first, *others = as_matrices(tensors.deltas)
        total = first
        for matrix in others:
            total = total + self._without_overlap(matrix, total)
        return total.reshape(tensors.shape)

    def _without_overlap(self, matrix: Tensor, total: Tensor) -> Tensor:
        """Return the (m, n) matrix without what lies along the sum so far."""
        factors = thin_svd(total)
        if factors.rank == 0:
            return matrix
        shares = factors.values.double().cumsum(0)
        n_protected = int((shares <= self.alpha * shares[-1]).sum())
        overlap = factors.left.T @ matrix @ factors.right
        removed = torch.diag(overlap.diagonal())
        removed[:n_protected, :n_protected] = overlap[:n_protected, :n_protected]
        return matrix - factors.left @ removed @ factors.right.T


def _scale(norm: float, norms: list[float]) -> float:
    """Return what makes `norm` the mean of `norms`; 1 for a zero norm."""
    return math.fsum(norms) / len(norms) / norm if norm > 0.0 else 1.0
