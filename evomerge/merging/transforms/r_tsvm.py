"""R-TSVM: TSV-M with experts weighted by their outliers and ranks by their sparsity.

Shape legend: E experts; m x n matrices (outputs x inputs).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.merging.sums import absolute_sum, square_sum
from evomerge.merging.transform import (
    DeltaInputs,
    Outputs,
    TransformDefaults,
    delta_transform,
    mean_parts,
)
from evomerge.merging.transforms.ranges import check_settings
from evomerge.merging.transforms.spectral import as_matrices
from evomerge.merging.transforms.tsv_m import disentangled, rank_of


@delta_transform("r_tsvm")
@dataclass(frozen=True, kw_only=True)
class RTsvm(TransformDefaults):
    """d_k = w_k U^_k S_k V^_k^T, as TSV-M, with w_k and the rank r_k read off each matrix.

    w_k = E o_k / sum_j o_j, where o_k sums expert k's |d| over its outliers |d| > mu + c sigma
    (mu and sigma the mean and the standard deviation of |d|); all 1 where nobody has outliers.
    r_k = min(m, n) / E (1 - s_k), rounded down but at least 1, s_k the fraction of d that is zero.

    Attributes:
        sigma_multiple: c, at least 0.

    Source: the outlier weights and sparsity-adaptive ranks of Yang et al. 2025, arXiv:2502.06876.
    Differs from the paper: it has no public code, and these formulas are a reading of its text;
    the weights have mean 1, so that equal experts give TSV-M.
    """

    outputs: ClassVar[Outputs] = "experts"

    sigma_multiple: float = 3.0

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, sigma_multiple=(0.0, math.inf))

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return (E,) task vectors."""
        del survey
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        matrices = as_matrices(tensors.deltas)
        weights = outlier_weights(tensors.deltas, self.sigma_multiple)
        densities = [int(torch.count_nonzero(delta)) / delta.numel() for delta in tensors.deltas]
        full_rank, n_experts = min(matrices[0].shape), len(matrices)
        ranks = [rank_of(full_rank, density / n_experts) for density in densities]
        parts = disentangled(matrices, ranks, weights)
        return tuple(part.float().reshape(tensors.shape) for part in parts)


def outlier_weights(deltas: Sequence[Tensor], sigma_multiple: float) -> list[float]:
    """Return (E,) weights of mean 1, in proportion to each task vector's sum of outliers."""
    sums = [_outlier_sum(delta, sigma_multiple) for delta in deltas]
    total = math.fsum(sums)
    if total == 0.0:
        return [1.0] * len(sums)
    return [len(sums) * part / total for part in sums]


def _outlier_sum(delta: Tensor, sigma_multiple: float) -> float:
    n_elements = delta.numel()
    mean = absolute_sum(delta) / n_elements
    variance = max(square_sum(delta) / n_elements - mean * mean, 0.0)
    sizes = delta.abs()
    return absolute_sum(sizes * (sizes > mean + sigma_multiple * math.sqrt(variance)))
