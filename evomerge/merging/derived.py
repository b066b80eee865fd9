"""What is computed once per set of sources and serves every candidate.

Gram matrices, histograms and quantile tables for magnitude thresholds, rank codes. Given a
cache, what it holds is not computed again, and what it lacks is added to it; the bits are the
same without one.

Shape letter: K sources.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.model_space import ModelSpace
from evomerge.core.tensor_names import place
from evomerge.errors import ConfigError
from evomerge.merging.ancestor_store import AncestorStore
from evomerge.merging.cache import TensorCache
from evomerge.merging.cached import (
    Statistic,
    TaskVectorStatistic,
    exhaust,
)
from evomerge.merging.grams import TensorGrams, tensor_grams
from evomerge.merging.operator import Pool
from evomerge.merging.quantiles import QuantileTable, table_tensors
from evomerge.merging.rank_codes import rank_codes
from evomerge.merging.source import TensorSource
from evomerge.merging.thresholds import GlobalThresholds
from evomerge.merging.variances import VarianceTables

_GRAM = "gram:"
QUANTILES = "quantiles"
RANK_CODES = "rank-codes"


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
        ancestors: Tensors of candidates that later recipes name as sources.
    """

    grams: Mapping[str, FloatArray] = field(default_factory=dict)
    thresholds: GlobalThresholds | None = None
    tables: TaskVectorStatistic | None = None
    codes: TaskVectorStatistic | None = None
    variances: VarianceTables | None = None
    ancestors: AncestorStore = field(default_factory=AncestorStore)
    # Tables looked at so far: views, whose numbers `tables` holds anyway.
    _known: dict[tuple[str, str], QuantileTable] = field(default_factory=dict, init=False)

    def quantiles(self, source: str, name: str) -> QuantileTable | None:
        """Return the quantile table of one expert's task vector of one tensor, if kept."""
        if (source, name) not in self._known:
            found = None if self.tables is None else self.tables.of(source, name)
            if found is None:
                return None
            self._known[source, name] = QuantileTable.of(found)
        return self._known[source, name]

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
        ancestors = AncestorStore(cache)
        if not space.has_base:
            return cls(grams, ancestors=ancestors)
        thresholds = GlobalThresholds(space, sources, cache)
        if cache is None:
            return cls(grams, thresholds)
        return cls(
            grams,
            thresholds,
            quantile_tables(space, sources, cache),
            row_rank_codes(space, sources, cache),
            VarianceTables(space, sources, cache),
            ancestors,
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

    return TaskVectorStatistic(RANK_CODES, 1, compute, space, sources, cache)


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
        AncestorStore(cache),
    )
