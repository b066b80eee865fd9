"""Magnitude thresholds of one tensor for any density, from a table of order statistics.

A density asks for the magnitude of the k-th largest element. In tensors of more than 2**14 + 1
elements k is snapped to the nearest of 2**14 + 1 ranks, evenly spaced from 1 to n, so that a
table of that many numbers answers every density: the elements kept differ from those wanted by
at most n / 2**15. Snapping is part of the definition, so the answer is the same without a table.

Shape letters: n elements of a tensor, q knots of its table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import IntArray
from evomerge.merging.fused import pass_size

STEPS = 1 << 14


def n_kept(density: float, n_elements: int) -> int:
    """Return how many of `n_elements` a density keeps: rounded down, but at least one."""
    return min(max(int(density * n_elements), 1), n_elements)


def n_knots(n_elements: int) -> int:
    """Return q, how many order statistics the table of a tensor holds: all, or 2**14 + 1."""
    return min(n_elements, STEPS + 1)


def knot_count(knot: int, n_elements: int) -> int:
    """Return the rank, from 1 for the largest magnitude, that knot 0 … q - 1 stands for."""
    if n_elements <= STEPS + 1:
        return knot + 1
    return 1 + (2 * knot * (n_elements - 1) + STEPS) // (2 * STEPS)


@lru_cache(maxsize=1 << 14)
def nearest_knot(count: int, n_elements: int) -> int:
    """Return the knot whose rank is nearest to `count`, the lower of two equally near ones."""
    if n_elements <= STEPS + 1:
        return count - 1
    knot = (count - 1) * STEPS // (n_elements - 1)
    around = (knot - 1, knot, knot + 1)
    inside = [j for j in around if 0 <= j <= STEPS]
    return min(inside, key=lambda j: (abs(knot_count(j, n_elements) - count), j))


def snapped(count: int, n_elements: int) -> int:
    """Return the nearest rank that a table holds; `count` itself in small tensors."""
    return knot_count(nearest_knot(count, n_elements), n_elements)


def kth_magnitude(delta: Tensor, count: int) -> float:
    """Return the magnitude of the `count`-th largest element, 1 the largest."""
    return kth_largest(delta.abs(), count)


def kth_largest(magnitudes: Tensor, count: int) -> float:
    """Return the `count`-th largest of some magnitudes, 1 the largest; reorders them."""
    rank = magnitudes.numel() - count
    if magnitudes.device.type != "cpu":
        return float(torch.kthvalue(magnitudes.reshape(-1), rank + 1).values)
    # In place: torch would hold an int64 index of every element, three times as much memory.
    values = magnitudes.reshape(-1).numpy()
    values.partition(rank)
    return float(values[rank])


def order_statistics(values: Tensor, ranks: Sequence[int]) -> list[float]:
    """Return the elements at some ranks, 0 the smallest, holding no copy of the values.

    Args:
        values: (n,) float32; NaN lie beyond the infinity of their sign.
        ranks: Each from 0 to n - 1.
    """
    upper = _counts(values, 16)
    found = []
    for rank in ranks:
        top, within = _at_rank(upper, rank)
        key = top << 16 | _at_rank(_counts(values, 0, top), within)[0]
        bits = key ^ (0x80000000 if key >> 31 else 0xFFFFFFFF)
        found.append(float(np.uint32(bits).view(np.float32)))
    return found


def _counts(values: Tensor, shift: int, top: int | None = None) -> Tensor:
    """Count float32 values by 16 bits of their keys, 32-bit numbers in the order of the values.

    Args:
        values: (n,)
        shift: Bits below those that are counted.
        top: Count only what has these upper 16 bits.
    """
    counts = torch.zeros(1 << 16, dtype=torch.int64, device=values.device)
    step = pass_size(values)
    for start in range(0, values.numel(), step):
        bits = values[start : start + step].view(torch.int32).long() & 0xFFFFFFFF
        keys = bits ^ torch.where(bits >> 31 == 1, 0xFFFFFFFF, 0x80000000)
        if top is not None:
            keys = keys[keys >> 16 == top]
        counts += torch.bincount(keys >> shift & 0xFFFF, minlength=1 << 16)
    return counts


def _at_rank(counts: Tensor, rank: int) -> tuple[int, int]:
    """Return where the element of a rank is counted, and its rank among those counted there."""
    ends = counts.cumsum(0)
    place = int(torch.searchsorted(ends, rank, right=True))
    return place, rank - int(ends[place] - counts[place])


def magnitude_threshold(delta: Tensor, density: float, *, exact: bool = False) -> float:
    """Return the magnitude of the smallest element that `density` keeps in this tensor.

    Args:
        delta: Any shape, at least one element, no NaN.
        density: Fraction kept, rounded down to whole elements, at least one.
        exact: Keep just as many, not the nearest number that tables hold.
    """
    count = n_kept(density, delta.numel())
    return kth_magnitude(delta, count if exact else snapped(count, delta.numel()))


@dataclass(frozen=True, eq=False)
class QuantileTable:
    """Order statistics of one tensor's magnitudes.

    Attributes:
        knots: (q,) float32, falling; see `knot_count` for their ranks.
        n_elements: n of the tensor.
    """

    knots: Tensor
    n_elements: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> QuantileTable:
        """Return the table that `table_tensors` wrote."""
        return cls(tensors["knots"], int(tensors["n_elements"]))

    def at(self, count: int) -> float:
        """Return the magnitude at the rank nearest to `count`."""
        return float(self._values[nearest_knot(count, self.n_elements)])

    @cached_property
    def _values(self) -> np.ndarray[Any, Any]:
        # One number of an array costs a tenth of one of a tensor.
        return self.knots.numpy()

    def exactly_at(self, count: int, parts: Iterable[Tensor]) -> float:
        """Return the magnitude of the `count`-th largest element of the table's tensor.

        Args:
            count: 1 for the largest.
            parts: The task vector in parts, read once, to select inside the two knots around
                `count`; little of them is held.
        """
        knot = nearest_knot(count, self.n_elements)
        rank = knot_count(knot, self.n_elements)
        if rank == count:
            return float(self.knots[knot])
        first, last = (knot, knot + 1) if rank < count else (knot - 1, knot)
        high, low = float(self.knots[first]), float(self.knots[last])
        if high == low:
            return high
        n_above, between = 0, []
        for part in parts:
            magnitudes = part.abs().reshape(-1)
            n_above += int((magnitudes >= high).sum())
            between.append(magnitudes[(magnitudes > low) & (magnitudes < high)])
        inside = torch.cat(between)
        if count <= n_above:
            return high
        if count > n_above + inside.numel():
            return low
        return kth_largest(inside, count - n_above)


def quantile_knots(delta: Tensor) -> Tensor:
    """Return (q,) float32 the magnitudes that a table of `delta` holds, falling.

    Args:
        delta: (…) float32 on the CPU, at least one element.
    """
    # NumPy sorts float32 with vector instructions, 25 times faster than torch.
    magnitudes = delta.abs().reshape(-1).numpy()
    magnitudes.sort()
    n = len(magnitudes)
    return torch.from_numpy(magnitudes[n - _knot_counts(n)])


def table_tensors(delta: Tensor) -> dict[str, Tensor]:
    """Return the table of a task vector as tensors that can be kept; see `QuantileTable.of`."""
    return {"knots": quantile_knots(delta), "n_elements": torch.tensor(delta.numel())}


def _knot_counts(n: int) -> IntArray:
    """Return (q,) int64 `knot_count` of every knot."""
    knots = np.arange(n_knots(n), dtype=np.int64)
    if n <= STEPS + 1:
        return knots + 1
    return 1 + (2 * knots * (n - 1) + STEPS) // (2 * STEPS)
