"""Model Breadcrumbs: of each task vector keep neither the largest nor the smallest elements."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from evomerge.core.genes import Gene
from evomerge.merging.kept import Keep
from evomerge.merging.operator import TensorInputs, merge_operator
from evomerge.merging.quantiles import n_kept
from evomerge.merging.sparsified import AddSparsified, Sparsified, VoteSparsified


def band(tensors: TensorInputs, expert: int, n_wanted: int, n_top: int, exact: bool) -> Keep:
    """Return what keeps only `n_wanted` elements of a task vector, those below the `n_top` largest.

    When there are fewer than that below, fewer large ones are dropped. Elements that tie with an
    end of the band are kept.

    Args:
        tensors: The tensor in every source.
        expert: Whose task vector.
        n_wanted: Elements to keep.
        n_top: Largest elements to drop.
        exact: Keep just as many, not the nearest numbers that quantile tables hold.
    """
    if n_wanted < 1:
        return Keep(low=math.inf)
    n_top = min(n_top, tensors.experts[expert].numel() - n_wanted)
    return Keep(
        low=tensors.kept_threshold(expert, n_top + n_wanted, exact=exact),
        high=tensors.kept_threshold(expert, n_top + 1, exact=exact) if n_top else math.inf,
    )


@dataclass(frozen=True, kw_only=True)
class Band(Sparsified):
    """What both methods share: in each tensor drop the `gamma` n largest, then the smallest.

    Attributes:
        density: Fraction of elements kept, at least one (`compat: mergekit`: rounded down).
        gamma: Fraction of the largest elements dropped, rounded down; 0 drops none. Fewer are
            dropped where `density` leaves no room: `density` 1 keeps everything.
    """

    needs_thresholds: ClassVar[bool] = True

    density: Annotated[float, Gene(0.05, 1.0, minimum=0.0, maximum=1.0)] = 0.9
    gamma: Annotated[float, Gene(0.0, 0.05, minimum=0.0, maximum=1.0)] = 0.01

    def keep(self, tensors: TensorInputs, expert: int) -> Keep:
        """Return the band of one task vector."""
        n = tensors.experts[expert].numel()
        exact = self.compat == "mergekit"
        n_wanted = int(self.density * n) if exact else n_kept(self.density, n)
        return band(tensors, expert, n_wanted, int(self.gamma * n), exact=exact)


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
