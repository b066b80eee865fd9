"""AncestorStore: ancestors' tensors that were computed once, in memory and in a cache on disk.

Whatever a store has forgotten is computed again, with the same bits; but what an ancestor is
computed from may be forgotten as well, back to the models, so a search should have room for the
ancestors that its population names: two or three per member. It serves one set of models.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from evomerge.errors import ConfigError, PreflightError
from evomerge.merging.cache import CacheEntry, TensorCache

KIND = "ancestors"
MAX_BYTES = 1 << 30  # of the tensors at hand; a view of the cache's file counts as well
NOISE_BYTES = 1 << 28  # of the small noise at hand
LEAST_BYTES = 1 << 20  # smaller tensors share files, and their noise is kept
LEAST_ON_DISK = 1 << 16  # what is smaller is computed sooner than it is on the disk
SHARE_OF_DISK = 0.2  # of what is free, for the ancestors of one process
MAX_ENTRIES = 1024  # ancestors of one process on disk; those not used for longest are removed
MAX_CLAIMS = 256  # of them, that no other process may remove; each is an open file


class TensorMemory:
    """Tensors by owner and name, the latest used of them."""

    def __init__(self, max_bytes: int) -> None:
        """Args: max_bytes: Of all tensors; more than that are not kept."""
        self._max_bytes = max_bytes
        self._n_bytes = 0
        self._held: OrderedDict[tuple[str, str], tuple[Tensor, ...]] = OrderedDict()

    def find(self, owner: str, name: str) -> tuple[Tensor, ...] | None:
        """Return what is kept under a name, None when there is nothing; do not write to it."""
        found = self._held.get((owner, name))
        if found is not None:
            self._held.move_to_end((owner, name))
        return found

    def keep(self, owner: str, name: str, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Keep tensors, in place of what was there; return them."""
        self.forget(owner, name)
        self._held[owner, name] = kept = tuple(tensors)
        self._n_bytes += _n_bytes(kept)
        while self._n_bytes > self._max_bytes:
            self._n_bytes -= _n_bytes(self._held.popitem(last=False)[1])
        return kept

    def forget(self, owner: str, name: str) -> None:
        """Keep nothing under a name."""
        self._n_bytes -= _n_bytes(self._held.pop((owner, name), ()))


@dataclass(eq=False)
class _OnDisk:
    """An ancestor in the cache: its entry, item -> bytes of what was read or written, by whom."""

    entry: CacheEntry
    items: dict[str, int] = field(default_factory=dict)
    is_ours: bool = False


