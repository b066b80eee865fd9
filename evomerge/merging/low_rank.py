"""LowRank: a matrix kept as the product of two thin factors, as a LoRA adapter stores it.

Shapes: A (r, n), B (m, r) with the adapter's scale in it, B @ A (m, n). Factors are float32;
what is decomposed is decomposed in float64. Singular vectors get the sign that makes the largest
element of the left one positive, so that a decomposition is a function of its input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

# Singular values below this share of the largest are rounding of float32 products.
_NEGLIGIBLE = 1e-6


@dataclass(frozen=True, eq=False)
class LowRank:
    """B @ A, or its transpose.

    Attributes:
        a: (r, n) float32.
        b: (m, r) float32, the scale included.
        is_transposed: The tensor is (B @ A).T: embeddings, and GPT-2's (in, out) matrices.
    """

    a: Tensor
    b: Tensor
    is_transposed: bool = False

    @property
    def rank(self) -> int:
        """Number of units r: a row of A with its column of B."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the product as the tensor has it."""
        m, n = self.b.shape[0], self.a.shape[1]
        return (n, m) if self.is_transposed else (m, n)

    @classmethod
    def zero(cls, m: int, n: int, *, is_transposed: bool = False) -> LowRank:
        """Return an (m, n) zero B @ A of rank 0: a tensor that an adapter does not touch."""
        return cls(torch.zeros(0, n), torch.zeros(m, 0), is_transposed)

    def product(self) -> Tensor:
        """Return the tensor, float32; rounds once more than the adapter's own task vector."""
        dense = torch.matmul(self.b, self.a)
        return dense.T if self.is_transposed else dense

    def to(self, device: torch.device) -> LowRank:
        """Return the same factors on a device."""
        return LowRank(self.a.to(device), self.b.to(device), self.is_transposed)

    def turned(self, is_transposed: bool) -> LowRank:
        """Return the same tensor, stored the other way round where need be."""
        if self.is_transposed == is_transposed:
            return self
        return LowRank(self.b.T, self.a.T, is_transposed)

    def transposed(self) -> LowRank:
        """Return the transposed tensor."""
        return LowRank(self.a, self.b, not self.is_transposed)

    def square_norm(self) -> float:
        """Return the squared Frobenius norm, from (r, r) Gram matrices."""
        a, b = self.a.double(), self.b.double()
        return float(((a @ a.T) * (b.T @ b)).sum())

    def rows(self, start: int, stop: int) -> LowRank:
        """Return rows [start, stop) of the tensor: one block of a fused projection."""
        if self.is_transposed:
            return LowRank(self.a[:, start:stop], self.b, True)
        return LowRank(self.a, self.b[start:stop])


@runtime_checkable
class FactorSource(Protocol):
    """A tensor source that knows some of its task vectors as products."""

    def factors(self, name: str) -> tuple[Tensor, Tensor, bool] | None:
        """Return A (r, n), B (m, r) with the scale and whether B @ A is transposed, or None."""
        ...


def read_factors(source: object, name: str) -> LowRank | None:
    """Return the factors of a source's task vector; None where it knows none."""
    found = source.factors(name) if isinstance(source, FactorSource) else None
    return None if found is None else LowRank(*found)


def concatenate(parts: Sequence[LowRank], coefficients: Sequence[float]) -> LowRank:
    """Return sum_i c_i B_i A_i exactly, at rank sum_i r_i: A = [A_i], B = [c_i B_i].

    Parts with coefficient 0 are left out. All have one shape; the result is stored like the first.

    Source: operators.md 4.6. Differs from PEFT's `linear`, which puts sqrt(c) on both factors and
    adds them, so that negative coefficients are impossible and experts mix.
    """
    first = parts[0]
    used = [
        (part.turned(first.is_transposed), c)
        for part, c in zip(parts, coefficients, strict=True)
        if c != 0.0
    ]
    if not used:
        m, n = first.b.shape[0], first.a.shape[1]
        return LowRank.zero(m, n, is_transposed=first.is_transposed)
    a = torch.cat([part.a for part, _ in used])
    b = torch.cat([part.b * c for part, c in used], dim=1)
    return LowRank(a, b, first.is_transposed)


