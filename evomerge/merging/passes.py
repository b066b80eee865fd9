"""Merging a tensor a stretch at a time: of a large one, a single float32 copy is gigabytes.

Shape letters: E experts, n elements of a stretch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evomerge.errors import ConfigError
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

    Raises:
        ConfigError: There is no base.
    """
    if tensors.base is None:
        raise ConfigError(f"{tensors.name}: task vectors need a base model")
    base = tensors.base.reshape(-1)

    def merge(at: slice, deltas: list[Tensor]) -> Tensor:
        return change(at, deltas).add_(base[at].float())

    return write_in_passes(tensors, merge, order, run=run, out=out)


def blocks(
    tensors: TensorInputs, out: Tensor, *, axis: int, run: int = 1
) -> Iterator[tuple[TensorInputs, Tensor]]:
    """Yield the tensor in blocks along an axis, and where each block's result is to be written.

    Args:
        tensors: One tensor name.
        out: The result, of at least one axis.
        axis: The axis along which it is cut; whatever runs along the others stays whole.
        run: Blocks are whole numbers of so many indices, but for the last.
    """
    n = out.shape[axis]
    step = max(pass_size(out) * n // max(out.numel(), 1) // run, 1) * run
    for start in range(0, n, step):
        length = min(step, n - start)
        part = tensors.seen_as(partial(torch.narrow, dim=axis, start=start, length=length))
        yield part, out.narrow(axis, start, length)


def row_blocks(
    tensors: TensorInputs, out: Tensor, length: int
) -> Iterator[tuple[TensorInputs, Tensor]]:
    """Yield the tensor as matrices of whole rows, and where each one's result is to be written.

    A row may be larger than a pass: the largest are to be read in pieces, by `blocks` along axis 1
    or `delta_slices`.

    Args:
        tensors: One tensor name.
        out: The result, contiguous.
        length: Elements of a row.
    """
    shape = (out.numel() // max(length, 1), length)
    matrices = tensors.seen_as(lambda tensor: tensor.reshape(shape))
    yield from blocks(matrices, out.view(shape), axis=0)
