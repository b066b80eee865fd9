"""Merging task vectors of which only some elements are kept, in one pass over the sources.

TIES, DARE, Model Breadcrumbs and Localize-and-Stitch differ only in which elements of a task vector
stay (`Keep`) and how those that stay are combined (a vote, a divisor).

Shape letters: E experts, n elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.expert_arrays import expert_arrays
from evomerge.merging.fused import addresses
from evomerge.merging.passes import add_in_passes
from evomerge.merging.philox import key_words, random_halves
from evomerge.merging.sums import ROW, absolute_rows
from evomerge.merging.threads import in_threads

if TYPE_CHECKING:
    from evomerge.merging.operator import TensorInputs

Vote = Literal["weighted", "unweighted"]
Passes = Literal["weighted", "unweighted", "touched"]
Divisor = Literal["mean", "weights", "signed_weights", "none"]
Rescale = Literal["inverse", "l1", "none"]


@lru_cache(maxsize=256)
def drawn_below(density: float) -> int:
    """Return what the 16-bit random number of an element that stays is below."""
    return min(max(math.ceil(density * 65536 - 0.5), 0), 65536)


def inverse_factor(density: float) -> float:
    """Return what makes up for dropping at random: 1 / density as it is drawn, to 2**-16.

    With it the mean over masks is exactly the task vector. 1 where nothing is kept.
    """
    return 65536 / (drawn_below(density) or 65536)


@dataclass(frozen=True)
class Keep:
    """Which elements of one task vector stay, and what those are multiplied by.

    Attributes:
        low: Smallest magnitude that stays.
        high: Largest magnitude that stays.
        key: Random stream; an element stays where its number is below `density`. None: no dice.
        density: Probability of staying; the masks of two densities nest.
        factor: What stays is multiplied by this, which is positive.
        places: (n,) each element's place in an order from 0 to `last_place`, uint16 or, on a GPU,
            int32; its probability of staying is then `density` + `spread` (place / `last_place`
            - 1/2), and None makes it `density` for all.
        last_place: See `places`.
        spread: See `places`.
        inverts: What stays is divided by the probability it had of staying.
    """

    low: float = 0.0
    high: float = math.inf
    key: int | None = None
    density: float = 1.0
    factor: float = 1.0
    places: Tensor | None = None
    last_place: int = 1
    spread: float = 0.0
    inverts: bool = False

    @property
    def below(self) -> int:
        """What the 16-bit random number of an element that stays is below; 65536 without key."""
        if self.key is None:
            return 65536
        return drawn_below(self.density)

    @property
    def is_empty(self) -> bool:
        """Whether no random number is low enough; with `places`, the density is only a mean."""
        return self.places is None and not self.below

    def apply(self, delta: Tensor, start: int = 0) -> Tensor:
        """Return elements [start, start + n) of a flat float32 task vector with the rest zero.

        `factor` is left to the weights of the sum.
        """
        magnitude = delta.abs()
        keep = (magnitude >= self.low) & (magnitude <= self.high)
        chance = None
        if self.key is not None:
            drawn = random_halves(self.key, delta.numel(), start=start, device=delta.device)
            if self.places is None:
                keep &= drawn < self.below
            else:
                chance = self._chances(start, delta.numel()).to(delta.device)
                keep &= drawn.float().add_(0.5).mul_(2.0**-16) < chance
        # A product, six times faster on a CPU than `torch.where` with a number.
        kept = delta * keep
        if self.inverts and chance is not None:
            kept.div_(chance.masked_fill_(~keep, 1.0))
        return kept

    @property
    def chances(self) -> tuple[np.float32, np.float32]:
        """An element's probability of staying: the first number + the second times its place."""
        lowest = self.density - self.spread / 2
        return np.float32(lowest), np.float32(self.spread / self.last_place)

    def _chances(self, start: int, n: int) -> Tensor:
        assert self.places is not None
        lowest, step = map(float, self.chances)
        return self.places[start : start + n].float().mul_(step).add_(lowest)


def rescaled(keep: Keep, tensors: TensorInputs, expert: int, rescale: Rescale) -> Keep:
    """Return `keep` with the factor that makes up for what is dropped from a task vector.

    Args:
        keep: What stays, with factor 1.
        tensors: The tensor in every source.
        expert: Whose task vector.
        rescale: "inverse" divides by the density, "l1" restores the sum of magnitudes.
    """
    factor = 1.0
    if rescale == "inverse" and keep.key is not None:
        factor = inverse_factor(keep.density)
    elif rescale == "l1":
        whole, left = [], []
        for at, (delta,) in tensors.delta_slices([expert], run=ROW):
            whole += absolute_rows(delta)
            left += absolute_rows(keep.apply(delta, at.start))
        factor = math.fsum(whole) / math.fsum(left) if any(left) else 1.0
    return keep if factor == keep.factor else replace(keep, factor=factor)


