"""Low-rank parents: each expert's task vector truncated, and optionally quantised (SkillPack).

Shape legend: E experts; m x n matrices (outputs x inputs); r kept rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.errors import ConfigError
from evomerge.merging.parameters import check_fields
from evomerge.merging.transform import (
    DeltaInputs,
    Outputs,
    TransformDefaults,
    delta_transform,
    not_a_linear_map,
)
from evomerge.merging.transforms.ranges import check_range
from evomerge.merging.transforms.spectral import Svd, as_matrices, thin_svd
from evomerge.merging.transforms.tsv_m import rank_of

# Candidates for the largest representable magnitude, over the largest element of a vector.
_CLIPS = tuple(step / 20 for step in range(4, 21))


@delta_transform("low_rank")
@dataclass(frozen=True, kw_only=True)
class LowRankParents(TransformDefaults):
    """d_k = Q(U_k) S_k Q(V_k)^T of rank `rank_fraction` min(m, n), one virtual source per expert.

    Q is the identity, or rounds each singular vector to a few bits; the leading ones get more.
    SkillPack's setting is `bits: [8, 4, 2]`, `shares: [0.02, 0.18, 0.8]`.

    Attributes:
        rank_fraction: Fraction of the rank kept, rounded down but at least 1, in (0, 1].
            SkillPack keeps about 0.24 of attention and 0.34 of MLP matrices.
        bits: Bits per element in each range of singular vectors, 2 to 8; empty: not quantised.
        shares: Fraction of the kept rank in each range, the leading ones first; sums to 1.

    Source: SkillPack of GraftLLM, Du et al. 2025, arXiv:2505.18502, after Delta-CoMe.
    Differs from the released code: rounds to the nearest of 2^bits - 1 symmetric levels, spaced
    for the least squared error of each vector, where that runs GPTQ on calibration data. Other
    tensors keep their task vectors.
    """

    outputs: ClassVar[Outputs] = "experts"

    rank_fraction: float = 0.25
    bits: tuple[int, ...] = ()
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the settings."""
        check_fields(self)
        check_range(self, "rank_fraction", 0.0, 1.0, open_low=True)
        for name in ("bits", "shares"):
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)):
                raise ConfigError(f"{name} is {value!r}, must be a list of numbers")
            # A config file gives lists; fields of a frozen class must not change.
            object.__setattr__(self, name, tuple(value))
        if len(self.bits) != len(self.shares):
            raise ConfigError(
                f"bits has {len(self.bits)} numbers and shares {len(self.shares)}: "
                "give one share of the rank for every number of bits"
            )
        for bits in self.bits:
            if type(bits) is not int or not 2 <= bits <= 8:
                raise ConfigError(f"bits holds {bits!r}, must be whole numbers from 2 to 8")
        for share in self.shares:
            if not isinstance(share, (int, float)) or not 0.0 < share <= 1.0:
                raise ConfigError(f"shares holds {share!r}, must be above 0 and at most 1")
        if self.shares and abs(math.fsum(self.shares) - 1.0) > 1e-6:
            raise ConfigError(f"shares sums to {math.fsum(self.shares):g}, must sum to 1")

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how a tensor that is no linear map is handled, or None."""
        reason = not_a_linear_map(name, shape)
        return None if reason is None else f"{reason.partition(',')[0]}, task vectors as they are"

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return (E,) task vectors."""
        del survey
        if self.fallback(tensors.name, tensors.shape) is not None:
            return tuple(delta.clone() for delta in tensors.deltas)
        parts: list[Tensor] = []
        for matrix in as_matrices(tensors.deltas):
            rank = rank_of(min(matrix.shape), self.rank_fraction)
            kept = self._quantised(thin_svd(matrix).truncated(rank))
            parts.append(kept.product().float().reshape(tensors.shape))
        return tuple(parts)

    def _quantised(self, factors: Svd) -> Svd:
        if not self.bits or factors.rank == 0:
            return factors
        ends = [round(end * factors.rank) for end in accumulate(self.shares)]
        sizes = [end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        left, right = (
            torch.cat(
                [
                    quantised(columns, bits)
                    for columns, bits in zip(torch.split(vectors, sizes, 1), self.bits, strict=True)
                ],
                1,
            )
            for vectors in (factors.left, factors.right)
        )
        return Svd(left, factors.values, right)


def quantised(columns: Tensor, bits: int) -> Tensor:
    """Return each column rounded to 2^bits - 1 levels, symmetric around zero.

    Of a few spacings, each column gets the one with the least squared error: spreading the
    levels up to the largest element would leave almost nothing at two bits.

    Args:
        columns: (n, r) float.
        bits: At least 2.

    Returns:
        (n, r) of the same dtype.
    """
    if columns.shape[1] == 0:
        return columns
    top = 2 ** (bits - 1) - 1
    largest = columns.abs().amax(0, keepdim=True).clamp(min=torch.finfo(columns.dtype).tiny)
    best, least = torch.zeros_like(columns), columns.square().sum(0)
    for clip in _CLIPS:
        spacing = largest * (clip / top)
        rounded = (columns / spacing).round().clamp(-top, top) * spacing
        error = (rounded - columns).square().sum(0)
        is_better = error < least
        best = torch.where(is_better, rounded, best)
        least = torch.where(is_better, error, least)
    return best
