"""Magnitude thresholds over a whole model, from histograms instead of a sort.

A non-negative float32 sorts like its 31 bits. One pass counts the top 23 bits of every
|task vector element|, bins of relative width 2**-15; the threshold of any density is the lower
edge of the bin that holds the wanted rank.

Shape letters: B bins that are not empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import IntArray
from evomerge.core.model_space import ModelSpace
from evomerge.errors import ConfigError
from evomerge.merging.cache import TensorCache
from evomerge.merging.cached import Filled, expert_entry, layout_key, remember
from evomerge.merging.flat_reader import FlatReader
from evomerge.merging.quantiles import n_kept
from evomerge.merging.source import TensorSource, content_key

_LOW_BITS = 8
N_BINS = 1 << (31 - _LOW_BITS)
_VERSION = 1
# Tensors are counted in parts of at least this many elements: what a killed `prepare` repeats.
_PART = 1 << 28


@dataclass(frozen=True, eq=False)
class Histogram:
    """How many magnitudes have which top 23 bits.

    Attributes:
        bins: (B,) int32, rising.
        counts: (B,) int64, positive.
    """

    bins: IntArray
    counts: IntArray

    @classmethod
    def sum(cls, parts: Sequence[Mapping[str, Tensor]]) -> Histogram:
        """Return the histogram of all parts, each "bins" and "counts"."""
        every = np.concatenate([part["bins"].numpy() for part in parts])
        bins, place = np.unique(every, return_inverse=True)
        counts = np.zeros(len(bins), dtype=np.int64)
        np.add.at(counts, place, np.concatenate([part["counts"].numpy() for part in parts]))
        return cls(bins, counts)

    @cached_property
    def _from_top(self) -> IntArray:
        total: IntArray = np.cumsum(self.counts[::-1])
        return total

    def bin_of_rank(self, rank: int) -> tuple[int, int]:
        """Return the bin of the rank-th largest magnitude (from 1), and how many lie above it."""
        place = int(np.searchsorted(self._from_top, rank))
        above = int(self._from_top[place - 1]) if place else 0
        return int(self.bins[-1 - place]), above


class GlobalThresholds:
    """Magnitude thresholds of each expert's whole task vector, for any density.

    Nothing is read until a threshold is asked for. Each expert's first one reads the models
    once, or its histogram from the cache; every further one is a look-up, unless exact ones
    are asked for: those read the models once more per histogram bin. Results are kept.

    Attributes:
        space: The aligned models; must have a base.
        kind: Its name in the cache.
    """

    kind = "histograms"

    def __init__(
        self,
        space: ModelSpace,
        sources: Mapping[str, TensorSource],
        cache: TensorCache | None = None,
    ) -> None:
        """Args: space, sources: the models; cache: where histograms are kept, if anywhere."""
        if not space.has_base:
            raise ConfigError("global thresholds are those of task vectors and need a base model")
        self.space = space
        self._reader = FlatReader(space, sources)
        self._sources = sources
        self._cache = cache
        self._histograms: dict[int, Histogram] = {}
        self._fine: dict[tuple[int, int], IntArray] = {}
        self._known: dict[tuple[int, float, bool], float] = {}

    def threshold(self, source: str, density: float, *, exact: bool = False) -> float:
        """Return the magnitude from which on `density` keeps elements, over all tensors.

        Args:
            source: Id of an expert.
            density: Fraction kept, rounded down to whole elements, at least one.
            exact: The magnitude of the smallest element kept, not the lower edge of its bin.
        """
        index = self.space.sources.index(source)
        key = (index, density, exact)
        if key not in self._known:
            n_wanted = n_kept(density, self.space.n_elements)
            self._known[key] = self._find(index, n_wanted, exact=exact)
        return self._known[key]

    def histogram(self, source: str) -> Histogram:
        """Return the histogram of one expert, counting it if it is not known."""
        index = self.space.sources.index(source)
        if index not in self._histograms:
            for _ in self._fill(index):
                pass
        return self._histograms[index]

    def fill(self) -> Iterator[Filled]:
        """Count every expert's histogram, or find it in the cache; yield one item per part."""
        for index in range(1, len(self.space.sources)):
            yield from self._fill(index)

    def _find(self, source: int, n_wanted: int, *, exact: bool) -> float:
        top, above = self.histogram(self.space.sources[source]).bin_of_rank(n_wanted)
        low = 0
        if exact:
            if (source, top) not in self._fine:
                self._fine[source, top] = self._count_inside(source, top)
            from_top = np.cumsum(self._fine[source, top][::-1])
            low = len(from_top) - 1 - int(np.searchsorted(from_top, n_wanted - above))
        bits = np.array([(top << _LOW_BITS) | low], dtype=np.int32)
        return float(bits.view(np.float32)[0])

    def _fill(self, source: int) -> Iterator[Filled]:
        entry = None
        if self._cache is not None:
            space = self.space
            parts = {"tensors": layout_key(space), "version": _VERSION}
            base, expert = (self._sources[space.sources[k]] for k in (0, source))
            keys = content_key(base), content_key(expert)
            entry = expert_entry(self._cache, self.kind, *keys, parts)
        counted: list[Mapping[str, Tensor]] = []
        for number, names in enumerate(self._parts()):
            count = partial(self._count, source, names)
            found, filled = remember(entry, f"part-{number}", count)
            counted.append(found)
            yield filled
        self._histograms[source] = Histogram.sum(counted)

    def _parts(self) -> Iterator[list[str]]:
        """Yield the merged tensors in runs of at least `_PART` elements."""
        names: list[str] = []
        n_elements = 0
        for tensor in self.space.merged:
            names.append(tensor.spec.name)
            n_elements += tensor.spec.n_elements
            if n_elements >= _PART:
                yield names
                names, n_elements = [], 0
        if names:
            yield names

    def _count(self, source: int, names: Sequence[str]) -> dict[str, Tensor]:
        """Return bins, (B,) int32, and counts, (B,) int64, of one part's magnitudes."""
        counts = torch.zeros(N_BINS, dtype=torch.int64)
        one = torch.ones(1, dtype=torch.int64)
        for name, start, stop in self._reader.ranges(names=names):
            bits = _magnitude_bits(self._reader.difference(source, name, start, stop))
            counts.index_add_(0, bits >> _LOW_BITS, one.expand(stop - start))
        bins = counts.nonzero().reshape(-1)
        return {"bins": bins.int(), "counts": counts[bins]}

    def _count_inside(self, source: int, top: int) -> IntArray:
        """Return (2**8,) counts of the low bits of the magnitudes in one bin."""
        counts = torch.zeros(1 << _LOW_BITS, dtype=torch.int64)
        for name, start, stop in self._reader.ranges():
            bits = _magnitude_bits(self._reader.difference(source, name, start, stop))
            low = bits[(bits >> _LOW_BITS) == top] & ((1 << _LOW_BITS) - 1)
            counts += torch.bincount(low, minlength=len(counts))
        result: IntArray = counts.numpy()
        return result


def _magnitude_bits(delta: Tensor) -> Tensor:
    """Return (n,) int32 the 31 bits of |delta|."""
    return delta.abs().view(torch.int32)
