"""The shape of a tensor source, for the wrappers in this package."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from evomerge.core.model_space import SourceHeader


class SourceLike(Protocol):
    """What is used of a `TensorSource`; storage does not import merging."""

    id: str

    @property
    def digest(self) -> str:
        """See `TensorSource`."""
        ...

    def header(self) -> SourceHeader:
        """See `TensorSource`."""
        ...

    def read(self, name: str) -> Tensor:
        """See `TensorSource`."""
        ...

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """See `TensorSource`."""
        ...

    def exact_delta(self, name: str) -> Tensor | None:
        """See `TensorSource`."""
        ...

    def factors(self, name: str) -> tuple[Tensor, Tensor, bool] | None:
        """Return A (r, n), B (m, r) with the scale and whether B @ A is transposed, or None."""
        ...
