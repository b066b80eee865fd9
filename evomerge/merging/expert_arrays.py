"""Which arrays a compiled kernel over task vectors reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from evomerge.merging.fused import Array, kernel_arrays

if TYPE_CHECKING:
    from evomerge.merging.operator import TensorInputs


def expert_arrays(
    tensors: TensorInputs, order: Sequence[int]
) -> tuple[Array, tuple[Array, ...], bool] | None:
    """Return base, experts in `order`, whether these are task vectors; None: torch has to do it.

    Torch has to where a kernel takes no such tensor, and where the task vectors of some experts
    are known exactly and those of others are differences.
    """
    known = tensors.known_deltas
    if tensors.base is None or (known is None and any(d is not None for d in tensors.exact_deltas)):
        return None
    sources = known or tensors.experts
    base = kernel_arrays([tensors.base], tensors.least_compiled)
    arrays = kernel_arrays([sources[k] for k in order], tensors.least_compiled)
    return None if base is None or arrays is None else (base[0], arrays, known is not None)
