"""Merging a tensor a stretch at a time: of a large one, a single float32 copy is gigabytes.

Shape letters: E experts, n elements of a stretch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from evomerge.merging.fused import pass_size, write_rounded

if TYPE_CHECKING:
    from evomerge.merging.operator import TensorInputs


def write_in_passes(
    tensors: TensorInputs,
    merge: Callable[[slice, list[Tensor]], Tensor],
    order: Sequence[int] | None = None,
    *,
    run: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Return an element-wise merge, rounded once to the output dtype.

    Args:
        tensors: One tensor name, with a base.
        merge: The stretch, and its (n,) float32 task vectors, which may be written to -> (n,)
            float32.
        order: Experts whose task vectors are wanted; all by default.
        run: Stretches are whole numbers of so many elements, but for the last.
        out: Where the result is written, contiguous; `empty_result()` by default.
    """
    if out is None:
        out = tensors.empty_result()
    target = out.view(-1)
    wanted = range(len(tensors.experts)) if order is None else order
    for at, deltas in tensors.delta_slices(wanted, run=run):
        write_rounded(target[at], merge(at, deltas))
    return out


def add_in_passes(
    tensors: TensorInputs,
    change: Callable[[slice, list[Tensor]], Tensor],
    order: Sequence[int] | None = None,
    *,
    run: int = 1,
    out: Tensor | None = None,
) -> Tensor:
    """Return the base plus `change`, rounded once; see `write_in_passes`.

    Args:
        tensors: One tensor name, with a base.
        change: As `merge` there; its result is written to.
        order: Experts whose task vectors are wanted; all by default.
        run: Stretches are whole numbers of so many elements, but for the last.
        out: Where the result is written, contiguous; `empty_result()` by default.
    """
    assert tensors.base is not None
    base = tensors.base.reshape(-1)

    def merge(at: slice, deltas: list[Tensor]) -> Tensor:
        return change(at, deltas).add_(base[at].float())

    return write_in_passes(tensors, merge, order, run=run, out=out)


def blocks(
    tensors: TensorInputs, out: Tensor, *, axis: int
) -> Iterator[tuple[TensorInputs, Tensor]]:
    """Yield the tensor in blocks along an axis, and where each block's result is to be written.

    Args:
        tensors: One tensor name.
        out: The result, of at least one axis.
        axis: The axis along which it is cut; whatever runs along the others stays whole.
    """
    n = out.shape[axis]
    step = max(pass_size(out) * n // max(math.prod(out.shape), 1), 1)
    for start in range(0, n, step):
        length = min(step, n - start)
        yield tensors.narrowed(axis, start, length), out.narrow(axis, start, length)
