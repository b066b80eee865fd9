"""WIDEN: each input column counts as much as the expert changed its length and direction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

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

# Of a squared sine in float64: below it, columns are parallel.
_ROUNDING = 1e-13


@delta_transform("widen")
@dataclass(frozen=True, kw_only=True)
class Widen(TransformDefaults):
    """sum_i (score_i of the length + score_i of the direction) / 2, per column, times delta_i.

    Per expert, columns are ranked by how much their length changed (||W_i| - |W_0||), and by how
    much their direction did (1 - cosine); a rank is divided by the number of columns. The score
    is the softmax of the ranks over the experts, but 1 where a rank is above the expert's mean
    rank times `ratio`. Part i of the result is the expert's scored task vector.

    Attributes:
        ratio: How far above the average a column must be to count in full; the mean rank is
            about 1/2, so 2 or more leaves the softmax everywhere.

    Source: Yu et al. 2024 (arXiv:2408.03092) and its code (yule-BUAA/MergeLLM,
    magnitude_direction_merging).
    Differs from the code: vectors get the mean, and embeddings too (there, vectors are scored by
    their values and embeddings by token); the two changes are computed from the task vector with
    float64 sums, since 1 - cosine of a fine-tune is below float32 rounding; a column that is zero
    in both models did not change, instead of turning by 1 or nan.
    Not scale equivariant: lengths are measured against the base.
    """

    outputs: ClassVar[Outputs] = "experts"

    ratio: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        check_range(self, "ratio", 0.0, math.inf)

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return (E,) parts, the shape of the base; see `DeltaTransform`."""
        del survey
        if self.fallback(tensors.name, tensors.shape) is not None:
            return mean_parts(tensors.deltas, self.outputs)
        base = tensors.base.flatten(1)
        deltas = [delta.flatten(1) for delta in tensors.deltas]
        changes = [column_changes(base, delta) for delta in deltas]
        lengths = column_scores(torch.stack([length for length, _ in changes]), self.ratio)
        turns = column_scores(torch.stack([turn for _, turn in changes]), self.ratio)
        scores = (0.5 * (lengths + turns)).to(torch.float32)
        parts = (delta * score for delta, score in zip(deltas, scores, strict=True))
        return tuple(part.view(tensors.shape) for part in parts)


def column_changes(base: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return how much each column's length and direction changed.

    Args:
        base: (m, n) float32.
        delta: (m, n) float32 task vector.

    Returns:
        (n,) float64 | |b + d| - |b| | and (n,) float64 1 - cos(b + d, b).
    """
    base, delta = base.to(torch.float64), delta.to(torch.float64)
    base_square, delta_square = base.square().sum(0), delta.square().sum(0)
    inner = (base * delta).sum(0)
    old = base_square.sqrt()
    new = (base_square + 2.0 * inner + delta_square).clamp(min=0.0).sqrt()
    tiny = torch.finfo(torch.float64).tiny
    length = (2.0 * inner + delta_square).abs() / (old + new).clamp(min=tiny)
    product = (old * new).clamp(min=tiny)
    cosine = ((base_square + inner) / product).clamp(-1.0, 1.0)
    # 1 - cos = sin^2 / (1 + cos): no cancellation at the small angles of a fine-tune.
    area = base_square * delta_square - inner.square()
    is_rounding = area <= _ROUNDING * base_square * delta_square
    sine_square = torch.where(is_rounding, 0.0, area) / product.square()
    turn = torch.where(cosine > 0.0, sine_square / (1.0 + cosine), 1.0 - cosine)
    return length, torch.where(delta_square > 0.0, turn, 0.0)


def column_scores(changes: Tensor, ratio: float) -> Tensor:
    """Return (E, n) float64 scores of the columns for (E, n) changes."""
    n_columns = changes.shape[1]
    order = changes.argsort(dim=1, stable=True)
    places = torch.arange(n_columns, dtype=torch.float64).expand_as(changes)
    ranks = torch.empty_like(changes).scatter_(1, order, places)
    # Whole numbers: divided first, rounding would decide on a rank that equals the bound.
    is_important = ranks > ratio * (n_columns - 1) / 2.0
    return torch.where(is_important, 1.0, (ranks / n_columns).softmax(0))
