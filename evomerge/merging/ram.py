"""RAM: changes that one expert made are kept whole, changes that several made are averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import IntArray
from evomerge.core.genes import Gene
from evomerge.merging.kept import Keep, merge_kept
from evomerge.merging.operator import OperatorDefaults, TensorInputs, merge_operator
from evomerge.merging.parameters import check_fields
from evomerge.merging.passes import add_in_passes
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

    @property
    def keep(self) -> Keep:
        """What stays of every task vector."""
        return Keep(low=float(np.nextafter(np.float32(self.epsilon), np.float32(math.inf))))

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor."""
        n_experts = len(tensors.experts)
        if self.lambda_ == 0.0:
            return tensors.weighted_sum(over_base([0.0] * n_experts))
        if n_experts == 1 and self.epsilon == 0.0:
            return tensors.weighted_sum(over_base([self.lambda_]))
        return self.merge_touched(tensors)

    def merge_touched(self, tensors: TensorInputs) -> Tensor:
        """Return the base plus `lambda_` times the mean over the experts that touch an element."""
        n_experts = len(tensors.experts)
        return merge_kept(
            tensors,
            [self.keep] * n_experts,
            [1.0] * n_experts,
            vote="touched",
            divisor="mean",
            scale=self.lambda_,
        )


@merge_operator("ram")
@dataclass(frozen=True, kw_only=True)
class Ram(Touching):
    """theta_0 + lambda_ * the mean, element by element, of the experts that touched it.

    Source: "Reinforced Agent Merging" 2026, arXiv:2601.13572; mergekit's `ram`.
    Differs from mergekit: `lambda_`, and one rounding.
    """

    sliceable: ClassVar[bool] = True


def touch_counts(touched: Sequence[Tensor]) -> tuple[IntArray, IntArray]:
    """Return (E,) how many elements each expert shares with others, and touched alone."""
    n_touching = sum((delta != 0.0).int() for delta in touched)
    alone = [int(((delta != 0.0) & (n_touching == 1)).sum()) for delta in touched]
    total = [int((delta != 0.0).sum()) for delta in touched]
    return np.array(total) - np.array(alone), np.array(alone)


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

    def merge_touched(self, tensors: TensorInputs) -> Tensor:
        """Return RAM's merge with the elements of one expert alone scaled up."""
        shared = alone = np.zeros(len(tensors.experts), dtype=np.int64)
        for _, deltas in tensors.delta_slices(range(len(tensors.experts))):
            parts = touch_counts([self.keep.apply(delta) for delta in deltas])
            shared, alone = shared + parts[0], alone + parts[1]
        ratios = np.minimum(shared / np.maximum(alone, 1), self.alpha)
        extras = np.where(alone > 0, self.r * ratios, 0.0).tolist()
        if not any(extras):
            return super().merge_touched(tensors)

        def change(_at: slice, deltas: list[Tensor]) -> Tensor:
            touched = [self.keep.apply(delta) for delta in deltas]
            n_touching = torch.stack([delta != 0.0 for delta in touched]).sum(0)
            total = torch.zeros_like(touched[0])
            for delta in touched:
                total += delta
            total /= n_touching.clamp(min=1)
            is_alone = n_touching == 1
            for delta, extra in zip(touched, extras, strict=True):
                total.add_(delta * is_alone, alpha=extra)
            return total.mul_(self.lambda_)

        return add_in_passes(tensors, change)
