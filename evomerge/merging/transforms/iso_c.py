"""Iso-C: the summed task vectors with all singular values made equal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.merging.transform import DeltaInputs, TransformDefaults, delta_transform, mean_parts
from evomerge.merging.transforms.spectral import as_matrices, thin_svd


@delta_transform("iso_c")
@dataclass(frozen=True, kw_only=True)
class IsoC(TransformDefaults):
    """d = mean(S) U V^T, where U S V^T is the sum of the task vectors.

    The spectrum is flat and its sum (the nuclear norm) that of the summed task vectors.

    Source: Marczak et al. 2025, arXiv:2502.04959.
    Differs from the reference code: embeddings, heads and routers are averaged like vectors;
    the mean is over the numerical rank, and no other direction is filled in. (For a
    rank-deficient sum, of low-rank adapters say, the reference code gives the arbitrary singular
    vectors of rounding noise the same singular value as the rest.)
    """

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return the merged task vector."""
        del survey
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        matrices = as_matrices(tensors.deltas)
        factors = thin_svd(reduce(torch.add, matrices))
        if factors.rank == 0:
            return (torch.zeros_like(tensors.base),)
        merged = factors.values.mean() * (factors.left @ factors.right.T)
        return (merged.float().reshape(tensors.shape),)
