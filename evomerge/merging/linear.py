"""Linear merging: a weighted mean of all models ("model soup")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.weights import normalized


@merge_operator("linear")
@dataclass(frozen=True, kw_only=True)
class Linear(OperatorDefaults):
    """sum_k w_k theta_k, divided by sum_k w_k when `normalize` is on.

    Attributes:
        weights: (K,) one per source, the base included and first when there is one.
        normalize: Divide by the sum of the weights.

    Raises:
        ConfigError: `normalize` is on and the weights cancel.

    Source: Wortsman et al. 2022 (model soups), arXiv:2203.05482.
    Differs from mergekit, which rounds the weights to the tensors' dtype and divides by any sum.
    """

    needs_base: ClassVar[bool] = False
    weights_over: ClassVar[Literal["experts", "sources"]] = "sources"
    sliceable: ClassVar[bool] = True

    weights: tuple[Annotated[float, Gene(0.0, 1.0)], ...]
    normalize: bool = True

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)
        self._shares  # noqa: B018  (refuses weights that cancel)

    @cached_property
    def _shares(self) -> tuple[float, ...]:
        return normalized(self.weights, operator="linear") if self.normalize else self.weights

    def coefficients(self) -> tuple[float, ...]:
        """Return (K,) coefficients over the sources."""
        return self._shares

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        return tensors.weighted_sum(self.coefficients())