def recompress(matrix: LowRank, rank: int) -> tuple[LowRank, float]:
    """Return the best approximation of at most `rank`, and its relative Frobenius error.

    QR of both factors and SVD of the (r, r) core: the (m, n) product is never formed. Both factors
    get the square root of the singular values.
    """
    b, rest_b = torch.linalg.qr(matrix.b.double())
    a, rest_a = torch.linalg.qr(matrix.a.double().T)
    u, sizes, vh = torch.linalg.svd(rest_b @ rest_a.T, full_matrices=False)
    kept = min(rank, len(sizes))
    left = b @ u[:, :kept]
    root, signs = sizes[:kept].sqrt(), _signs(left)
    out = LowRank(
        (a @ vh[:kept].T * (root * signs)).T.float(),
        (left * (root * signs)).float(),
        matrix.is_transposed,
    )
    return out, _tail_share(sizes, kept)


def extract(delta: Tensor, rank: int) -> LowRank:
    """Return the best approximation of a dense matrix (m, n) of at most `rank`.

    Directions that are only rounding are left out. Both factors get the square root of the
    singular values. From eigenvectors of the smaller Gram matrix, since an SVD takes many times
    as long; what that loses are singular values below 1e-8 of the largest.
    """
    m, n = delta.shape
    if not bool(delta.any()):
        return LowRank.zero(m, n)
    matrix = delta.double()
    wide = matrix.T if m > n else matrix
    _, vectors = torch.linalg.eigh(wide @ wide.T)
    basis = vectors[:, -min(rank, vectors.shape[1]) :].flip(1)
    image = wide.T @ basis
    sizes = image.norm(dim=0)
    kept = sizes > _NEGLIGIBLE * sizes[0]
    root = sizes[kept].sqrt()
    basis, image = basis[:, kept] * root, image[:, kept] / root
    b, a = (image, basis) if m > n else (basis, image)
    signs = _signs(b)
    return LowRank((a * signs).T.float(), (b * signs).float())


def stacked_svd(parts: Sequence[LowRank]) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    """Return U, sizes and V_i of [delta_1 … delta_E] = U diag(sizes) [V_1' … V_E'].

    For KnOTS on adapters: QR of the factors and the SVD of a core of sum_i r_i rows, so that no
    (m, E n) matrix is formed or decomposed.

    Args:
        parts: (E,) factors of (m, n) tensors; stored transposed is fine.

    Returns:
        U (m, R), sizes (R,) descending, and (E,) matrices V_i (n, R), all float64.

    Source: Stoica et al. 2024 (KnOTS), arXiv:2410.19735.
    """
    straight = [part.turned(False) for part in parts]
    left, rest_left = torch.linalg.qr(torch.cat([part.b.double() for part in straight], dim=1))
    bases, cores, start = [], [], 0
    for part in straight:
        basis, rest = torch.linalg.qr(part.a.double().T)
        bases.append(basis)
        cores.append(rest_left[:, start : start + part.rank] @ rest.T)
        start += part.rank
    u, sizes, vh = torch.linalg.svd(torch.cat(cores, dim=1), full_matrices=False)
    left = left @ u
    signs = _signs(left)
    v = vh.T * signs
    rights, start = [], 0
    for basis in bases:
        rights.append(basis @ v[start : start + basis.shape[1]])
        start += basis.shape[1]
    return left * signs, sizes, tuple(rights)


def _signs(columns: Tensor) -> Tensor:
    """Return (k,) the sign of each column's element of largest magnitude."""
    if columns.numel() == 0:
        return torch.ones(columns.shape[1], dtype=columns.dtype)
    largest = columns.abs().argmax(dim=0)
    values = columns.gather(0, largest[None])[0]
    return torch.where(values < 0, -1.0, 1.0).to(columns.dtype)


def _tail_share(sizes: Tensor, kept: int) -> float:
    squares = sizes.square()
    total = float(squares.sum())
    return math.sqrt(float(squares[kept:].sum()) / total) if total > 0.0 else 0.0
