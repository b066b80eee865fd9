"""Gram matrices of the sources, per tensor and per block of the flattened order.

All sums run in float64, in `LANES` partial sums over rows of fixed length, so that neither the
number of threads nor the memory at hand changes a bit, and the compiled kernel gives the bits of
plain torch. Models are streamed in pieces.

Shape letters: K sources, B blocks, R rows, n elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.model_space import ModelSpace
from evomerge.merging.cache import CacheEntry, TensorCache
from evomerge.merging.cached import Filled, exhaust, layout_key, remember
from evomerge.merging.flat_reader import FlatReader
from evomerge.merging.fused import MAX_SOURCES, MIN_ELEMENTS, Array, as_array
from evomerge.merging.philox import RUN
from evomerge.merging.source import TensorSource, content_key
from evomerge.merging.sums import LANES, ROW, exact_column_sums, row_sums
from evomerge.merging.threads import in_threads

_VERSION = 2  # of Gram matrices in a cache
# Elements that are read at a time; a multiple of `ROW`.
PIECE = 1 << 22
# Elements whose products plain torch holds at a time.
_TORCH_PIECE = 1 << 18
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
    flat = [tensor.reshape(-1) for tensor in tensors]
    rows = gram_rows(flat, [False] + [True] * (len(flat) - 1), ROW)
    gram: FloatArray = exact_column_sums(rows).numpy()
    return gram


def _tensor_gram(reader: FlatReader, name: str, n_elements: int) -> FloatArray:
    parts = [
        gram_rows(*reader.parts(name, start, min(start + PIECE, n_elements)), ROW)
        for start in range(0, n_elements, PIECE)
    ]
    gram: FloatArray = exact_column_sums(torch.cat(parts, dim=-1)).numpy()
    return gram


def gram_rows(sources: Sequence[Tensor], subtracts: Sequence[bool], row: int) -> Tensor:
    """Return the Gram matrix of each run of `row` elements.

    Args:
        sources: (K,) tensors of (n,), any float dtypes.
        subtracts: (K,) whether source 0 is subtracted from it, in float64; not from itself.
        row: Elements per run, a power of two; the last run may be shorter.

    Returns:
        (K, K, R) float64.
    """
    k, n = len(sources), sources[0].numel()
    pairs = torch.empty((k * (k + 1) // 2, -(-n // row)), dtype=torch.float64)
    arrays = _kernel_arrays(sources) if row >= LANES else None
    if arrays is None:
        step = max(_TORCH_PIECE // row, 1) * row
        for start in range(0, n, step):
            found = torch_gram_rows([s[start : start + step] for s in sources], subtracts, row)
            pairs[:, start // row : start // row + found.shape[1]] = found
    else:
        _compiled_gram_rows(pairs.numpy(), arrays, subtracts, row)
    i, j = torch.triu_indices(k, k)
    out = torch.empty((k, k, pairs.shape[1]), dtype=torch.float64)
    out[i, j] = out[j, i] = pairs
    return out


def _kernel_arrays(sources: Sequence[Tensor]) -> tuple[Array, ...] | None:
    """Return what the kernel reads, of one dtype, or None when torch has to do it."""
    dtypes = {tensor.dtype for tensor in sources}
    if sources[0].numel() < MIN_ELEMENTS or len(sources) > MAX_SOURCES or torch.float64 in dtypes:
        return None
    if dtypes not in ({torch.float32}, {torch.bfloat16}):
        sources = [tensor.float() for tensor in sources]  # exact
    arrays = [array for array in map(as_array, sources) if array is not None]
    return tuple(arrays) if len(arrays) == len(sources) else None


def _compiled_gram_rows(
    out: Array, arrays: tuple[Array, ...], subtracts: Sequence[bool], row: int
) -> None:
    from evomerge.merging.kernels import grams as kernels

    origins = tuple(map(float, subtracts))

    def part(start: int, stop: int) -> bool:
        rows = out[:, start // row : -(-stop // row)]
        kernels.gram_rows(rows, tuple(array[start:stop] for array in arrays), origins, row)
        return True

    in_threads(part, arrays[0].size, run=max(row, RUN))


def torch_gram_rows(sources: Sequence[Tensor], subtracts: Sequence[bool], row: int) -> Tensor:
    """Return (P, R) what the compiled kernel writes, for the P pairs i <= j in order."""
    n_rows = -(-sources[0].numel() // row)
    width = min(row, LANES)
    # A single row need not be filled up to its end: zeros change no sum.
    length = row if n_rows > 1 else -(-sources[0].numel() // width) * width
    basis = torch.zeros((len(sources), n_rows * length), dtype=torch.float64)
    for k, (source, is_difference) in enumerate(zip(sources, subtracts, strict=True)):
        basis[k, : source.numel()] = source
        if is_difference:
            basis[k] -= basis[0]
    groups = basis.reshape(len(sources), n_rows, -1, width)
    lines = []
    for k in range(len(sources)):
        products = groups[k] * groups[k:]
        lanes = torch.zeros((len(sources) - k, n_rows, width), dtype=torch.float64)
        for group in range(products.shape[2]):
            lanes += products[:, :, group]
        while lanes.shape[-1] > 1:
            half = lanes.shape[-1] // 2
            lanes = lanes[..., :half] + lanes[..., half:]
        lines.append(lanes[..., 0])
    return torch.cat(lines)


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
            parts = self._reader.flat_parts(low, min(low + piece, stop))
            sums = row_sums(gram_rows(*parts, row), self._block // row)
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
    if sources[0] == space.sources[0]:
        return np.ascontiguousarray(gram[_chosen(space.sources, sources)])
    rows = _basis_rows(space.sources, sources)
    return rows @ gram @ rows.T


@lru_cache(maxsize=64)
def _chosen(old: tuple[str, ...], new: tuple[str, ...]) -> tuple[Array, ...]:
    """Return the rows and columns of a matrix over some of its sources."""
    chosen = [old.index(name) for name in new]
    return np.ix_(chosen, chosen)


@lru_cache(maxsize=64)
def _basis_rows(old: tuple[str, ...], new: tuple[str, ...]) -> FloatArray:
    """Return (J, K) the vectors (r_0, r_1 - r_0, …) over the basis (s_0, s_1 - s_0, …)."""
    chosen = [old.index(name) for name in new]
    rows = np.zeros((len(chosen), len(old)))
    for row, source in enumerate(chosen):
        if source:
            rows[row, source] = 1.0
        if row:
            rows[row] -= rows[0]
    # Every r_k holds s_0 once, so it stays in r_0 and cancels in the differences.
    rows[0, 0] = 1.0
    rows.flags.writeable = False
    return rows