@dataclass(frozen=True)
class _Pass:
    """The numbers of one pass; tuples are (E,), by the experts' positions.

    Attributes:
        order: Positions of the experts in the order they are summed.
        votes: Factor of each task vector in the vote.
        directions: -1 where a negative weight turns an expert's vote.
        weights: Factor of each task vector in the sum.
        shares: What each expert that agrees adds to the divisor.
        passes: How an element's sign is elected; see `merge_kept`.
        divides: Whether each element's sum is divided by the shares of those that agree.
        arguments: (4, E) what the kernels take, in `order`: votes, the bits that flip the sign of a
            task vector whose vote is turned, weights and shares.
    """

    order: tuple[int, ...]
    votes: tuple[float, ...]
    directions: tuple[float, ...]
    weights: tuple[float, ...]
    shares: tuple[float, ...]
    passes: Passes | None
    divides: bool
    arguments: tuple[tuple[np.number, ...], ...]


def merge_kept(
    tensors: TensorInputs,
    keeps: Sequence[Keep],
    weights: Sequence[float],
    *,
    vote: Passes | None,
    divisor: Divisor,
    scale: float = 1.0,
) -> Tensor:
    """Return base + scale * the weighted sum of the kept task vectors that agree.

    Experts are summed in the order of their files' digests, so that a permutation of the experts
    changes no bit, not even where a vote is close.

    Args:
        tensors: One tensor name, with a base.
        keeps: (E,) what stays of each task vector.
        weights: (E,) any sign; a negative weight turns its expert's vote in a weighted vote.
        vote: How an element's sign is elected, + where the votes cancel: "weighted" or
            "unweighted" sums; "touched" lets pass what is not zero, None everything.
        divisor: What each element's sum is divided by, over the experts that agree there:
            "mean" their number, "weights" the sum of their absolute weights, "signed_weights"
            the plain sum of their weights (explodes when weights cancel), "none" nothing.
        scale: Common factor.

    Returns:
        The merged tensor, in the output dtype.
    """
    factors = tuple([keep.factor for keep in keeps])
    order = tensors.canonical_order
    # Without -0.0, which is not told from 0.0 where results are remembered.
    positive_zeros = tuple([weight + 0.0 for weight in weights])
    numbers = pass_numbers(order, factors, positive_zeros, vote, divisor, scale)
    out = tensors.empty_result()
    if _compiled(tensors, keeps, numbers, out):
        return out
    return _torch(tensors, keeps, numbers, out)


def share(weight: float, divisor: Divisor) -> float:
    """Return what one agreeing expert adds to the divisor."""
    return {"mean": 1.0, "weights": abs(weight), "signed_weights": weight, "none": 0.0}[divisor]


@lru_cache(maxsize=256)
def pass_numbers(
    order: tuple[int, ...],
    factors: tuple[float, ...],
    weights: tuple[float, ...],
    vote: Passes | None,
    divisor: Divisor,
    scale: float,
) -> _Pass:
    """Return the numbers of `merge_kept`'s pass, often the same for all tensors of a candidate."""
    n = len(weights)
    is_weighted = vote == "weighted"
    shares = [
        0.0 if is_weighted and weight == 0.0 else share(weight, divisor) for weight in weights
    ]
    sums = [scale * weight for weight in weights]
    divides = divisor != "none"
    if vote is None and divides:
        below = math.fsum(shares)
        sums = [weight / below if below else weight for weight in sums]
        divides = False
    # Of the factors only the ratios count in a vote; equal ones leave ballots that cancel exactly.
    most = max(factors, default=1.0)
    unscaled = weights if is_weighted else (1.0,) * n
    votes = tuple([vote * (factor / most) for vote, factor in zip(unscaled, factors, strict=True)])
    directions = tuple([math.copysign(1.0, weight) if is_weighted else 1.0 for weight in weights])
    scaled = tuple([weight * factor for weight, factor in zip(sums, factors, strict=True)])
    arguments = (
        _in_order(votes, order),
        tuple([np.uint32((directions[k] < 0.0) << 31) for k in order]),
        _in_order(scaled, order),
        _in_order(shares, order),
    )
    return _Pass(order, votes, directions, scaled, tuple(shares), vote, divides, arguments)


def _in_order(values: Sequence[float], order: Sequence[int]) -> tuple[np.float32, ...]:
    return tuple([np.float32(values[k]) for k in order])


