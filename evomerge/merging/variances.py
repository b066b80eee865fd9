"""How far the experts' task vectors differ at each element, and tables to select by it.

Shape letters: E experts, n elements of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from evomerge.core.model_space import ModelSpace
from evomerge.merging.cache import TensorCache
from evomerge.merging.cached import Filled, remember
from evomerge.merging.flat_reader import FlatReader
from evomerge.merging.fused import pass_size
from evomerge.merging.quantiles import QuantileTable, kth_largest, snapped, table_tensors
from evomerge.merging.source import TensorSource, content_key

_VERSION = 1


def variance_of(deltas: Sequence[Tensor]) -> Tensor:
    """Return each element's population variance over (E,) task vectors.

    Float32 in the order given; the compiled kernels of `kernels.selected` do the same.

    Args:
        deltas: (E,) of one shape, float32.
    """
    share = 1.0 / len(deltas)
    # From the first one, so that equal task vectors have variance zero without rounding.
    shifted = [delta - deltas[0] for delta in deltas]
    total = torch.zeros_like(shifted[0])
    for part in shifted:
        total += part
    mean = total.mul_(share)
    squares = torch.zeros_like(mean)
    for part in shifted:
        part -= mean
        squares += part.mul_(part)
    return squares.mul_(share)


def variances(deltas: Sequence[Tensor]) -> Tensor:
    """Return `variance_of` whole tensors, a stretch at a time, in their shape."""
    flat = [delta.reshape(-1) for delta in deltas]
    out = torch.empty_like(flat[0])
    step = pass_size(out)
    for start in range(0, out.numel(), step):
        out[start : start + step] = variance_of([delta[start : start + step] for delta in flat])
    return out.reshape(deltas[0].shape)


def variance_threshold(
    values: Tensor | None,
    select: float,
    *,
    at_least: int,
    exact: bool,
    table: QuantileTable | None = None,
) -> float:
    """Return the variance from which on elements are selected; infinity when none is.

    Args:
        values: Every element's variance, flat, reordered; not looked at where the table answers.
        select: Fraction of the elements with a variance above zero, rounded down.
        at_least: Elements selected whatever the fraction, when there are any.
        exact: Select just as many, not the nearest number that tables hold (`quantiles`).
        table: Of the variances that are not zero.
    """
    if table is not None and not exact:
        wanted = _n_wanted(select, table.n_elements, at_least)
        return table.at(wanted) if wanted else math.inf
    assert values is not None
    n_nonzero = int(torch.count_nonzero(values))
    wanted = _n_wanted(select, n_nonzero, at_least)
    if wanted == 0:
        return math.inf
    # The zeros are the smallest of all: no copy without them is needed.
    return kth_largest(values, wanted if exact else snapped(wanted, n_nonzero))


def _n_wanted(select: float, n_nonzero: int, at_least: int) -> int:
    return min(max(int(select * n_nonzero), at_least), n_nonzero)


class VarianceTables:
    """Quantile tables of the variances of every merged tensor, over all experts of a space.

    Experts are taken in the order of their files' digests: their order in a search is no matter.
    """

    kind = "variances"

    def __init__(
        self, space: ModelSpace, sources: Mapping[str, TensorSource], cache: TensorCache
    ) -> None:
        """Args: space: with a base; sources: by id; cache: where the tables are kept."""
        self._reader = FlatReader(space, sources)
        self._shapes = {tensor.spec.name: tensor.spec.shape for tensor in space.merged}
        self.experts = frozenset(space.sources[1:])
        self._order = sorted(
            range(1, len(space.sources)), key=lambda k: sources[space.sources[k]].digest
        )
        keys = [content_key(sources[space.sources[k]]) for k in self._order]
        base = content_key(sources[space.sources[0]])
        parts = {"base": base, "experts": keys, "version": _VERSION}
        self._entry = cache.entry(self.kind, parts)
        self._known: dict[str, QuantileTable] = {}

    def of(self, name: str) -> QuantileTable:
        """Return the table of one tensor's variances that are not zero."""
        if name not in self._known:
            self._find(name)
        return self._known[name]

    def fill(self) -> Iterator[Filled]:
        """Find or compute the table of every tensor."""
        for name in self._shapes:
            yield self._find(name)

    def _find(self, name: str) -> Filled:
        found, filled = remember(self._entry, name, lambda: self._compute(name))
        self._known[name] = QuantileTable.of(found)
        return filled

    def _compute(self, name: str) -> dict[str, Tensor]:
        n_elements = math.prod(self._shapes[name])
        values = variances([self._reader.difference(k, name, 0, n_elements) for k in self._order])
        values = values[values > 0.0]
        if not values.numel():
            return {"knots": torch.empty(0), "n_elements": torch.tensor(0)}
        return table_tensors(values)
