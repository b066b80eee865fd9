"""An evenly spread sample of task vectors too large to hold: model-wide ranks in one pass.

Up to `CAPACITY` elements the sample is everything, so ranks are exact; of a larger model the
rank of a value is within about 0.1 % of the elements, which no threshold here resolves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CAPACITY = 1 << 20
_CHUNK = 1 << 20
_MODULUS = 1 << 32
# 2^32 divided by the golden ratio: multiples of it spread evenly, and in no step with the rows
# and columns of a matrix, as a fixed stride would be.
_STEP = 2654435761


def chunks(deltas: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield (E, c) the next elements of every task vector, in storage order, c bounded."""
    flat = [delta.reshape(-1) for delta in deltas]
    for start in range(0, flat[0].numel(), _CHUNK):
        yield torch.stack([values[start : start + _CHUNK] for values in flat])


class ThinnedSample:
    """The elements of E task vectors at the same at most `capacity` places.

    A place is kept when its multiple of `_STEP` modulo 2^32 is below a limit; the limit is halved
    whenever the sample is full. The sample depends on the order of the tensors only.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        """Args: capacity: most elements kept per expert."""
        self.capacity = capacity
        self._limit = _MODULUS
        self._seen = 0
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []

    def add(self, elements: Tensor) -> None:
        """Offer the next (E, c) elements."""
        places = torch.arange(self._seen, self._seen + elements.shape[1])
        self._seen += elements.shape[1]
        keys = (places * _STEP) % _MODULUS
        is_kept = keys < self._limit
        self._keys.append(keys[is_kept])
        self._values.append(elements[:, is_kept])
        while sum(len(keys) for keys in self._keys) > self.capacity:
            self._limit //= 2
            masks = [keys < self._limit for keys in self._keys]
            self._keys = [keys[mask] for keys, mask in zip(self._keys, masks, strict=True)]
            self._values = [
                values[:, mask] for values, mask in zip(self._values, masks, strict=True)
            ]

    def values(self) -> Tensor:
        """Return (E, s) the sample; (0, 0) when nothing was offered."""
        return torch.cat(self._values, dim=1) if self._values else torch.zeros(0, 0)
