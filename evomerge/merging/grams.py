"""Gram matrices of the sources, per tensor and per block of the flattened order.

All sums run in float64 over rows of fixed length in a fixed order (`sums`), so that neither the
number of threads nor the memory at hand changes a bit. Models are streamed in pieces.

Shape letters: K sources, B blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.model_space import ModelSpace
from evomerge.merging.cache import CacheEntry, TensorCache
from evomerge.merging.cached import Filled, exhaust, layout_key, remember
from evomerge.merging.flat_reader import PIECE, FlatReader
from evomerge.merging.source import TensorSource, content_key
from evomerge.merging.sums import ROW, exact_column_sums, row_sums

_VERSION = 1  # of Gram matrices in a cache
# Block Grams are kept in items of this many pieces.
_PIECES_PER_ITEM = 64


class TensorGrams:
    """The Gram matrix of every merged tensor."""

    kind = "grams"

    def __init__(
        self,
        space: ModelSpace,
        sources: Mapping[str, TensorSource],
        cache: TensorCache | None = None,
    ) -> None:
        """Args: space: the aligned models; sources: every one of them by id; cache: if any."""
        self._names = {tensor.spec.name: tensor.spec.n_elements for tensor in space.merged}
        self._reader = FlatReader(space, sources)
        self._entry: CacheEntry | None = None
        self.grams: dict[str, FloatArray] = {}
        if cache is not None:
            self._entry = cache.entry(self.kind, _all_sources(space, sources))

    def fill(self) -> Iterator[Filled]:
        """Find or compute every tensor's matrix, into `grams`."""
        for name, n_elements in self._names.items():
            found, filled = remember(self._entry, name, partial(self._compute, name, n_elements))
            self.grams[name] = found["gram"].clone().numpy()
            yield filled

    def _compute(self, name: str, n_elements: int) -> dict[str, Tensor]:
        return {"gram": torch.from_numpy(_tensor_gram(self._reader, name, n_elements))}


def tensor_grams(
    space: ModelSpace, sources: Mapping[str, TensorSource], cache: TensorCache | None = None
) -> dict[str, FloatArray]:
    """Return the Gram matrix of every merged tensor.

    Returns:
        Tensor name -> (K, K) float64 over the basis (s_0, s_1 - s_0, …) of `space.sources`.
    """
    statistic = TensorGrams(space, sources, cache)
    exhaust(statistic)
    return statistic.grams


def _all_sources(space: ModelSpace, sources: Mapping[str, TensorSource]) -> dict[str, object]:
    """Return the parts of a cache key of what depends on every source, and on their order."""
    keys = [content_key(sources[name]) for name in space.sources]
    return {"sources": keys, "has_base": space.has_base, "version": _VERSION}


def gram_of(tensors: Sequence[Tensor]) -> FloatArray:
    """Return the (K, K) Gram matrix of tensors in memory, over (s_0, s_1 - s_0, …)."""
    basis = torch.stack([tensor.double().reshape(-1) for tensor in tensors])
    basis[1:] -= basis[0].clone()
    gram: FloatArray = exact_column_sums(_row_grams(basis, ROW)).numpy()
    return gram


def _tensor_gram(reader: FlatReader, name: str, n_elements: int) -> FloatArray:
    parts = [
        _row_grams(reader.basis(name, start, min(start + PIECE, n_elements)), ROW)
        for start in range(0, n_elements, PIECE)
    ]
    gram: FloatArray = exact_column_sums(torch.cat(parts, dim=-1)).numpy()
    return gram


def _row_grams(basis: Tensor, row: int) -> Tensor:
    """Return (K, K, n / row) Gram matrices of each run of `row` elements of a (K, n) basis."""
    k = len(basis)
    n_rows = -(-basis.shape[1] // row)
    out = torch.empty((k, k, n_rows), dtype=torch.float64)
    for i in range(k):
        for j in range(i, k):
            out[i, j] = out[j, i] = row_sums(basis[i] * basis[j], row)
    return out


class BlockGrams:
    """The Gram matrix of every block of the flattened order of merged tensors."""

    kind = "block-grams"

    def __init__(
        self,
        space: ModelSpace,
        sources: Mapping[str, TensorSource],
        block: int,
        cache: TensorCache | None = None,
    ) -> None:
        """Args: as `block_grams`."""
        if block < 1 or block & (block - 1):
            raise ValueError(f"block must be a power of two, is {block}")
        self._space = space
        self._block = block
        self._reader = FlatReader(space, sources)
        self._entry: CacheEntry | None = None
        self.parts: list[FloatArray] = []
        if cache is not None:
            parts = {**_all_sources(space, sources), "block": block, "tensors": layout_key(space)}
            self._entry = cache.entry(self.kind, parts)

    def fill(self) -> Iterator[Filled]:
        """Find or compute the matrices, (b, K, K) at a time, into `parts`."""
        step = max(self._block, PIECE) * _PIECES_PER_ITEM
        self.parts = []
        for start in range(0, self._space.n_elements, step):
            stop = min(start + step, self._space.n_elements)
            found, filled = remember(
                self._entry, f"from-{start}", partial(self._compute, start, stop)
            )
            self.parts.append(found["grams"].clone().numpy())
            yield filled

    def _compute(self, start: int, stop: int) -> dict[str, Tensor]:
        row = min(self._block, ROW)
        piece = max(self._block, PIECE)
        grams = []
        for low in range(start, stop, piece):
            basis = self._reader.flat_basis(low, min(low + piece, stop))
            sums = row_sums(_row_grams(basis, row), self._block // row)
            grams.append(sums.permute(2, 0, 1))
        return {"grams": torch.cat(grams)}


def block_grams(
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    block: int,
    cache: TensorCache | None = None,
) -> FloatArray:
    """Return the Gram matrix of every block of the flattened order of merged tensors.

    Args:
        space: The aligned models.
        sources: Every source of the space by id.
        block: Elements per block, a power of two; blocks run across tensors, and the last
            one may be shorter.
        cache: Where they are kept, if anywhere.

    Returns:
        (B, K, K) float64 over the basis (s_0, s_1 - s_0, …); for `LinearSpan.from_block_grams`.
    """
    statistic = BlockGrams(space, sources, block, cache)
    exhaust(statistic)
    return np.concatenate(statistic.parts)


def change_basis(gram: FloatArray, space: ModelSpace, sources: tuple[str, ...]) -> FloatArray:
    """Return a Gram matrix over the basis of a subset or permutation of the space's sources.

    Args:
        gram: (K, K) over the basis of `space.sources`.
        space: The aligned models.
        sources: (J,) ids, in the wanted order.

    Returns:
        (J, J) float64 over (r_0, r_1 - r_0, …) of `sources`.
    """
    chosen = [space.sources.index(name) for name in sources]
    if chosen[0] == 0:
        return np.ascontiguousarray(gram[np.ix_(chosen, chosen)])
    rows = np.zeros((len(chosen), len(space.sources)))
    for row, source in enumerate(chosen):
        if source:
            rows[row, source] = 1.0
        if row:
            rows[row] -= rows[0]
    # Every r_k holds s_0 once, so it stays in r_0 and cancels in the differences.
    rows[0, 0] = 1.0
    return rows @ gram @ rows.T
