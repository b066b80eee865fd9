"""Arcee Fusion: take over from a second model only the weights whose change stands out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.apart import empty_apart
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.pairs import pair_of
from evomerge.merging.parameters import check_fields
from evomerge.merging.passes import write_in_passes
from evomerge.merging.quantiles import order_statistics
from evomerge.merging.sums import ROW, row_sums

_EPSILON = 1e-8


def importance(a: Tensor, b: Tensor, delta: Tensor) -> Tensor:
    """Return |delta| times the divergence KL(softmax(b) || softmax(a)) of its row.

    Args:
        a: (rows, n) float32.
        b: Same shape.
        delta: b - a.

    Returns:
        Same shape, float32.
    """
    # float64: rows of fine-tunes diverge by less than float32 can tell from 0.
    p, q = b.double().softmax(-1) + _EPSILON, a.double().softmax(-1) + _EPSILON
    # Short runs first: torch splits one long sum over its threads.
    divergence = row_sums(p * (p / q).log(), min(a.shape[-1], ROW)).sum(-1, keepdim=True)
    return delta.abs() * divergence.float()


def outlier_threshold(scores: Tensor, multiplier: float) -> float:
    """Return median + multiplier * (third - first quartile); lower elements, no interpolation."""
    last = scores.numel() - 1
    first, median, third = order_statistics(
        scores.reshape(-1), [int(part * last) for part in (0.25, 0.5, 0.75)]
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
        pair = pair_of(tensors, operator="arcee_fusion")
        assert pair.base is not None
        width = pair.base.shape[-1] if pair.base.dim() else 1
        a, b = pair.base.reshape(-1), pair.experts[0].reshape(-1)
        scores = empty_apart(a.shape, torch.float32, a.device)
        for at, (delta,) in pair.delta_slices([0], run=width):
            rows = [part.float().view(-1, width) for part in (a[at], b[at], delta)]
            scores[at] = importance(*rows).view(-1)
        threshold = outlier_threshold(scores, self.multiplier)
        return write_in_passes(
            pair,
            lambda at, _: torch.where(scores[at] >= threshold, b[at].float(), a[at].float()),
            [],
        )
