"""RMM: parents that share a small basis, each rebuilt from it with coefficients of its own.

Shape letters: E experts, r rank of their adapters, p basis vectors, q positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from evomerge.core.arrays import FloatArray
from evomerge.merging.low_rank import LowRank
from evomerge.merging.transform import (
    DeltaInputs,
    Outputs,
    TransformDefaults,
    delta_transform,
    not_a_linear_map,
)
from evomerge.merging.transforms.factored import factored
from evomerge.merging.transforms.ranges import check_settings


@delta_transform("rmm")
@dataclass(frozen=True, kw_only=True)
class Rmm(TransformDefaults):
    """d_k = B_k' A_k', every column of A and row of B projected on what all experts share.

    At a position (a column of A, a row of B) the experts have E vectors of r numbers; they become
    their mean plus their projection on the `basis` directions of largest variance. E - 1 of them,
    or r, give the parents back. The sum of the virtual sources is task arithmetic on the rebuilt
    parents; their weights are the coefficients to search.

    Attributes:
        basis: p, directions at each position; 0 takes half the number of experts, at least one.
        rank: Units a task vector that is no adapter is cut into, by SVD (the paper's PT-SVD).

    Source: Alipour and Amiri 2025, arXiv:2510.14163; it stores (p (r + E) + r) / (r E) of the
    parents. Differs from the paper: adapters of lower rank are padded with zeros, and their scale
    counts as part of B. Tensors that are no linear maps keep their task vectors.
    """

    outputs: ClassVar[Outputs] = "experts"

    basis: int = 0
    rank: int = 16

    def __post_init__(self) -> None:
        """Check the settings."""
        check_settings(self, basis=(0, 2**16), rank=(1, 2**16))

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how a tensor that is no linear map is handled, or None."""
        reason = not_a_linear_map(name, shape)
        return None if reason is None else f"{reason.partition(',')[0]}, task vectors as they are"

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return (E,) rebuilt task vectors."""
        del survey
        if self.fallback(tensors.name, tensors.shape) is not None:
            return tuple(delta.clone() for delta in tensors.deltas)
        parts = factored(tensors, self.rank)
        p = self.basis or max(1, len(parts) // 2)
        rebuilt = rebuild(parts, p)
        return tuple(part.product().reshape(tensors.shape) for part in rebuilt)


def rebuild(parts: Sequence[LowRank], p: int) -> tuple[LowRank, ...]:
    """Return the (E,) parts with p directions kept at every position."""
    rank = max(part.rank for part in parts)
    if p >= len(parts) - 1 or p >= rank:
        return tuple(parts)
    a = _shared([functional.pad(part.a, (0, 0, 0, rank - part.rank)).T for part in parts], p)
    b = _shared([functional.pad(part.b, (0, rank - part.rank)) for part in parts], p)
    return tuple(LowRank(a_k.T, b_k) for a_k, b_k in zip(a, b, strict=True))


def _shared(vectors: list[Tensor], p: int) -> list[Tensor]:
    """Return (E,) matrices (q, r) whose rows keep the mean over experts and p directions."""
    stacked = torch.stack(vectors, dim=1).double()  # (q, E, r)
    mean = stacked.mean(1, keepdim=True)
    centred = stacked - mean
    # Left singular vectors from the small (E, E) Gram matrices; the projection has no free sign.
    _, directions = torch.linalg.eigh(centred @ centred.mT)
    kept = directions[..., -p:]
    projected = mean + kept @ (kept.mT @ centred)
    return [matrix.float() for matrix in projected.unbind(1)]
