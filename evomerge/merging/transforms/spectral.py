"""Linear algebra of the spectral transforms: thin SVD, polar factor, numerical rank.

Everything here counts only directions above `RANK_TOLERANCE`: what a factorisation returns below
it is rounding, arbitrary and different on every machine. A zero matrix has rank 0, and its
factors have no columns.

Shape legend: m x n matrices (outputs x inputs), r a numerical rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Up to this smaller side a float64 SVD costs 1.4 times a float32 one (one CPU core, 1024 x 1024:
# 0.37 s against 0.27 s), above it also a lot of memory.
FLOAT64_SIDE = 1024

# Of the largest singular value. The float32 rounding of a low-rank product leaves about 1e-8,
# that of a float32 SVD more (`_tolerance`).
RANK_TOLERANCE = 1e-6

_NEWTON_SCHULZ_STEPS = 30


@dataclass(frozen=True, eq=False)
class Svd:
    """A thin singular value decomposition, without the directions that are only rounding.

    Attributes:
        left: (m, r) orthonormal columns.
        values: (r,) singular values, descending, all positive.
        right: (n, r) orthonormal columns.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """The numerical rank r."""
        return self.values.numel()

    def truncated(self, rank: int) -> Svd:
        """Return the `rank` largest singular triplets, all if there are fewer."""
        return Svd(self.left[:, :rank], self.values[:rank], self.right[:, :rank])

    def product(self) -> Tensor:
        """Return the (m, n) matrix left @ diag(values) @ right^T."""
        return (self.left * self.values) @ self.right.T


def as_matrices(deltas: Sequence[Tensor]) -> list[Tensor]:
    """Return task vectors as matrices, axes after the first (convolutions) flattened.

    Args:
        deltas: (E,) tensors of one shape with at least two axes, float32.

    Returns:
        (E,) m x n, float64 if min(m, n) <= `FLOAT64_SIDE`, float32 above.
    """
    flat = [delta.reshape(delta.shape[0], -1) for delta in deltas]
    if min(flat[0].shape) > FLOAT64_SIDE:
        return flat
    return [matrix.double() for matrix in flat]


def thin_svd(matrix: Tensor, *, reference: float = 0.0) -> Svd:
    """Return the thin SVD; in each left vector the element of largest magnitude is positive.

    Args:
        matrix: (m, n) float32 or float64, finite.
        reference: Norm that the tolerance counts from if it is above the largest singular value;
            for a remainder, the norm of what it is left of.

    Returns:
        Factors of the matrix's dtype.
    """
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    if values.numel() == 0:
        return Svd(left, values, right.T)
    threshold = _tolerance(matrix) * max(float(values[0]), reference)
    kept = int((values > threshold).sum())
    left, values, right = left[:, :kept], values[:kept], right[:kept].T
    if kept:
        largest = left.abs().argmax(0, keepdim=True)
        signs = torch.where(left.gather(0, largest) < 0.0, -1.0, 1.0).to(left.dtype)
        left, right = left * signs, right * signs
    return Svd(left, values, right)


def _tolerance(matrix: Tensor) -> float:
    """Return the share of the largest singular value below which there is only rounding."""
    if matrix.dtype == torch.float64:
        return RANK_TOLERANCE
    # A float32 SVD adds its own: 1.5e-6 at 2600 x 2600, a quarter of this.
    return max(RANK_TOLERANCE, torch.finfo(matrix.dtype).eps * math.sqrt(max(matrix.shape)))


def polar(matrix: Tensor) -> Tensor:
    """Return the polar factor U V^T of U S V^T, the nearest matrix with orthonormal columns (rows).

    Directions below the tolerance stay zero, which makes it a partial isometry for a
    rank-deficient matrix: unique, and the same for every implementation.
    float32 matrices go through Newton-Schulz, whose matrix products are what accelerators are good
    at; if that does not converge (a condition number above about 1e4, a deficient rank), and for
    float64, a float64 SVD gives it.

    Args:
        matrix: (m, n) float32 or float64, finite.

    Returns:
        (m, n) of the matrix's dtype.
    """
    if matrix.numel() == 0 or not bool(matrix.any()):
        return torch.zeros_like(matrix)
    if matrix.dtype == torch.float32:
        is_tall = matrix.shape[0] >= matrix.shape[1]
        found = _newton_schulz(matrix if is_tall else matrix.T)
        if found is not None:
            return found if is_tall else found.T
    factors = thin_svd(matrix.double())
    return (factors.left @ factors.right.T).to(matrix.dtype)


def _newton_schulz(matrix: Tensor) -> Tensor | None:
    """Return the polar factor of a (m, n) float32 matrix, m >= n, or None without convergence.

    Source: Higham 2008, Functions of Matrices, section 8.3, X <- X (3 I - X^T X) / 2.
    """
    eye = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    factor = matrix / _norm_estimate(matrix)
    for _ in range(_NEWTON_SCHULZ_STEPS):
        gram = factor.T @ factor
        error = float((gram - eye).abs().max())
        if not error < 10.0:
            return None
        factor = factor @ (1.5 * eye - 0.5 * gram)
        # Convergence is quadratic: the step just taken squared this error.
        if error < 1e-4:
            return factor
    return None


def _norm_estimate(matrix: Tensor) -> float:
    """Return the largest singular value by power iteration, a little above.

    Convergence of Newton-Schulz only needs it within a factor of the square root of three.
    """
    vector = torch.ones(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    norm = 0.0
    for _ in range(12):
        image = matrix.T @ (matrix @ (vector / vector.norm().clamp(min=1e-30)))
        norm, vector = float(image.norm()) ** 0.5, image
    # A start vector orthogonal to everything gives 0; the Frobenius norm is always enough.
    return 1.1 * norm if norm > 0.0 else float(matrix.norm())
