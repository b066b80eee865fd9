"""DARE: drop random elements of the task vectors and rescale the rest; add them, or vote.

Masks are counter-based, keyed by (seed, expert's digest, tensor name, element): the same for
every candidate of a search, independent of the order of the experts, and nested in the density.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from evomerge.merging.kept import Keep, Rescale, inverse_factor, rescaled
from evomerge.merging.operator import TensorInputs, merge_operator
from evomerge.merging.sparsified import AddSparsified, Sparsified, VoteSparsified


@dataclass(frozen=True, kw_only=True)
class DropAndRescale(Sparsified):
    """What both DARE methods share: their parameters, and dropping.

    `density` is the probability with which an element is kept, 1 - p, rounded to 2**-16.
    `compat: paper` rescales by 1 / density and leaves norms and biases whole; "mergekit" matches
    the L1 norm and drops everywhere.

    Attributes:
        rescale: "inverse", "l1" or "none"; "auto" takes it from `compat`.
        seed: Seed of the masks; a fixed seed keeps a search landscape smooth.
    """

    rescale: Literal["auto", "inverse", "l1", "none"] = "auto"
    seed: int = 0

    @property
    def resolved_rescale(self) -> Rescale:
        """The rescaling with "auto" resolved."""
        if self.rescale != "auto":
            return self.rescale
        return "inverse" if self.compat == "paper" else "l1"

    def keep(self, tensors: TensorInputs, expert: int) -> Keep:
        """Return the random mask, and what makes up for the dropped elements."""
        rescale = self.resolved_rescale
        factor = inverse_factor(self.density) if rescale == "inverse" else 1.0
        keep = Keep(key=tensors.mask_key(expert, self.seed), density=self.density, factor=factor)
        return rescaled(keep, tensors, expert, rescale) if rescale == "l1" else keep


@merge_operator("dare_linear")
@dataclass(frozen=True, kw_only=True)
class DareLinear(DropAndRescale, AddSparsified):
    """theta_0 + lambda_ * sum_k w_k d_k, d_k the dropped and rescaled task vector.

    Source: Yu et al. 2024, arXiv:2311.03099.
    Differs from the paper: norms and biases are not dropped from (`vectors: include` does).
    Differs from mergekit: seeded masks.
    """

    name: ClassVar[str] = "dare_linear"


@merge_operator("dare_ties")
@dataclass(frozen=True, kw_only=True)
class DareTies(DropAndRescale, VoteSparsified):
    """DARE's dropping, then TIES's vote: theta_0 + lambda_ * sum_{k in A} w_k d_k / divisor.

    Source: Yu et al. 2024, arXiv:2311.03099; Yadav et al. 2023, arXiv:2306.01708.
    Differs from the papers' code: no magnitude trim after dropping, and no division by default.
    Differs from mergekit: seeded masks.
    """
