"""Arcee Fusion: take over from a second model only the weights whose change stands out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.apart import empty_apart
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.pairs import pair_of
from evomerge.merging.parameters import check_fields
from evomerge.merging.passes import blocks, row_blocks, write_in_passes
from evomerge.merging.quantiles import order_statistics
from evomerge.merging.sums import ROW, row_sums, total

_EPSILON = 1e-8


def write_importance(pair: TensorInputs, out: Tensor) -> None:
    """Write |b - a| times the divergence KL(softmax(b) || softmax(a)) of its row.

    Args:
        pair: (rows, n) a as base and b as expert: one row, or rows of a single pass.
        out: Same shape, float32.
    """
    # float64: rows of fine-tunes diverge by less than float32 can tell from 0.
    pieces = list(blocks(pair, out, axis=1, run=ROW))
    n = out.shape[1]

    def sums(values: Iterable[Tensor]) -> Tensor:
        return total((row_sums(value, min(n, ROW)) for value in values), n)[:, None]

    def log_sum(source: int) -> Tensor:
        def parts() -> Iterator[Tensor]:
            return (piece.sources[source].double() for piece, _ in pieces)

        most = reduce(torch.maximum, (part.amax(-1, keepdim=True) for part in parts()))
        return most + sums((part - most).exp_() for part in parts()).log_()

    log_a, log_b = log_sum(0), log_sum(1)

    def divergences(piece: TensorInputs) -> Tensor:
        a, b = (source.double() for source in piece.sources)
        p, q = (b - log_b).exp_().add_(_EPSILON), (a - log_a).exp_().add_(_EPSILON)
        return q.reciprocal_().mul_(p).log_().mul_(p)

    divergence = sums(divergences(piece) for piece, _ in pieces).float()
    for piece, target in pieces:
        torch.mul(piece.delta(0).abs(), divergence, out=target)


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
        for part, target in row_blocks(pair, scores, width):
            write_importance(part, target)
        threshold = outlier_threshold(scores, self.multiplier)

        def fuse(at: slice, _deltas: list[Tensor]) -> Tensor:
            score = scores[at]
            # What is no number is neither, and stays to be seen.
            fused = torch.where(score >= threshold, b[at].float(), score)
            return torch.where(score < threshold, a[at].float(), fused)

        return write_in_passes(pair, fuse, [])
