"""TensorSource: what merging needs of a model on disk. Implemented in `storage`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from evomerge.core.model_space import SourceHeader


class TensorSource(Protocol):
    """One model, read lazily. Tensors are CPU views; callers never write to them."""

    id: str

    @property
    def digest(self) -> str:
        """Content digest of the whole source; keys masks, caches and sources.json."""
        ...

    def header(self) -> SourceHeader:
        """Return names, shapes, dtypes, per-tensor digests and tying."""
        ...

    def read(self, name: str) -> Tensor:
        """Return one tensor in its stored dtype; a tied name reads the tensor it shares."""
        ...

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,)."""
        ...

    def exact_delta(self, name: str) -> Tensor | None:
        """Return the float32 task vector when it is known exactly (a LoRA product), else None."""
        ...
