"""What is computed once per set of sources and serves every candidate.

Gram matrices, histograms and quantile tables for magnitude thresholds, rank codes. Given a
cache, what it holds is not computed again, and what it lacks is added to it; the bits are the
same without one.

All sums run in float64 over rows of fixed length in a fixed order (`sums`), so that neither the
number of threads nor the memory at hand changes a bit. Models are streamed in pieces.

Shape letters: K sources, B blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.model_space import ModelSpace
from evomerge.core.tensor_names import place
from evomerge.errors import ConfigError
from evomerge.merging.cache import CacheEntry, TensorCache
from evomerge.merging.cached import (
    Filled,
    Statistic,
    TaskVectorStatistic,
    exhaust,
    layout_key,
    remember,
)
from evomerge.merging.flat_reader import PIECE, FlatReader
from evomerge.merging.operator import Pool
from evomerge.merging.quantiles import QuantileTable, table_tensors
from evomerge.merging.rank_codes import has_rank_codes, rank_codes
from evomerge.merging.source import TensorSource, content_key
from evomerge.merging.sums import ROW, exact_column_sums, row_sums
from evomerge.merging.thresholds import GlobalThresholds
from evomerge.merging.variances import VarianceTables

_GRAM = "gram:"
QUANTILES = "quantiles"
RANK_CODES = "rank-codes"
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


def _pool_label(name: str) -> str:
    where = place(name)
    return where.section if where.layer is None else f"layer.{where.layer}"


@dataclass(frozen=True, eq=False)
class Derived:
    """Results that merge operators ask for.

    Attributes:
        grams: Tensor name -> (K, K) float64, see `tensor_grams`; empty unless needed.
        thresholds: Global thresholds; None unless needed.
        tables: Quantile tables, computed when they are first asked for; None without a cache.
        codes: Rank codes as far as they are prepared; None without a cache.
        variances: Tables of variances, computed when first asked for; None without a cache.
    """

    grams: Mapping[str, FloatArray] = field(default_factory=dict)
    thresholds: GlobalThresholds | None = None
    tables: TaskVectorStatistic | None = None
    codes: TaskVectorStatistic | None = None
    variances: VarianceTables | None = None

    def quantiles(self, source: str, name: str) -> QuantileTable | None:
        """Return the quantile table of one expert's task vector of one tensor, if kept."""
        found = None if self.tables is None else self.tables.of(source, name)
        return None if found is None else QuantileTable.of(found)

    def rank_codes(self, source: str, name: str) -> Tensor | None:
        """Return the rank codes of one expert's task vector of one tensor, if prepared."""
        found = None if self.codes is None else self.codes.peek(source, name)
        return None if found is None else found["codes"]

    def pooled_gram(self, name: str, pool: Pool) -> FloatArray:
        """Return (K, K) the sum of the Gram matrices of a tensor's layer, or of the model."""
        label = _pool_label(name) if pool == "layer" else "model"
        return self._pooled_grams[label]

    @cached_property
    def _pooled_grams(self) -> dict[str, FloatArray]:
        pooled: dict[str, FloatArray] = {}
        for name, gram in self.grams.items():
            for label in (_pool_label(name), "model"):
                pooled[label] = pooled[label] + gram if label in pooled else gram
        return pooled

    def to_arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return what `numpy.savez` can store without pickling: the Gram matrices.

        Only what sums are in, whose bits a run must keep; thresholds, tables and codes are the
        same whoever computes them.
        """
        return {f"{_GRAM}{name}": gram for name, gram in self.grams.items()}

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        space: ModelSpace,
        sources: Mapping[str, TensorSource],
        cache: TensorCache | None = None,
    ) -> Derived:
        """Return what `to_arrays` wrote, for the same models; the rest when it is asked for.

        Raises:
            ConfigError: A matrix does not fit the number of sources.
        """
        grams: dict[str, FloatArray] = {}
        k = len(space.sources)
        for key, value in arrays.items():
            if key.startswith(_GRAM):
                if value.shape != (k, k):
                    raise ConfigError(f"{key} is {value.shape}, expected {(k, k)}")
                grams[key.removeprefix(_GRAM)] = np.asarray(value, dtype=np.float64)
        if not space.has_base:
            return cls(grams)
        thresholds = GlobalThresholds(space, sources, cache)
        if cache is None:
            return cls(grams, thresholds)
        return cls(
            grams,
            thresholds,
            quantile_tables(space, sources, cache),
            row_rank_codes(space, sources, cache),
            VarianceTables(space, sources, cache),
        )


def quantile_tables(
    space: ModelSpace, sources: Mapping[str, TensorSource], cache: TensorCache
) -> TaskVectorStatistic:
    """Return the tables of every merged tensor and expert, nothing computed yet."""
    return TaskVectorStatistic(QUANTILES, 1, table_tensors, space, sources, cache)


def row_rank_codes(
    space: ModelSpace, sources: Mapping[str, TensorSource], cache: TensorCache
) -> TaskVectorStatistic:
    """Return the rank codes of every merged tensor and expert, nothing computed yet."""

    def compute(delta: Tensor) -> dict[str, Tensor]:
        return {"codes": rank_codes(delta)}

    return TaskVectorStatistic(
        RANK_CODES, 1, compute, space, sources, cache, applies=has_rank_codes
    )


def statistics_for(
    operators: Sequence[type] | None,
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    cache: TensorCache,
) -> list[Statistic]:
    """Return the kinds that operator classes need, small ones first; None: all but blocks."""

    def is_needed(flag: str) -> bool:
        return operators is None or _is_needed(operators, flag)

    found: list[Statistic] = []
    if is_needed("needs_gram"):
        found.append(TensorGrams(space, sources, cache))
    if not space.has_base:
        return found
    if is_needed("needs_thresholds"):
        found.append(GlobalThresholds(space, sources, cache))
        found.append(quantile_tables(space, sources, cache))
    if is_needed("needs_ranks"):
        found.append(row_rank_codes(space, sources, cache))
    if is_needed("needs_variances"):
        found.append(VarianceTables(space, sources, cache))
    return found


def _is_needed(operators: Sequence[type], flag: str) -> bool:
    return any(getattr(operator, flag, False) for operator in operators)


def derive_for(
    operator: type | Sequence[type],
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    cache: TensorCache | None = None,
    *,
    leave_out: Collection[str] = (),
) -> Derived:
    """Return what operator classes need.

    Args:
        operator: Registered merge operator, or several that one search mixes.
        space: The aligned models.
        sources: Every one of them by id.
        cache: With one, everything is found in it or computed into it now. Without one, Grams
            are computed now, global thresholds when they are asked for, the rest per candidate.
        leave_out: Kinds that are not computed, only used if the cache has them.
    """
    operators = [operator] if isinstance(operator, type) else operator
    if cache is None:
        needs_gram = _is_needed(operators, "needs_gram")
        needs_thresholds = _is_needed(operators, "needs_thresholds")
        return Derived(
            tensor_grams(space, sources) if needs_gram else {},
            GlobalThresholds(space, sources) if needs_thresholds and space.has_base else None,
        )
    kinds = {
        statistic.kind: statistic for statistic in statistics_for(operators, space, sources, cache)
    }
    for statistic in kinds.values():
        if statistic.kind not in leave_out:
            exhaust(statistic)
    grams, thresholds = kinds.get(TensorGrams.kind), kinds.get(GlobalThresholds.kind)
    tables, codes = kinds.get(QUANTILES), kinds.get(RANK_CODES)
    variances = kinds.get(VarianceTables.kind)
    return Derived(
        grams.grams if isinstance(grams, TensorGrams) else {},
        thresholds if isinstance(thresholds, GlobalThresholds) else None,
        tables if isinstance(tables, TaskVectorStatistic) else None,
        codes if isinstance(codes, TaskVectorStatistic) else None,
        variances if isinstance(variances, VarianceTables) else None,
    )
