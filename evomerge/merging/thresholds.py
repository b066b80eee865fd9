"""Exact magnitude thresholds over a whole model, from histograms instead of a sort.

A non-negative float32 sorts like its 31 bits. One pass counts the top 15 bits of every
|task vector element|; the bin that holds the wanted rank is then counted by its low 16 bits,
which pins the threshold to one float32 value.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import IntArray
from evomerge.core.model_space import ModelSpace
from evomerge.errors import ConfigError
from evomerge.merging.flat_reader import FlatReader
from evomerge.merging.sign_consensus import n_kept
from evomerge.merging.source import TensorSource

N_BINS = 1 << 15
_LOW_BITS = 16


def _magnitude_bits(delta: Tensor) -> Tensor:
    """Return (n,) int64 the 31 bits of |delta|."""
    return delta.abs().view(torch.int32).to(torch.int64)


class GlobalThresholds:
    """Magnitude thresholds of each expert's whole task vector, for any density.

    Nothing is read until a threshold is asked for; each expert's first one reads the models
    once, and each further histogram bin once more. Results are kept.

    Attributes:
        space: The aligned models; must have a base.
    """

    def __init__(
        self,
        space: ModelSpace,
        sources: Mapping[str, TensorSource],
        *,
        histograms: Mapping[str, IntArray] | None = None,
    ) -> None:
        """Args: space, sources: the models; histograms: source id -> (2**15,), when known."""
        if not space.has_base:
            raise ConfigError("global thresholds are those of task vectors and need a base model")
        self.space = space
        self._reader = FlatReader(space, sources)
        self._coarse: dict[int, IntArray] = {
            space.sources.index(name): counts for name, counts in (histograms or {}).items()
        }
        self._fine: dict[tuple[int, int], IntArray] = {}
        self._known: dict[tuple[int, float], float] = {}

    @property
    def histograms(self) -> dict[str, IntArray]:
        """Source id -> (2**15,) counts over the top 15 magnitude bits, where already computed."""
        return {self.space.sources[source]: counts for source, counts in self._coarse.items()}

    def threshold(self, source: str, density: float) -> float:
        """Return the magnitude of the smallest element that `density` keeps, over all tensors.

        Args:
            source: Id of an expert.
            density: Fraction kept, rounded down to whole elements, at least one.
        """
        index = self.space.sources.index(source)
        key = (index, density)
        if key not in self._known:
            self._known[key] = self._find(index, n_kept(density, self.space.n_elements))
        return self._known[key]

    def _find(self, source: int, n_wanted: int) -> float:
        if source not in self._coarse:
            self._coarse[source] = self._count(source, None)
        top, above = _bin_of_rank(self._coarse[source], n_wanted)
        if (source, top) not in self._fine:
            self._fine[source, top] = self._count(source, top)
        low, _ = _bin_of_rank(self._fine[source, top], n_wanted - above)
        bits = np.array([(top << _LOW_BITS) | low], dtype=np.int32)
        return float(bits.view(np.float32)[0])

    def _count(self, source: int, inside: int | None) -> IntArray:
        """Count top bits, or the low bits of the elements inside one bin."""
        n_bins = N_BINS if inside is None else 1 << _LOW_BITS
        counts = torch.zeros(n_bins, dtype=torch.int64)
        for name, start, stop in self._reader.ranges():
            bits = _magnitude_bits(self._reader.difference(source, name, start, stop))
            top = bits >> _LOW_BITS
            if inside is not None:
                top = bits[top == inside] & ((1 << _LOW_BITS) - 1)
            counts += torch.bincount(top, minlength=n_bins)
        return counts.numpy()


def _bin_of_rank(counts: IntArray, rank: int) -> tuple[int, int]:
    """Return the bin of the rank-th largest value (from 1), and how many lie in higher bins."""
    from_top = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_top, rank))
    above = int(from_top[place - 1]) if place else 0
    return len(counts) - 1 - place, above
