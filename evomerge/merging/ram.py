"""RAM: changes that one expert made are kept whole, changes that several made are averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.sign_consensus import combine, per_chunk
from evomerge.merging.weights import over_base


@dataclass(frozen=True, kw_only=True)
class Touching(OperatorDefaults):
    """What both methods share: which expert touched which element.

    Attributes:
        lambda_: Common scale.
        epsilon: An expert touches an element that it changes by more than this, in units of the
            weights; smaller changes are dropped.
    """

    lambda_: Annotated[float, Gene(0.3, 1.5)] = 1.0
    epsilon: Annotated[float, Gene(0.0, 1e-4, minimum=0.0)] = 1e-5

    def __post_init__(self) -> None:
        """Check the fields."""
        check_fields(self)

    def touched(self, tensors: TensorInputs) -> tuple[Tensor, ...]:
        """Return (E,) float32 task vectors without the changes that are too small."""
        return tuple(delta * (delta.abs() > self.epsilon) for delta in tensors.deltas)

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        n_experts = len(tensors.experts)
        if self.lambda_ == 0.0:
            return tensors.weighted_sum(over_base([0.0] * n_experts))
        if n_experts == 1 and self.epsilon == 0.0:
            return tensors.weighted_sum(over_base([self.lambda_]))
        touched = self.touched(tensors)
        merged = combine(touched, [1.0] * n_experts, vote="touched", divisor="mean")
        return tensors.add_to_base(self.reinforced(merged, touched).mul_(self.lambda_))

    def reinforced(self, merged: Tensor, touched: Sequence[Tensor]) -> Tensor:
        """Return the mean over the touching experts, changed where one touched alone."""
        del touched
        return merged


@merge_operator("ram")
@dataclass(frozen=True, kw_only=True)
class Ram(Touching):
    """theta_0 + lambda_ * the mean, element by element, of the experts that touched it.

    Source: "Reinforced Agent Merging" 2026, arXiv:2601.13572; mergekit's `ram`.
    Differs from mergekit: `lambda_`, and one rounding.
    """

    sliceable: ClassVar[bool] = True


def touch_counts(touched: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Return (E,) how many elements each expert shares with others, and touched alone."""
    n_touching = sum((delta != 0.0).int() for delta in touched)
    alone = [int(((delta != 0.0) & (n_touching == 1)).sum()) for delta in touched]
    shared = [
        int((delta != 0.0).sum()) - n_alone for delta, n_alone in zip(touched, alone, strict=True)
    ]
    return shared, alone


@merge_operator("ram_plus")
@dataclass(frozen=True, kw_only=True)
class RamPlus(Touching):
    """RAM, with what expert k touched alone multiplied by 1 + r min(shared_k / alone_k, alpha).

    An expert whose changes are mostly shared, and so thinned by averaging, gets its own ones
    reinforced; `shared_k` and `alone_k` count its elements in the tensor.

    Attributes:
        r: Strength; 0 gives `ram`.
        alpha: Cap of the ratio.

    Source: "Reinforced Agent Merging" 2026, arXiv:2601.13572; mergekit's `ramplus_tl`.
    Differs from the paper: the counts are those of each tensor, as in mergekit.
    Differs from mergekit: `lambda_`, and one rounding.
    """

    r: Annotated[float, Gene(0.0, 0.5, minimum=0.0)] = 0.1
    alpha: Annotated[float, Gene(0.0, 1.0, minimum=0.0)] = 0.2

    def reinforced(self, merged: Tensor, touched: Sequence[Tensor]) -> Tensor:
        """Return the mean with the elements of one expert alone scaled up."""
        extras = [
            self.r * (min(n_shared / n_alone, self.alpha) if n_alone else 0.0)
            for n_shared, n_alone in zip(*touch_counts(touched), strict=True)
        ]

        def scaled(part: Tensor) -> Tensor:
            mean, deltas = part[0], part[1:]
            is_alone = (deltas != 0.0).sum(0) == 1
            total = mean.clone()
            for delta, extra in zip(deltas, extras, strict=True):
                total.add_(delta * is_alone, alpha=extra)
            return total

        return per_chunk(scaled, (merged, *touched))