def _torch(tensors: TensorInputs, keeps: Sequence[Keep], numbers: _Pass, out: Tensor) -> Tensor:
    def change(at: slice, deltas: list[Tensor]) -> Tensor:
        parts = zip(numbers.order, deltas, strict=True)
        return _combine([keeps[k].apply(delta, at.start) for k, delta in parts], numbers)

    return add_in_passes(tensors, change, numbers.order, out=out)


def _combine(parts: Sequence[Tensor], numbers: _Pass) -> Tensor:
    """Return the sum of the (E,) flat parts that agree, divided where it is asked for."""
    signs = None
    if numbers.passes in ("weighted", "unweighted"):
        elected = torch.zeros_like(parts[0])
        for k, part in zip(numbers.order, parts, strict=True):
            elected.add_(part, alpha=numbers.votes[k])
        signs = (elected >= 0.0).float().mul_(2.0).sub_(1.0)
    total, below = torch.zeros_like(parts[0]), torch.zeros_like(parts[0])
    for k, part in zip(numbers.order, parts, strict=True):
        if numbers.passes is None:
            total.add_(part, alpha=numbers.weights[k])
            continue
        agrees = part != 0.0 if signs is None else part * (signs * numbers.directions[k]) > 0.0
        total.add_(part * agrees, alpha=numbers.weights[k])
        if numbers.divides:
            below.add_(agrees, alpha=numbers.shares[k])
    return total.div_(below.add_(below == 0.0)) if numbers.divides else total


def _compiled(tensors: TensorInputs, keeps: Sequence[Keep], numbers: _Pass, out: Tensor) -> bool:
    """Run the compiled kernel; return False when it cannot take these tensors."""
    arrays = expert_arrays(tensors, numbers.order)
    target = addresses((out,), 1)
    if arrays is None or target is None:
        return False
    (place,), out_like = target
    chosen = [keeps[k] for k in numbers.order]
    # A random number cannot be below 0, so a density of 0 is a magnitude out of reach.
    bounds = (
        tuple([np.float32(math.inf if keep.is_empty else keep.low) for keep in chosen]),
        tuple([np.float32(keep.high) for keep in chosen]),
    )
    switches: dict[str, Any] = {
        "has_low": any([keep.low > 0.0 or keep.is_empty for keep in chosen]),
        "has_high": any([keep.high < math.inf for keep in chosen]),
        "are_deltas": arrays.are_deltas,
        "vote": {None: "none", "touched": "touched"}.get(numbers.passes, "elect"),
        "turns": min(numbers.directions) < 0.0,
        "divides": numbers.divides,
    }
    found = _kernel(chosen, switches)
    if found is None:
        return False
    kernel, chances = found

    def part(start: int, stop: int) -> bool:
        finite: bool = kernel(
            place + start * out_like.itemsize,
            *arrays.at(start),
            stop - start,
            out_like,
            arrays.base_like,
            arrays.like,
            *bounds,
            *chances(start),
            *numbers.arguments,
        )
        return finite

    if in_threads(part, out.numel()):
        tensors.finite.add(out)
    return True


def _kernel(
    chosen: Sequence[Keep], switches: dict[str, Any]
) -> tuple[Callable[..., bool], Callable[[int], tuple[Any, ...]]] | None:
    """Return a kernel, and what it takes for random masks from a first element on.

    Args:
        chosen: (E,) in the order of the sum.
        switches: Those that both kernels have.

    Returns:
        None where torch has to do it.
    """
    is_ranked = any([keep.places is not None for keep in chosen])
    is_random = is_ranked or any([keep.key is not None for keep in chosen])
    places = (0,) * len(chosen)  # not looked at
    if is_ranked:
        codes = [keep.places for keep in chosen]
        if any(part is None or part.dtype != torch.uint16 for part in codes):
            return None  # not sorted on a CPU, or whole task vectors among the dropped
        places = tuple([part.data_ptr() for part in codes if part is not None])
    inverts = is_ranked and chosen[0].inverts
    switches = {**switches, "is_ranked": is_ranked, "inverts": inverts}
    last: tuple[np.number, ...] = tuple([np.uint16(max(keep.below, 1) - 1) for keep in chosen])
    if is_random and switches["vote"] != "elect":
        from evomerge.merging.kernels.dropped import dropped_sum

        del switches["turns"]  # nothing is elected
        kernel = dropped_sum(**switches)
    else:
        from evomerge.merging.kernels.kept import kept_sum

        kernel = kept_sum(is_random=is_random, **switches)
        last = tuple([np.uint32(int(number) << 16 | 0xFFFF) for number in last])
    keys = np.array([key_words(keep.key or 0) for keep in chosen], dtype=np.uint64)

    def chances(first: int) -> tuple[Any, ...]:
        at = tuple([place + 2 * first for place in places])
        return last, keys, at, chosen[0].chances, np.int64(first)

    return kernel, chances
