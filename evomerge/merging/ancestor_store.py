"""AncestorStore: ancestors' tensors that were computed once, in memory and in a cache on disk.

Noise is kept as well, where a tensor is small. Whatever a store has forgotten is computed again,
with the same bits. It serves one set of models.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor

from evomerge.errors import ConfigError, PreflightError
from evomerge.merging.cache import CacheEntry, TensorCache

KIND = "ancestors"
MAX_BYTES = 1 << 30  # of the tensors at hand; a view of the cache's file counts as well
LEAST_BYTES = 1 << 20  # a smaller tensor is computed sooner than it is on the disk
MAX_ENTRIES = 256  # ancestors of one process on disk; those not used for longest are removed


class AncestorStore:
    """Tensors by ancestor (its content digest) and name, the latest used of them.

    Attributes:
        least_bytes: Size from which on a tensor is large.
        digests: Digests of the sources' content, by id; made by who reads them.
    """

    def __init__(
        self,
        cache: TensorCache | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        least_bytes: int = LEAST_BYTES,
        max_entries: int = MAX_ENTRIES,
    ) -> None:
        """Start with none in memory.

        Args:
            cache: Where large tensors are kept; None: nowhere.
            max_bytes: Of the tensors at hand.
            least_bytes: Size from which on a tensor is large.
            max_entries: Ancestors in the cache that this store reads or wrote.
        """
        self._cache = cache
        self._max_bytes = max_bytes
        self.least_bytes = least_bytes
        self._max_entries = max_entries
        self._at_hand: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
        self._n_bytes = 0
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._is_writable = True
        self.digests: dict[str, str] = {}

    def find(self, digest: str, name: str, n_bytes: int) -> Tensor | None:
        """Return a tensor of `n_bytes` if it is kept, None otherwise; do not write to it."""
        tensor = self._at_hand.get((digest, name))
        if tensor is not None:
            self._at_hand.move_to_end((digest, name))
            return tensor
        if self._cache is None or n_bytes < self.least_bytes:
            return None
        kept = self._entry(self._cache, digest).read(name)
        return None if kept is None else self._take(digest, name, kept[KIND])

    def keep(self, digest: str, name: str, tensor: Tensor) -> Tensor:
        """Keep a tensor; return it, or the same as a view of the cache's file."""
        if self._cache is not None and self._is_writable and tensor.nbytes >= self.least_bytes:
            entry = self._entry(self._cache, digest)
            try:
                entry.write(name, {KIND: tensor})
            except (ConfigError, PreflightError):  # no room: memory has to do from now on
                self._is_writable = False
            else:
                kept = entry.read(name)
                tensor = tensor if kept is None else kept[KIND]
        return self._take(digest, name, tensor)

    def _take(self, digest: str, name: str, tensor: Tensor) -> Tensor:
        before = self._at_hand.pop((digest, name), None)
        self._n_bytes += tensor.nbytes - (0 if before is None else before.nbytes)
        self._at_hand[digest, name] = tensor
        while self._n_bytes > self._max_bytes:
            self._n_bytes -= self._at_hand.popitem(last=False)[1].nbytes
        return tensor

    def _entry(self, cache: TensorCache, digest: str) -> CacheEntry:
        if digest not in self._entries:
            self._entries[digest] = cache.entry(KIND, {"digest": digest})
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)[1].remove()
        self._entries.move_to_end(digest)
        return self._entries[digest]
