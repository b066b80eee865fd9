"""Iso-CTS: a flat spectrum over directions common to all experts and directions of each.

Shape legend: E experts; m x n matrices (outputs x inputs).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.merging.transform import DeltaInputs, TransformDefaults, delta_transform, mean_parts
from evomerge.merging.transforms.ranges import check_settings
from evomerge.merging.transforms.spectral import as_matrices, polar, thin_svd


@delta_transform("iso_cts")
@dataclass(frozen=True, kw_only=True)
class IsoCts(TransformDefaults):
    """d = mean(S) U^ V^^T over k common singular triplets and (min(m, n) - k) / E of each expert.

    The common triplets are the largest k of the summed task vectors. Each expert adds the
    largest ones of its remainder (I - U_c U_c^T) d_k. The left vectors together are replaced by
    their polar factor U^, the right ones by V^.

    Attributes:
        common_fraction: k over min(m, n), in [0, 1]; k moves up or down so that the rest divides
            evenly between the experts.

    Source: Marczak et al. 2025, arXiv:2502.04959.
    Differs from the reference code: as Iso-C; and k never becomes negative (there it does for a
    matrix with fewer rows or columns than experts).
    """

    common_fraction: float = 0.8

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, common_fraction=(0.0, 1.0))

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return the merged task vector."""
        del survey
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        matrices = as_matrices(tensors.deltas)
        n_common, n_each = self._ranks(min(matrices[0].shape), len(matrices))
        common = thin_svd(reduce(torch.add, matrices)).truncated(n_common)
        parts = [common]
        for matrix in matrices:
            remainder = matrix - common.left @ (common.left.T @ matrix)
            norm = float(torch.linalg.matrix_norm(matrix))
            parts.append(thin_svd(remainder, reference=norm).truncated(n_each))
        values = torch.cat([part.values for part in parts])
        if values.numel() == 0:
            return (torch.zeros_like(tensors.base),)
        left = polar(torch.cat([part.left for part in parts], 1))
        right = polar(torch.cat([part.right for part in parts], 1))
        return ((values.mean() * (left @ right.T)).float().reshape(tensors.shape),)

    def _ranks(self, full_rank: int, n_experts: int) -> tuple[int, int]:
        """Return the number of common triplets and that of each expert."""
        n_common = int(full_rank * self.common_fraction)
        n_each = min(round((full_rank - n_common) / n_experts), full_rank // n_experts)
        return full_rank - n_each * n_experts, n_each
