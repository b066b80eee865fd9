"""DELLA: drop elements at random, small ones more often than large ones; add the rest, or vote.

Masks are counter-based as DARE's: keyed by the expert's digest, and nested in the density.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from torch import Tensor

from evomerge.core.genes import Gene
from evomerge.merging.apart import empty_apart
from evomerge.merging.kept import Keep, Rescale, rescaled
from evomerge.merging.operator import TensorInputs, merge_operator
from evomerge.merging.passes import row_blocks
from evomerge.merging.rank_codes import codes_dtype, last_code, row_length, write_rank_codes
from evomerge.merging.sparsified import AddSparsified, Sparsified, VoteSparsified

# Of the largest spread that density allows: probabilities stay above a tenth of the density, so
# that 1 / probability does not explode.
_WIDEST = 0.9


def _codes(tensors: TensorInputs, expert: int) -> Tensor:
    """Return (n,) each element's rank code, prepared or sorted out now."""
    codes = tensors.rank_codes(expert)
    if codes is not None:
        return codes.reshape(-1)
    source = tensors.experts[expert]
    codes = empty_apart((source.numel(),), codes_dtype(source), source.device)
    for part, target in row_blocks(tensors, codes, row_length(tuple(source.shape))):
        write_rank_codes((delta for _, (delta,) in part.delta_slices([expert])), target)
    return codes


@dataclass(frozen=True, kw_only=True)
class RankedDrop(Sparsified):
    """What both DELLA methods share: their parameters, and dropping.

    An element of rank r in its row (0 smallest, 1 largest magnitude; see `rank_codes`) is kept
    with probability pi = density - epsilon + 2 epsilon r, and multiplied by 1 / pi; the only one
    of a row with the density. `epsilon` counts as at most 0.9 min(density, 1 - density), so that
    every pi is a probability and none is nearly zero.

    Attributes:
        density: Mean probability with which an element is kept.
        epsilon: Half the spread of the probabilities.
        rescale: "inverse" multiplies by 1 / pi, "l1" by one factor that restores the sum of
            magnitudes, "none" by nothing; "auto" is "inverse" for `compat: paper`, "l1" for
            `compat: mergekit`.
        seed: Seed of the masks; a fixed seed keeps a search landscape smooth.
    """

    needs_ranks: ClassVar[bool] = True

    density: Annotated[float, Gene(0.1, 0.9, minimum=0.0, maximum=1.0)] = 0.5
    lambda_: Annotated[float, Gene(0.5, 1.5)] = 1.0
    epsilon: Annotated[float, Gene(0.0, 0.3, minimum=0.0, maximum=0.5)] = 0.15
    rescale: Literal["auto", "inverse", "l1", "none"] = "auto"
    seed: int = 0

    @property
    def resolved_rescale(self) -> Rescale:
        """The rescaling with "auto" resolved."""
        if self.rescale != "auto":
            return self.rescale
        return "inverse" if self.compat == "paper" else "l1"

    def keep(self, tensors: TensorInputs, expert: int) -> Keep:
        """Return the random mask by rank, and what makes up for the dropped elements."""
        keep = Keep(
            key=tensors.mask_key(expert, self.seed),
            density=self.density,
            inverts=self.resolved_rescale == "inverse",
        )
        epsilon = min(self.epsilon, _WIDEST * min(self.density, 1.0 - self.density))
        last = last_code(row_length(tuple(tensors.experts[expert].shape)))
        if epsilon > 0.0 and last > 0:
            codes = _codes(tensors, expert)
            keep = replace(keep, places=codes, last_place=last, spread=2.0 * epsilon)
        if keep.places is not None and keep.inverts:
            return keep
        return rescaled(keep, tensors, expert, self.resolved_rescale)


@merge_operator("della_linear")
@dataclass(frozen=True, kw_only=True)
class DellaLinear(RankedDrop, AddSparsified):
    """theta_0 + lambda_ * sum_k w_k d_k, d_k the dropped and rescaled task vector.

    Source: Deep et al. 2024, arXiv:2406.11617, without its vote (mergekit's `della_linear`).
    Differs from the paper as `della` does.
    """

    name: ClassVar[str] = "della_linear"


@merge_operator("della")
@dataclass(frozen=True, kw_only=True)
class Della(RankedDrop, VoteSparsified):
    """DELLA's dropping, then a vote: theta_0 + lambda_ * sum_{k in A} w_k d_k / divisor.

    A holds the experts whose remaining element has the elected sign, that of sum_k d_k
    (`compat: mergekit`: of sum_k w_k d_k), + where it is zero.

    Attributes:
        divisor: As in `ties`; "auto" is "mean" for `compat: paper`,
            "signed_weights" for `compat: mergekit`.

    Source: Deep et al. 2024, arXiv:2406.11617.
    Differs from the paper: norms and biases are combined whole, without a vote; `epsilon` is
    half the spread, as in mergekit; it is cut where it would leave the interval of probabilities.
    Differs from mergekit: seeded masks; `epsilon` is cut where mergekit stops with an error; the
    rows of convolutions hold all their input channels and taps.
    """

    divisor: Literal["auto", "mean", "weights", "signed_weights", "none"] = "auto"
