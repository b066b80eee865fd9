"""KnOTS: TIES or task arithmetic in a basis that all experts share.

Shape legend: E experts; m x n matrices (outputs x inputs); r rank of the basis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.merging.low_rank import LowRank, stacked_svd
from evomerge.merging.parameters import check_fields
from evomerge.merging.quantiles import magnitude_threshold
from evomerge.merging.sign_consensus import combine, trim
from evomerge.merging.transform import DeltaInputs, TransformDefaults, delta_transform, mean_parts
from evomerge.merging.transforms.ranges import check_range
from evomerge.merging.transforms.spectral import RANK_TOLERANCE, as_matrices, thin_svd


@delta_transform("knots")
@dataclass(frozen=True, kw_only=True)
class Knots(TransformDefaults):
    """d = U merge(S V_1^T, ..., S V_E^T), where [d_1 ... d_E] = U S [V_1^T ... V_E^T].

    With TIES, each expert's coordinates are trimmed to the `density` largest, an element's sign
    is that of their sum, and those that agree are combined. Task arithmetic gives the same as
    without the basis, and is there for comparison. Where all experts are adapters the basis comes
    from their factors: its rank is at most the sum of theirs.

    Attributes:
        method: What merges the coordinates: "ties" or "ta" (task arithmetic).
        density: Fraction of each expert's coordinates in a matrix that TIES keeps, in (0, 1].
        divisor: "mean" divides by the number of experts that agree (all with "ta"), "none" by
            nothing.
        scaled: Whether the coordinates are S V_k^T, as in the released configurations, or the
            orthonormal V_k^T, scaled by S after merging.

    Source: Stoica et al. 2024, arXiv:2410.19735; released code gstoica27/KnOTS.
    Differs from the released code: trimming counts in each matrix instead of over all matrices;
    basis directions count from a singular value of 1e-6 of the largest, there from 1e-5 absolute;
    where the experts cancel exactly the sign is +, there the majority's; biases are not columns
    of the matrix but averaged.
    """

    version: ClassVar[int] = 2  # 2: adapters by their factors

    method: Literal["ties", "ta"] = "ties"
    density: float = 0.2
    divisor: Literal["mean", "none"] = "mean"
    scaled: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        check_fields(self)
        check_range(self, "density", 0.0, 1.0, open_low=True)

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return the merged task vector."""
        del survey
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        factors = [part for part in tensors.factors if part is not None]
        if factors and len(factors) == len(tensors.deltas):
            basis, values, coordinates = factored_coordinates(factors)
        else:
            matrices = as_matrices(tensors.deltas)
            basis, values = shared_basis(matrices)
            coordinates = [basis.T @ matrix for matrix in matrices]
        if values.numel() == 0:
            return (torch.zeros_like(tensors.base),)
        scale = 1.0 if self.scaled else values[:, None]
        merged = self._merged([(part / scale).float() for part in coordinates])
        return ((basis @ (merged.to(basis) * scale)).float().reshape(tensors.shape),)

    def _merged(self, coordinates: Sequence[Tensor]) -> Tensor:
        """Return the merge of (E,) r x n coordinates."""
        ones = [1.0] * len(coordinates)
        if self.method == "ta":
            return combine(coordinates, ones, vote=None, divisor=self.divisor)
        if self.density < 1.0:
            coordinates = [
                trim(c, magnitude_threshold(c, self.density, exact=True)) for c in coordinates
            ]
        return combine(coordinates, ones, vote="unweighted", divisor=self.divisor)


def factored_coordinates(factors: Sequence[LowRank]) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Return what `shared_basis` does, and (E,) r x n coordinates S V_k^T, from thin factors.

    float64, and no m x n matrix is formed.
    """
    basis, values, rights = stacked_svd(factors)
    kept = int((values > RANK_TOLERANCE * values[:1]).sum())
    values = values[:kept]
    return basis[:, :kept], values, [values[:, None] * right[:, :kept].T for right in rights]


def shared_basis(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the left singular vectors and the singular values of [d_1 ... d_E].

    Args:
        matrices: (E,) m x n, float32 or float64.

    Returns:
        (m, r) orthonormal columns and (r,) descending positive values, of the matrices' dtype.
    """
    n_rows, n_columns = matrices[0].shape
    if n_rows > n_columns * len(matrices):
        factors = thin_svd(torch.cat(list(matrices), 1))
        return factors.left, factors.values
    # The right vectors are never needed (S V_k^T = U^T d_k), and the eigenvectors of an m x m
    # matrix cost E n / m times less. float64, because it squares the singular values: those of
    # 1e-6 still have an error of 1e-4 of themselves.
    gram = torch.zeros(n_rows, n_rows, dtype=torch.float64, device=matrices[0].device)
    for matrix in matrices:
        wide = matrix.double()
        gram.addmm_(wide, wide.T)
    squares, vectors = torch.linalg.eigh(gram)
    values = squares.clamp(min=0.0).sqrt().flip(0)
    kept = int((values > RANK_TOLERANCE * values[0]).sum())
    dtype = matrices[0].dtype
    return vectors.flip(1)[:, :kept].to(dtype), values[:kept].to(dtype)
