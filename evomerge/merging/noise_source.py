"""NoiseSource: a model of standard normal numbers, made from a seed wherever it is read.

Numbers are quantiles: element i has the 16 random bits h of `philox.random_halves`, and the value
is that of the normal distribution at (h + 1/2) / 2**16, times a constant that makes the variance
1. So every slice, process and device has the same bits, and the largest value is 4.3.

Source: the quantiles are Wichura 1988 (AS 241), as in Python's `statistics.NormalDist`.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache
from statistics import NormalDist

import torch
from torch import Tensor

from evomerge.core.model_space import ModelSpace, SourceHeader, TensorSpec
from evomerge.core.noise import noise_seed
from evomerge.errors import SourceError, nearest
from evomerge.merging.ancestor_store import AncestorStore
from evomerge.merging.philox import random_halves

_VALUES = 1 << 16
_SIZE = 4  # bytes of a number


@cache
def normal_table() -> Tensor:
    """Return (2**16,) float32: the quantiles, with mean 0 and variance 1."""
    normal = NormalDist()
    upper = [normal.inv_cdf((i + 0.5) / _VALUES) for i in range(_VALUES // 2, _VALUES)]
    scale = math.sqrt(len(upper) / math.fsum(value * value for value in upper))
    half = torch.tensor([value * scale for value in upper], dtype=torch.float64)
    return torch.cat((-half.flip(0), half)).to(torch.float32)


def philox_normal(key: int, n: int, *, start: int = 0) -> Tensor:
    """Return elements [start, start + n) of the normal stream called `key`, float32."""
    return normal_table()[random_halves(key, n, start=start).long()]


class NoiseSource:
    """Standard normal numbers in the shapes of a space's merged tensors."""

    def __init__(self, id: str, space: ModelSpace, store: AncestorStore | None = None) -> None:
        """Say which noise it is; nothing is made yet.

        Args:
            id: ``noise:<16 hex digits>``.
            space: Whose merged tensors it has.
            store: Where small tensors are kept, as most noise of a candidate is its parents'; large
                ones are made where they are read, by the stretch.

        Raises:
            SourceError: The id names no noise.
        """
        seed = noise_seed(id)
        if seed is None:
            raise SourceError(f"{id!r} names no noise; expected noise: and 16 hex digits")
        self.id = id
        self._seed = seed
        self._store = store
        self._specs = {
            tensor.spec.name: TensorSpec(tensor.spec.name, "F32", tensor.spec.shape)
            for tensor in space.merged
        }

    @property
    def digest(self) -> str:
        """Address of the content: version of the generator, and the seed."""
        return hashlib.blake2b(f"noise-1:{self.id}".encode(), digest_size=16).hexdigest()

    def header(self) -> SourceHeader:
        """Return names and shapes of the merged tensors, all F32."""
        digests = {name: f"{self._key(name):016x}" for name in self._specs}
        return SourceHeader(self.id, "", self._specs, digests)

    def read(self, name: str) -> Tensor:
        """Return one tensor, float32.

        Raises:
            SourceError: There is no such tensor.
        """
        spec = self._spec(name)
        store = self._store if self._is_small(spec) else None
        kept = None if store is None else store.find(self.id, name, _SIZE * spec.n_elements)
        if kept is not None:
            return kept
        made = philox_normal(self._key(name), spec.n_elements).reshape(spec.shape)
        return made if store is None else store.keep(self.id, name, made)

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,) float32.

        Raises:
            SourceError: There is no such tensor.
        """
        spec = self._spec(name)
        if self._is_small(spec):
            return self.read(name).reshape(-1)[start:stop]
        return philox_normal(self._key(name), stop - start, start=start)

    def exact_delta(self, name: str) -> None:
        """Return None: noise is no task vector."""

    def _is_small(self, spec: TensorSpec) -> bool:
        return self._store is not None and _SIZE * spec.n_elements < self._store.least_bytes

    def _spec(self, name: str) -> TensorSpec:
        if name not in self._specs:
            raise SourceError(f"{self.id}: has no tensor {name!r}.{nearest(name, self._specs)}")
        return self._specs[name]

    def _key(self, name: str) -> int:
        text = f"{self._seed:016x}:{name}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
