"""TensorCache: where results that depend only on a set of sources are kept between runs.

Implemented by `storage.derived_cache`; merging reads and writes it through these protocols.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class CacheEntry(Protocol):
    """Everything kept under one key: one kind of result of one set of sources."""

    def read(self, item: str) -> dict[str, Tensor] | None:
        """Return the tensors written for `item`, None when there are none or they are damaged.

        They are CPU views of a file that processes share; callers never write to them.
        """
        ...

    def write(self, item: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep CPU tensors for `item`; a reader sees all of them or none."""
        ...

    def close(self) -> None:
        """Let others remove the entry from now on, until it is read or written again."""
        ...

    def remove(self) -> bool:
        """Remove the entry unless others use it; return whether it is gone. Views of it stay."""
        ...


class TensorCache(Protocol):
    """A store of results, each under the description of what it was computed from."""

    def entry(self, kind: str, parts: Mapping[str, object]) -> CacheEntry:
        """Return the entry of `kind` for these parts.

        Args:
            kind: What is kept, such as "quantiles".
            parts: All that the result depends on, JSON-ready: digests of sources, parameters
                and a version to raise whenever the computation changes.
        """
        ...

    def free_bytes(self) -> int:
        """Return how much can still be written, whatever it is of."""
        ...
