"""DeltaTransform: a merge method that is computed once and then searched over as a new parent.

Methods built on singular values, eigenvectors or sorting are far too slow to run for every
candidate. Their result, though, is linear in the parameters worth searching: each transforms the
experts' task vectors once, and merging sums what it returned. So a transform registered with
`@delta_transform("name")` makes *virtual sources*, models that exist only as cached task vectors
over the base, and any merge method mixes them with each other and with the real experts.

Shape letters: E experts, V virtual sources, m rows (outputs) and n columns (inputs) of a matrix.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.tensor_names import place
from evomerge.merging.low_rank import LowRank
from evomerge.registry import Registry

delta_transforms = Registry("delta transform", "evomerge.delta_transforms")
delta_transform = delta_transforms.register

# "experts": one virtual source per expert, which keeps its name behind the transform's; their
# plain sum is the method's merge. "merged": a single one that is the method's merge.
Outputs = Literal["experts", "merged"]


@dataclass(frozen=True, eq=False)
class DeltaInputs:
    """One tensor of every expert, as a task vector.

    Fused projections (query-key-value, gate-up) come as their logical blocks and stacks of
    experts one by one, so a matrix here is always one (m, n) linear map, outputs first.

    Attributes:
        name: Tensor name as in the base's files; parts of one tensor share it.
        base: The base's tensor, float32.
        deltas: (E,) task vectors, float32, the shape of `base`.
        n_layers: Layers of the model; 0 when not known.
        factors: (E,) the task vectors as low-rank products where they are known, else None; ()
            when none is.
    """

    name: str
    base: Tensor
    deltas: tuple[Tensor, ...]
    n_layers: int = 0
    factors: tuple[LowRank | None, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.base.shape)


class DeltaTransform(Protocol):
    """A transform with its parameters, the same for the whole model.

    Class attributes:
        outputs: See `Outputs`.
        extra_outputs: Names of further virtual sources, after those; part of the merge, too.
        version: Raise it when the numbers change: it is part of the cache's key.
        is_ordered: The order of the experts matters.
        needs_survey: `survey` is called first.
    """

    outputs: ClassVar[Outputs]
    extra_outputs: ClassVar[tuple[str, ...]]
    version: ClassVar[int]
    is_ordered: ClassVar[bool]
    needs_survey: ClassVar[bool]

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Return how such a tensor is handled instead of transformed, or None."""
        ...

    def survey(self, tensors: Iterable[DeltaInputs]) -> FloatArray:
        """Return what `transform` must know of the whole model, after one pass over it."""
        ...

    def transform(self, tensors: DeltaInputs, survey: FloatArray | None) -> tuple[Tensor, ...]:
        """Return (V,) float32 task vectors of the shape of `tensors.base`.

        Called for every tensor, also for those `fallback` names.
        """
        ...


class TransformDefaults:
    """Class attributes and fallback of an ordinary transform; override what differs."""

    outputs: ClassVar[Outputs] = "merged"
    extra_outputs: ClassVar[tuple[str, ...]] = ()
    version: ClassVar[int] = 1
    is_ordered: ClassVar[bool] = False
    needs_survey: ClassVar[bool] = False

    def fallback(self, name: str, shape: tuple[int, ...]) -> str | None:
        """Leave out what is no linear map inside a layer (operators.md, section 3)."""
        return not_a_linear_map(name, shape)

    def survey(self, tensors: Iterable[DeltaInputs]) -> FloatArray:
        """Refuse: only called when `needs_survey` is set."""
        raise NotImplementedError(type(self).__name__)


Transform = TypeVar("Transform", bound=type[Any])


def not_a_linear_map(name: str, shape: tuple[int, ...]) -> str | None:
    """Return why spectral methods skip this tensor, or None for a matrix they apply to."""
    if len(shape) < 2:
        return "at most one axis, mean of the task vectors"
    kind = place(name).kind
    if kind in ("embed", "head", "router"):
        return f"{kind}, mean of the task vectors"
    return None


def mean_parts(deltas: tuple[Tensor, ...], outputs: Outputs) -> tuple[Tensor, ...]:
    """Return the mean of the task vectors, or the (E,) parts whose sum it is."""
    n = len(deltas)
    if outputs == "experts":
        return tuple(delta / n for delta in deltas)
    return (torch.stack(deltas).mean(0),)