class AncestorStore:
    """Tensors by ancestor (its content digest) and item: neighbouring tensors share one.

    Attributes:
        least_bytes: An item has as many, where a model has.
        noise: Noise of small tensors, as most of a candidate's is its parents' as well.
        digests: Digests of ancestors and sources by id; made by who reads them.
        models: Digests of the content of all models, which have to be known before anything is
            found or kept.
    """

    def __init__(
        self,
        cache: TensorCache | None = None,
        *,
        max_bytes: int = MAX_BYTES,
        least_bytes: int = LEAST_BYTES,
        least_on_disk: int = LEAST_ON_DISK,
        share_of_disk: float = SHARE_OF_DISK,
        max_entries: int = MAX_ENTRIES,
        max_claims: int = MAX_CLAIMS,
    ) -> None:
        """Start with none in memory.

        Args:
            cache: Where items are kept; None: nowhere.
            max_bytes: Of the tensors at hand.
            least_bytes: Of an item, where a model has as many.
            least_on_disk: Size from which on an item is in the cache.
            share_of_disk: Most of what is free that this store's ancestors take.
            max_entries: Ancestors in the cache that this store reads or wrote.
            max_claims: Of them, that no other process may remove.
        """
        self._cache = cache
        self._least_on_disk = least_on_disk
        self._share_of_disk = share_of_disk
        self._max_entries = max_entries
        self._max_claims = max_claims
        self._at_hand = TensorMemory(max_bytes)
        self._on_disk: OrderedDict[str, _OnDisk] = OrderedDict()  # that used last at the end
        self._claimed: OrderedDict[str, None] = OrderedDict()
        self._disk_bytes = 0
        self.least_bytes = least_bytes
        self.noise = TensorMemory(NOISE_BYTES)
        self.digests: dict[str, str] = {}
        self.models: tuple[str, ...] = ()

    def find(
        self, digest: str, item: str, shapes: Sequence[tuple[int, ...]]
    ) -> tuple[Tensor, ...] | None:
        """Return an item's tensors if they are kept, None otherwise; do not write to them.

        Args:
            digest: Of the ancestor.
            item: Its name.
            shapes: Of the tensors.
        """
        found = self._at_hand.find(digest, item)
        if found is not None:
            if digest in self._on_disk:
                self._on_disk.move_to_end(digest)
            return found
        n_bytes = 4 * sum(map(_n_elements, shapes))
        if self._cache is None or n_bytes < self._least_on_disk:
            return None
        entry = self._entry(self._cache, digest)
        found = _read(entry, item, shapes)
        if found is None:
            return None
        self._claim(digest, entry, item, n_bytes)
        return self._at_hand.keep(digest, item, found)

    def keep(self, digest: str, item: str, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Keep an item; return its tensors, or the same as views of the cache's file."""
        if self._cache is not None and _n_bytes(tensors) >= self._least_on_disk:
            # Where there is no room, or none for us, memory has to do.
            with suppress(ConfigError, PreflightError):
                tensors = self._write(self._cache, digest, item, tensors)
        return self._at_hand.keep(digest, item, tensors)

    def clear_disk(self) -> None:
        """Remove from the cache what this store wrote, but for what other processes use."""
        for known in self._on_disk.values():
            if known.is_ours:
                known.entry.remove()
        self._on_disk.clear()
        self._claimed.clear()
        self._disk_bytes = 0

    def _write(
        self, cache: TensorCache, digest: str, item: str, tensors: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Write an item if there is room; return views of the file then."""
        n_bytes = _n_bytes(tensors)
        if not self._make_room(cache, digest, n_bytes):
            return tensors
        entry = self._entry(cache, digest)
        entry.write(item, {str(i): tensor for i, tensor in enumerate(tensors)})
        self._claim(digest, entry, item, n_bytes)
        self._on_disk[digest].is_ours = True
        return _read(entry, item, [tuple(tensor.shape) for tensor in tensors]) or tensors

    def _entry(self, cache: TensorCache, digest: str) -> CacheEntry:
        known = self._on_disk.get(digest)
        parts = {"digest": digest, "sources": sorted(self.models)}
        return cache.entry(KIND, parts) if known is None else known.entry

    def _claim(self, digest: str, entry: CacheEntry, item: str, n_bytes: int) -> None:
        """Note that an item is on disk, where it was read or written just now."""
        known = self._on_disk.setdefault(digest, _OnDisk(entry))
        self._disk_bytes += n_bytes - known.items.get(item, 0)
        known.items[item] = n_bytes
        self._on_disk.move_to_end(digest)
        while len(self._on_disk) > max(self._max_entries, 1):
            self._remove_oldest()
        self._claimed[digest] = None
        self._claimed.move_to_end(digest)
        while len(self._claimed) > self._max_claims:
            self._on_disk[self._claimed.popitem(last=False)[0]].entry.close()

    def _make_room(self, cache: TensorCache, digest: str, n_new: int) -> bool:
        """Remove ancestors until `n_new` bytes more are within the share; return whether so."""

        def fits() -> bool:
            room = self._share_of_disk * (cache.free_bytes() + self._disk_bytes)
            return self._disk_bytes + n_new <= room

        while not fits():
            if next(iter(self._on_disk), digest) == digest:
                return False
            self._remove_oldest()
        return True

    def _remove_oldest(self) -> None:
        digest, known = self._on_disk.popitem(last=False)
        self._claimed.pop(digest, None)
        known.entry.remove()
        for item, n_bytes in known.items.items():
            self._disk_bytes -= n_bytes
            self._at_hand.forget(digest, item)  # a view would hold the file's blocks


def _read(
    entry: CacheEntry, item: str, shapes: Sequence[tuple[int, ...]]
) -> tuple[Tensor, ...] | None:
    """Return an item's tensors from disk; None when they are not there, or of something else."""
    kept = entry.read(item) or {}
    found = tuple(kept[str(i)] for i in range(len(shapes)) if str(i) in kept)
    is_it = [tuple(t.shape) for t in found] == list(shapes)
    return found if is_it and all(t.dtype == torch.float32 for t in found) else None


def _n_elements(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _n_bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
