"""TensorSource: what merging needs of a model on disk. Implemented in `storage`."""

from __future__ import annotations

import hashlib
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


def content_key(source: TensorSource) -> str:
    """Return 32 hex digits over all that a source's tensors depend on, names included.

    Unlike `digest` it differs between one model read under two sets of names.
    """
    digests = sorted(source.header().digests.items())
    text = "\n".join((source.digest, *(f"{name}={digest}" for name, digest in digests)))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
