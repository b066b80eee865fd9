"""Statistics of single tensors, found in a cache or computed into it.

Every kind says in `fill` which items it consists of, one at a time, so that filling a cache can
be watched, and stopped anywhere and continued.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from evomerge.core.model_space import ModelSpace
from evomerge.errors import ConfigError
from evomerge.merging.cache import CacheEntry, TensorCache
from evomerge.merging.flat_reader import FlatReader
from evomerge.merging.source import TensorSource, content_key


@dataclass(frozen=True)
class Filled:
    """One item of a kind that is there now.

    Attributes:
        item: Its name within the kind, for people.
        is_new: It was computed just now, not found.
        n_bytes: Size of its tensors.
    """

    item: str
    is_new: bool
    n_bytes: int


class Statistic(Protocol):
    """One kind of result that can be computed ahead of the merges that need it."""

    @property
    def kind(self) -> str:
        """Name in the cache."""
        ...

    def fill(self) -> Iterator[Filled]:
        """Find or compute every item; yield each when it is there."""
        ...


def exhaust(statistic: Statistic) -> None:
    """Fill a statistic to its end."""
    for _ in statistic.fill():
        pass


def remember(
    entry: CacheEntry | None, item: str, compute: Callable[[], Mapping[str, Tensor]]
) -> tuple[Mapping[str, Tensor], Filled]:
    """Return an item's tensors, from the cache if they are there, else computed and kept."""
    found: Mapping[str, Tensor] | None = None if entry is None else entry.read(item)
    is_new = found is None
    if found is None:
        found = compute()
        if entry is not None:
            entry.write(item, found)
            # The view of the file instead of memory of our own: processes share it.
            found = entry.read(item) or found
    return found, Filled(item, is_new, sum(tensor.nbytes for tensor in found.values()))


def layout_key(space: ModelSpace) -> str:
    """Return 32 hex digits over names, shapes and order of the merged tensors."""
    lines = (f"{tensor.spec.name} {list(tensor.spec.shape)}" for tensor in space.merged)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


def expert_entry(
    cache: TensorCache, kind: str, base: str, expert: str, parts: Mapping[str, object]
) -> CacheEntry:
    """Return the entry of a result that depends on one expert and the base only.

    Args:
        cache: Where it is kept.
        kind: What it is.
        base: `content_key` of the base.
        expert: `content_key` of the expert.
        parts: What else it depends on.
    """
    return cache.entry(kind, {"base": base, "expert": expert, **parts})


class TaskVectorStatistic:
    """One result per merged tensor and expert, computed from that tensor's task vector alone.

    Attributes:
        kind: Name in the cache.
    """

    def __init__(
        self,
        kind: str,
        version: int,
        compute: Callable[[Tensor], Mapping[str, Tensor]],
        space: ModelSpace,
        sources: Mapping[str, TensorSource],
        cache: TensorCache,
    ) -> None:
        """Say what is computed; nothing is read yet.

        Args:
            kind: Name in the cache.
            version: Raised whenever `compute` changes.
            compute: A float32 task vector in its tensor's shape -> tensors to keep.
            space: The aligned models; must have a base.
            sources: Every one of them by id.
            cache: Where results are kept.
        """
        if not space.has_base:
            raise ConfigError(f"{kind} are those of task vectors and need a base model")
        self.kind = kind
        self._compute = compute
        self._reader = FlatReader(space, sources)
        self._shapes = {tensor.spec.name: tensor.spec.shape for tensor in space.merged}
        self._index = {name: k for k, name in enumerate(space.sources) if k}
        base = content_key(sources[space.sources[0]])
        self._entries = {
            name: expert_entry(cache, kind, base, content_key(sources[name]), {"version": version})
            for name in self._index
        }
        self._known: dict[tuple[str, str], Mapping[str, Tensor]] = {}

    def of(self, source: str, name: str) -> Mapping[str, Tensor]:
        """Return the result for one expert's tensor."""
        if (source, name) not in self._known:
            self._find(source, name)
        return self._known[source, name]

    def peek(self, source: str, name: str) -> Mapping[str, Tensor] | None:
        """Return the result if it is in the cache, None otherwise; computes nothing."""
        if (source, name) not in self._known:
            found = self._entries[source].read(name)
            if found is None:
                return None
            self._known[source, name] = found
        return self._known[source, name]

    def fill(self) -> Iterator[Filled]:
        """Find or compute the result of every tensor of every expert."""
        for name in self._shapes:
            for source in self._index:
                yield self._find(source, name)

    def _find(self, source: str, name: str) -> Filled:
        found, filled = remember(
            self._entries[source], name, lambda: self._compute(self._task_vector(source, name))
        )
        self._known[source, name] = found
        return filled

    def _task_vector(self, source: str, name: str) -> Tensor:
        shape = self._shapes[name]
        delta = self._reader.difference(self._index[source], name, 0, math.prod(shape))
        return delta.reshape(shape)
