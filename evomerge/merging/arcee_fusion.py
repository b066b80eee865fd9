"""Arcee Fusion: take over from a second model only the weights whose change stands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.pairs import pair_of
from evomerge.merging.parameters import check_fields
from evomerge.merging.sums import ROW, row_sums

_ELEMENTS_PER_PASS = 1 << 22
_EPSILON = 1e-8


def importance(a: Tensor, b: Tensor, delta: Tensor) -> Tensor:
    """Return |delta| times the divergence KL(softmax(b) || softmax(a)) of its last-axis row.

    Args:
        a: Any shape, float32; a scalar counts as one row of one.
        b: Same shape.
        delta: b - a.

    Returns:
        Same shape, float32.
    """
    width = a.shape[-1] if a.dim() else 1
    rows_a, rows_b = a.reshape(-1, width), b.reshape(-1, width)
    out = delta.abs().reshape(-1, width)
    step = max(_ELEMENTS_PER_PASS // max(width, 1), 1)
    for start in range(0, len(out), step):
        # float64: rows of fine-tunes diverge by less than float32 can tell from 0.
        p, q = (rows[start : start + step].double().softmax(-1) for rows in (rows_b, rows_a))
        p, q = p + _EPSILON, q + _EPSILON
        # Short runs first: torch splits one long sum over its threads.
        divergence = row_sums(p * (p / q).log(), min(width, ROW)).sum(-1, keepdim=True)
        out[start : start + step] *= divergence.float()
    return out.reshape(a.shape)


def outlier_threshold(scores: Tensor, multiplier: float) -> float:
    """Return median + multiplier * (third - first quartile); lower elements, no interpolation."""
    flat = scores.reshape(-1)
    first, median, third = (
        float(torch.kthvalue(flat, int(part * (flat.numel() - 1)) + 1).values)
        for part in (0.25, 0.5, 0.75)
    )
    return median + multiplier * (third - first)


@merge_operator("arcee_fusion")
@dataclass(frozen=True, kw_only=True)
class ArceeFusion(OperatorDefaults):
    """b where its importance is at least median + multiplier * interquartile range, else a.

    An element's importance is |b - a| times the divergence of its row, KL(softmax(b row) ||
    softmax(a row)); quartiles are those of the tensor. The pair (a, b) is the base and its one
    expert, or two models; with a base and two experts it is the experts.

    Attributes:
        multiplier: Larger values take over less; 0 takes over the upper half.

    Source: mergekit's `arcee_fusion` (arcee.ai); no paper.
    Differs from mergekit: exact quartiles, which mergekit draws from a random million of
    elements; divergences in float64; `multiplier` is fixed at 1.5 there.
    """

    needs_base: ClassVar[bool] = False
    n_models: ClassVar[int | None] = 2

    multiplier: Annotated[float, Gene(0.0, 4.0, minimum=0.0)] = 1.5

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor.

        Raises:
            ConfigError: There are not exactly two models.
        """
        a, b, delta = pair_of(tensors, operator="arcee_fusion")
        scores = importance(a, b, delta)
        is_taken = scores >= outlier_threshold(scores, self.multiplier)
        return tensors.round(torch.where(is_taken, b, a))
