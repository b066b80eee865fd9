"""SCE: select what differs most, calculate weights from its size, erase minorities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.exempt import Vectors, exempt_kind
from evomerge.merging.operator import Compat, OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.selected import merge_selected, square_sums
from evomerge.merging.weights import over_base

# A threshold that selects every element.
_EVERYTHING = -math.inf
# mergekit's guard, in squared units of the weights.
_MERGEKIT_GUARD = 1e-6
# Mean squares below this fraction of the largest count as if they were it.
_SMALLEST_SHARE = 1e-12


def energy_shares(mean_squares: Sequence[float], q: float) -> tuple[float, ...]:
    """Return (E,) weights in proportion to mean_squares ** q; equal ones when all are zero."""
    largest = max(mean_squares)
    if largest == 0.0:
        return (1.0 / len(mean_squares),) * len(mean_squares)
    powers = [max(value / largest, _SMALLEST_SHARE) ** q for value in mean_squares]
    return tuple(power / sum(powers) for power in powers)


@merge_operator("sce")
@dataclass(frozen=True, kw_only=True)
class Sce(OperatorDefaults):
    """theta_0 + lambda_ * sum_{k in A} a_k d_k / sum_{k in A} a_k, a_k = mean(d_k ** 2) ** q.

    Select: d_k is the task vector with only the elements whose variance over the experts is among
    the largest `select` of those that are not zero. Calculate: the weights a_k, one per tensor
    and expert. Erase: A holds the experts whose element has the sign of sum_k d_k.

    Attributes:
        select: Fraction of the elements selected; 1 selects everything. A smaller one leaves the
            base where all experts agree.
        q: Exponent of the mean squares; 1 in the paper, 0 weighs all experts the same.
        lambda_: Common scale.
        compat: "mergekit" weighs all experts the same when their mean squares sum to less than
            1e-6, which happens for typical task vectors, and includes norms and biases.
        vectors: Whether tensors with at most one axis, and routers, are exempt from selection and
            erasing; "auto" exempts them for `compat: paper`.
        select_scope: "deltas" merges the selected elements; "weights" merges all, and selects
            only to calculate the weights (the released code of FuseAI).

    Source: Wan et al. 2024, arXiv:2408.07990.
    Differs from the paper: norms, biases and routers are exempt; at least one element is
    selected; `q` and `lambda_` are ours. The weights do not depend on the unit of the task vectors.
    Differs from mergekit: nothing else, but for elements that tie.
    """

    needs_variances: ClassVar[bool] = True

    select: Annotated[float, Gene(0.05, 1.0, minimum=0.0, maximum=1.0)] = 0.1
    q: Annotated[float, Gene(-1.0, 2.0)] = 1.0
    lambda_: Annotated[float, Gene(0.3, 1.5)] = 1.0
    compat: Compat = "paper"
    vectors: Vectors = "auto"
    select_scope: Literal["deltas", "weights"] = "deltas"

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how such a tensor is merged instead, or None."""
        kind = exempt_kind(name, shape, self.vectors, self.compat)
        return kind and f"{kind}, combined without selection or vote"

    def shares(self, mean_squares: Sequence[float]) -> tuple[float, ...]:
        """Return (E,) the weights of task vectors with these mean squares; they sum to 1."""
        if self.compat == "mergekit" and sum(mean_squares) < _MERGEKIT_GUARD:
            return (1.0 / len(mean_squares),) * len(mean_squares)
        return energy_shares(mean_squares, self.q)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        n_experts = len(tensors.experts)
        exempt = self.fallback(tensors.name, tuple(tensors.experts[0].shape)) is not None
        if self.lambda_ == 0.0:
            return tensors.weighted_sum(over_base([0.0] * n_experts))
        if n_experts == 1 and (exempt or self.select >= 1.0 or self.select_scope == "weights"):
            return tensors.weighted_sum(over_base([self.lambda_]))
        threshold = _EVERYTHING
        if not exempt and self.select < 1.0:
            threshold = tensors.variance_threshold(
                self.select,
                at_least=1 if self.compat == "paper" else 0,
                exact=self.compat == "mergekit",
            )
        n_elements = tensors.experts[0].numel()
        shares = self.shares([total / n_elements for total in square_sums(tensors, threshold)])
        if exempt:
            return tensors.weighted_sum(over_base([self.lambda_ * share for share in shares]))
        if self.select_scope == "weights":
            threshold = _EVERYTHING
        return merge_selected(tensors, threshold, shares, self.lambda_)
