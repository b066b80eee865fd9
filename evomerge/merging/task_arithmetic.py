"""Task arithmetic: the base plus weighted task vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.weights import normalized, over_base


@merge_operator("task_arithmetic")
@dataclass(frozen=True, kw_only=True)
class TaskArithmetic(OperatorDefaults):
    """theta_0 + lambda_ * sum_k w_k (theta_k - theta_0).

    Computed as coefficients over the raw tensors, so that all-zero weights give the base and
    one weight of 1 gives that expert bit for bit.

    Attributes:
        weights: (E,) one per expert; a negative weight forgets a task.
        lambda_: Common scale; mergekit's `lambda`.
        normalize: Divide the weights by their sum.

    Raises:
        ConfigError: `normalize` is on and the weights cancel.

    Source: Ilharco et al. 2023, arXiv:2212.04089.
    Differs from mergekit only in accumulating in float32 whatever the tensors' dtype.
    """

    sliceable: ClassVar[bool] = True

    weights: tuple[Annotated[float, Gene(-1.0, 1.5)], ...]
    lambda_: Annotated[float, Gene(0.0, 1.5)] = 1.0
    normalize: bool = False

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        self.scales()

    def scales(self) -> tuple[float, ...]:
        """Return (E,) the factor of each task vector."""
        weights = self.weights
        if self.normalize:
            weights = normalized(weights, operator="task_arithmetic")
        return tuple(self.lambda_ * weight for weight in weights)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        return tensors.weighted_sum(over_base(self.scales()))
