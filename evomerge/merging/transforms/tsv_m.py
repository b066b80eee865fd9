"""TSV-M: each expert's largest singular triplets, made orthogonal to those of the others.

Shape legend: E experts; m x n matrices (outputs x inputs).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.merging.parameters import check_fields
from evomerge.merging.transform import (
    DeltaInputs,
    Outputs,
    TransformDefaults,
    delta_transform,
    mean_parts,
)
from evomerge.merging.transforms.ranges import check_range
from evomerge.merging.transforms.spectral import as_matrices, polar, thin_svd


@delta_transform("tsv_m")
@dataclass(frozen=True, kw_only=True)
class TsvM(TransformDefaults):
    """d_k = U^_k S_k V^_k^T, one virtual source per expert; their sum is the merge.

    U_k S_k V_k^T is expert k's task vector, truncated to rank r; [U^_1 ... U^_E] is the polar
    factor of [U_1 ... U_E], the nearest matrix with orthonormal columns, and the same for V^.
    The result is linear in S_k, so weights of the virtual sources are the method's task weights.

    Attributes:
        share: "equal" gives each expert an E-th of the rank, r = min(m, n) / E rounded down but
            at least 1; "full" gives each expert all of it (fusion_bench's "lossless").
        rank_fraction: Fraction of that rank that is kept, in (0, 1].

    Source: Gargiulo et al. 2025, arXiv:2412.00081.
    Differs from the reference code: embeddings, heads and routers are averaged like vectors;
    at least one triplet where min(m, n) < E; singular vectors of numerically zero singular values
    are left out instead of taken as they come (`spectral.RANK_TOLERANCE`), so that an expert
    without a change has no influence on the others.
    """

    outputs: ClassVar[Outputs] = "experts"

    share: Literal["equal", "full"] = "equal"
    rank_fraction: float = 1.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_fields(self)
        check_range(self, "rank_fraction", 0.0, 1.0, open_low=True)

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return (E,) task vectors."""
        del survey
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        matrices = as_matrices(tensors.deltas)
        n_experts = len(matrices)
        sharers = n_experts if self.share == "equal" else 1
        rank = rank_of(min(matrices[0].shape), self.rank_fraction / sharers)
        parts = disentangled(matrices, [rank] * n_experts, [1.0] * n_experts)
        return tuple(part.float().reshape(tensors.shape) for part in parts)


def rank_of(full_rank: int, fraction: float) -> int:
    """Return a fraction of the rank, rounded down (but not by rounding error), at least 1."""
    return max(1, int(full_rank * fraction + 1e-9))


def disentangled(
    matrices: Sequence[Tensor], ranks: Sequence[int], weights: Sequence[float]
) -> list[Tensor]:
    """Return each matrix truncated, with singular vectors orthogonal to those of the others.

    Args:
        matrices: (E,) m x n, float32 or float64.
        ranks: (E,) singular triplets kept of each.
        weights: (E,) factors of the singular values.

    Returns:
        (E,) m x n, of the matrices' dtype.
    """
    factors = [thin_svd(matrix).truncated(r) for matrix, r in zip(matrices, ranks, strict=True)]
    sizes = [part.rank for part in factors]
    lefts = torch.split(polar(torch.cat([part.left for part in factors], 1)), sizes, 1)
    rights = torch.split(polar(torch.cat([part.right for part in factors], 1)), sizes, 1)
    return [
        (left * (part.values * weight)) @ right.T
        for left, part, weight, right in zip(lefts, factors, weights, rights, strict=True)
    ]
