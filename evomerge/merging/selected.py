"""Passes over task vectors whose elements are selected by their variance over the experts.

Experts are taken in the order of their files' digests, so that a permutation changes no bit.

Shape letters: E experts, n elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.expert_arrays import expert_arrays
from evomerge.merging.fused import addresses
from evomerge.merging.passes import add_in_passes
from evomerge.merging.philox import RUN
from evomerge.merging.sums import square_sum
from evomerge.merging.threads import in_threads
from evomerge.merging.variances import variance_of

if TYPE_CHECKING:
    from evomerge.merging.operator import TensorInputs


def square_sums(tensors: TensorInputs, threshold: float) -> tuple[float, ...]:
    """Return (E,) float64 sums of squares of the selected elements of each task vector.

    Args:
        tensors: One tensor name, with a base.
        threshold: Variance from which on an element is selected.
    """
    order = tensors.canonical_order
    arrays = expert_arrays(tensors, order)
    if arrays is None:
        sums = [0.0] * len(order)
        for _, deltas in tensors.delta_slices(order):
            for k, values in zip(order, _select(deltas, threshold), strict=True):
                sums[k] += square_sum(values)
        return tuple(sums)
    from evomerge.merging.kernels import selected

    n_elements = tensors.experts[0].numel()
    share = np.float32(1.0 / len(order))
    least = np.float32(threshold)
    found = np.empty((-(-n_elements // RUN), len(order)))

    def part(start: int, stop: int) -> bool:
        runs = found[start // RUN : -(-stop // RUN)]
        kinds = arrays.base_like, arrays.like, arrays.are_deltas
        selected.selected_squares(runs, *arrays.at(start), stop - start, *kinds, share, least)
        return True

    in_threads(part, n_elements)
    by_position = {k: math.fsum(found[:, i].tolist()) for i, k in enumerate(order)}
    return tuple(by_position[k] for k in range(len(order)))


def merge_selected(
    tensors: TensorInputs, threshold: float, shares: Sequence[float], scale: float
) -> Tensor:
    """Return base + scale * sum_{k in A} a_k d_k / sum_{k in A} a_k over selected elements.

    A holds the experts whose element has the sign of sum_k d_k, + where that is zero; elements
    that are not selected are the base's.

    Args:
        tensors: One tensor name, with a base.
        threshold: Variance from which on an element is selected.
        shares: (E,) a_k.
        scale: Common factor.
    """
    order = tensors.canonical_order
    out = tensors.empty_result()
    arrays = expert_arrays(tensors, order)
    target = addresses((out,), 1)
    if arrays is None or target is None:
        return _torch(tensors, order, threshold, shares, scale, out)
    from evomerge.merging.kernels import selected

    (place,), out_like = target
    weights = tuple(np.float32(scale * shares[k]) for k in order)
    divisors = tuple(np.float32(shares[k]) for k in order)
    share, least = np.float32(1.0 / len(order)), np.float32(threshold)

    def part(start: int, stop: int) -> bool:
        finite: bool = selected.selected_sum(
            place + start * out_like.itemsize,
            *arrays.at(start),
            stop - start,
            out_like,
            arrays.base_like,
            arrays.like,
            arrays.are_deltas,
            share,
            least,
            weights,
            divisors,
        )
        return finite

    if in_threads(part, out.numel()):
        tensors.finite.add(out)
    return out


def _select(deltas: Sequence[Tensor], threshold: float) -> list[Tensor]:
    """Return (E,) flat float32 task vectors with what is not selected set to zero; in place."""
    mask = variance_of(deltas) >= threshold
    return [delta.mul_(mask) for delta in deltas]


def _torch(
    tensors: TensorInputs,
    order: Sequence[int],
    threshold: float,
    shares: Sequence[float],
    scale: float,
    out: Tensor,
) -> Tensor:
    def change(_at: slice, deltas: list[Tensor]) -> Tensor:
        parts = _select(deltas, threshold)
        elected = torch.zeros_like(parts[0])
        for part in parts:
            elected += part
        signs = (elected >= 0.0).float().mul_(2.0).sub_(1.0)
        total, below = torch.zeros_like(elected), torch.zeros_like(elected)
        for k, part in zip(order, parts, strict=True):
            agrees = part * signs > 0.0
            total.add_(part * agrees, alpha=scale * shares[k])
            below.add_(agrees, alpha=shares[k])
        return total.div_(below.add_(below == 0.0))

    return add_in_passes(tensors, change, order, out=out)
