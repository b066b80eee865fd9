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
from evomerge.merging.ancestor_store import LEAST_BYTES, TensorMemory
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

    def __init__(self, id: str, space: ModelSpace, memory: TensorMemory | None = None) -> None:
        """Say which noise it is; nothing is made yet.

        Args:
            id: ``noise:<16 hex digits>``.
            space: Whose merged tensors it has.
            memory: Where small tensors are kept, as most noise of a candidate is its parents';
                large ones are made where they are read, by the stretch.

        Raises:
            SourceError: The id names no noise.
        """
        seed = noise_seed(id)
        if seed is None:
            raise SourceError(f"{id!r} names no noise; expected noise: and 16 hex digits")
        self.id = id
        self._seed = seed
        self._memory = memory
        self._space = space

    @property
    def digest(self) -> str:
        """Address of the content: version of the generator, and the seed."""
        return noise_digest(self.id)

    def header(self) -> SourceHeader:
        """Return names and shapes of the merged tensors, all F32."""
        found = self._space.merged_specs.items()
        specs = {name: TensorSpec(name, "F32", spec.shape) for name, spec in found}
        return SourceHeader(self.id, "", specs, {name: f"{self._key(name):016x}" for name in specs})

    def read(self, name: str) -> Tensor:
        """Return one tensor, float32.

        Raises:
            SourceError: There is no such tensor.
        """
        spec = self._spec(name)
        memory = self._memory if _is_small(spec) else None
        kept = None if memory is None else memory.find(self.id, name)
        if kept is None:
            made = philox_normal(self._key(name), spec.n_elements).reshape(spec.shape)
            kept = (made,) if memory is None else memory.keep(self.id, name, (made,))
        return kept[0]

    def read_range(self, name: str, start: int, stop: int) -> Tensor:
        """Return elements [start, stop) of the flattened tensor, (stop - start,) float32.

        Raises:
            SourceError: There is no such tensor.
        """
        spec = self._spec(name)
        if self._memory is not None and _is_small(spec):
            return self.read(name).reshape(-1)[start:stop]
        return philox_normal(self._key(name), stop - start, start=start)

    def exact_delta(self, name: str) -> None:
        """Return None: noise is no task vector."""

    def _spec(self, name: str) -> TensorSpec:
        spec = self._space.merged_specs.get(name)
        if spec is None:
            near = nearest(name, self._space.merged_specs)
            raise SourceError(f"{self.id}: has no tensor {name!r}.{near}")
        return spec

    def _key(self, name: str) -> int:
        text = f"{self._seed:016x}:{name}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def noise_digest(id: str) -> str:
    """Return the digest of a noise's content: version of the generator, and the seed."""
    return hashlib.blake2b(f"noise-1:{id}".encode(), digest_size=16).hexdigest()


def _is_small(spec: TensorSpec) -> bool:
    return _SIZE * spec.n_elements < LEAST_BYTES
