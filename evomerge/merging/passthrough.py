"""Passthrough: one expert as it is, or scaled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields


@merge_operator("passthrough")
@dataclass(frozen=True, kw_only=True)
class Passthrough(OperatorDefaults):
    """scale * theta_1 for the one expert; a base is what it is compared with, and not used.

    Over a stack of layers (`storage.stacked_source`) it makes a model of another depth.

    Attributes:
        scale: Factor of the expert's tensors, worth searching per kind of tensor.

    Source: mergekit's `passthrough` (Goddard et al. 2024, arXiv:2403.13257).
    Differs from mergekit: may have a base; as everywhere, tensors that are equal in base and
    expert are then copied, not scaled.
    """

    needs_base: ClassVar[bool] = False
    n_models: ClassVar[int | None] = 1
    sliceable: ClassVar[bool] = True

    scale: Annotated[float, Gene(0.0, 1.5)] = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        n_others = len(tensors.sources) - 1
        return tensors.weighted_sum((*(0.0 for _ in range(n_others)), self.scale))
