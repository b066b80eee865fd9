"""Model Breadcrumbs: of each task vector keep neither the largest nor the smallest elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.operator import TensorInputs, merge_operator
from evomerge.merging.sign_consensus import n_kept
from evomerge.merging.sparsified import AddSparsified, Sparsified, VoteSparsified


def keep_band(delta: Tensor, n_wanted: int, n_top: int) -> Tensor:
    """Return `delta` with only `n_wanted` elements, those below the `n_top` largest magnitudes.

    When there are fewer than that below, fewer large ones are dropped. Elements that tie with an
    end of the band are kept.

    Args:
        delta: Any shape, float32.
        n_wanted: Elements to keep.
        n_top: Largest elements to drop.
    """
    if n_wanted < 1:
        return torch.zeros_like(delta)
    n = delta.numel()
    n_top = min(n_top, n - n_wanted)
    magnitudes = delta.abs()
    flat = magnitudes.reshape(-1)
    largest = torch.kthvalue(flat, n - n_top).values
    smallest = torch.kthvalue(flat, n - n_top - n_wanted + 1).values
    return delta * ((magnitudes >= smallest) & (magnitudes <= largest))


@dataclass(frozen=True, kw_only=True)
class Band(Sparsified):
    """What both methods share: in each tensor drop the `gamma` n largest, then the smallest.

    Attributes:
        density: Fraction of elements kept, at least one (`compat: mergekit`: rounded down).
        gamma: Fraction of the largest elements dropped, rounded down; 0 drops none. Fewer are
            dropped where `density` leaves no room: `density` 1 keeps everything.
    """

    density: Annotated[float, Gene(0.05, 1.0, minimum=0.0, maximum=1.0)] = 0.9
    gamma: Annotated[float, Gene(0.0, 0.05, minimum=0.0, maximum=1.0)] = 0.01

    def sparsified(self, tensors: TensorInputs, expert: int) -> Tensor:
        """Return one float32 task vector with only its band."""
        delta = tensors.deltas[expert]
        n = delta.numel()
        n_wanted = int(self.density * n) if self.compat == "mergekit" else n_kept(self.density, n)
        return keep_band(delta, n_wanted, int(self.gamma * n))


@merge_operator("breadcrumbs")
@dataclass(frozen=True, kw_only=True)
class Breadcrumbs(Band, AddSparsified):
    """theta_0 + lambda_ * sum_k w_k d_k, d_k the band of the task vector, tensor by tensor.

    Source: Davari and Belilovsky 2023, arXiv:2312.06795.
    Differs from the paper: norms and biases are added whole (`vectors: include` masks them);
    `gamma` counts the elements dropped at the top, as in mergekit, `density` those kept.
    Differs from mergekit: `compat: paper` keeps at least one element; ties are kept; a `gamma`
    of no whole element drops none (some versions of mergekit then drop everything).
    """

    name: ClassVar[str] = "breadcrumbs"


@merge_operator("breadcrumbs_ties")
@dataclass(frozen=True, kw_only=True)
class BreadcrumbsTies(Band, VoteSparsified):
    """The band, then TIES's vote: theta_0 + lambda_ * sum_{k in A} w_k d_k / divisor.

    Source: Davari and Belilovsky 2023, arXiv:2312.06795; Yadav et al. 2023, arXiv:2306.01708;
    their union is mergekit's.
    Differs from them as `breadcrumbs` does; the vote is unweighted for `compat: paper`.
    """
