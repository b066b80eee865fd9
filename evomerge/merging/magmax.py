"""MagMax: of every element, the largest change that any expert made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.passes import add_in_passes
from evomerge.merging.weights import over_base


def largest_change(deltas: Sequence[Tensor]) -> Tensor:
    """Return (n,) the largest element, by magnitude, of (E,) task vectors; the last if they tie.

    NaN counts as the largest.
    """
    largest = deltas[0]
    for delta in deltas[1:]:
        is_larger = (delta.abs() >= largest.abs()) | delta.isnan()
        largest = torch.where(is_larger, delta, largest)
    return largest


@merge_operator("magmax")
@dataclass(frozen=True, kw_only=True)
class MagMax(OperatorDefaults):
    """theta_0 + lambda_ * d, each element of d from the expert that changed it most.

    Attributes:
        lambda_: Common scale.

    Source: Marczak et al. 2024, arXiv:2407.06322.
    Differs from the paper: the experts need not be fine-tuned one after the other. Where two
    experts made opposite changes of one size, the later expert's is taken.
    """

    sliceable: ClassVar[bool] = True

    lambda_: Annotated[float, Gene(0.3, 1.0)] = 0.5

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        n_experts = len(tensors.experts)
        if self.lambda_ == 0.0 or n_experts == 1:
            return tensors.weighted_sum(over_base([self.lambda_] * n_experts))
        return add_in_passes(tensors, lambda _, deltas: largest_change(deltas).mul_(self.lambda_))
