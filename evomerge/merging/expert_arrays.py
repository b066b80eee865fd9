"""What a compiled kernel over task vectors reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from evomerge.merging.fused import Array, addresses

if TYPE_CHECKING:
    from evomerge.merging.operator import TensorInputs


@dataclass(frozen=True, eq=False)
class ExpertArrays:
    """Where a kernel finds the base and the experts.

    Attributes:
        base: Address of the base.
        experts: (E,) addresses.
        base_like: Any array of the base's dtype.
        like: Any array of the experts' dtype.
        are_deltas: Whether the experts are task vectors.
    """

    base: int
    experts: tuple[int, ...]
    base_like: Array
    like: Array
    are_deltas: bool

    def at(self, start: int) -> tuple[int, tuple[int, ...]]:
        """Return the addresses of element `start` of the base, and of the experts."""
        skipped = start * self.like.itemsize
        experts = tuple([expert + skipped for expert in self.experts])
        return self.base + start * self.base_like.itemsize, experts


def expert_arrays(tensors: TensorInputs, order: Sequence[int]) -> ExpertArrays | None:
    """Return the base and the experts in `order`; None: torch has to do it.

    Torch has to where a kernel takes no such tensor, and where the task vectors of some experts
    are known exactly and those of others are differences.
    """
    known = tensors.known_deltas
    if tensors.base is None or (known is None and any(d is not None for d in tensors.exact_deltas)):
        return None
    sources = known or tensors.experts
    base = addresses([tensors.base], tensors.least_compiled)
    experts = addresses([sources[k] for k in order], tensors.least_compiled)
    if base is None or experts is None:
        return None
    return ExpertArrays(base[0][0], experts[0], base[1], experts[1], known is not None)
