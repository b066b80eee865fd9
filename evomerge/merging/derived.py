"""What is computed once per set of sources and serves every candidate: Grams and thresholds.

All sums run in float64 over rows of fixed length in a fixed order (`sums`), so that neither
the number of threads nor the memory at hand changes a bit. Models are streamed in pieces.

Shape letters: K sources, B blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.core.model_space import ModelSpace
from evomerge.core.tensor_names import place
from evomerge.errors import ConfigError
from evomerge.merging.flat_reader import PIECE, FlatReader
from evomerge.merging.operator import Pool
from evomerge.merging.source import TensorSource
from evomerge.merging.sums import ROW, exact_column_sums, row_sums
from evomerge.merging.thresholds import GlobalThresholds

_GRAM = "gram:"
_HISTOGRAM = "histogram:"


def tensor_grams(space: ModelSpace, sources: Mapping[str, TensorSource]) -> dict[str, FloatArray]:
    """Return the Gram matrix of every merged tensor.

    Returns:
        Tensor name -> (K, K) float64 over the basis (s_0, s_1 - s_0, …) of `space.sources`.
    """
    reader = FlatReader(space, sources)
    return {
        tensor.spec.name: _tensor_gram(reader, tensor.spec.name, tensor.spec.n_elements)
        for tensor in space.merged
    }


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


def block_grams(space: ModelSpace, sources: Mapping[str, TensorSource], block: int) -> FloatArray:
    """Return the Gram matrix of every block of the flattened order of merged tensors.

    Args:
        space: The aligned models.
        sources: Every source of the space by id.
        block: Elements per block, a power of two; blocks run across tensors, and the last
            one may be shorter.

    Returns:
        (B, K, K) float64 over the basis (s_0, s_1 - s_0, …); for `LinearSpan.from_block_grams`.
    """
    if block < 1 or block & (block - 1):
        raise ValueError(f"block must be a power of two, is {block}")
    reader = FlatReader(space, sources)
    row = min(block, ROW)
    piece = max(block, PIECE)
    parts: list[FloatArray] = []
    for start in range(0, space.n_elements, piece):
        basis = reader.flat_basis(start, min(start + piece, space.n_elements))
        grams = row_sums(_row_grams(basis, row), block // row)
        parts.append(grams.permute(2, 0, 1).numpy())
    return np.concatenate(parts)


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
    """

    grams: Mapping[str, FloatArray] = field(default_factory=dict)
    thresholds: GlobalThresholds | None = None

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
        """Return what `numpy.savez` can store without pickling: Grams, and histograms if any."""
        arrays: dict[str, np.ndarray[Any, Any]] = {
            f"{_GRAM}{name}": gram for name, gram in self.grams.items()
        }
        if self.thresholds is not None:
            for source, counts in self.thresholds.histograms.items():
                arrays[f"{_HISTOGRAM}{source}"] = counts
        return arrays

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, np.ndarray[Any, Any]],
        space: ModelSpace,
        sources: Mapping[str, TensorSource],
    ) -> Derived:
        """Return what `to_arrays` wrote, for the same models.

        Raises:
            ConfigError: A matrix does not fit the number of sources.
        """
        grams: dict[str, FloatArray] = {}
        histograms = {}
        k = len(space.sources)
        for key, value in arrays.items():
            if key.startswith(_GRAM):
                if value.shape != (k, k):
                    raise ConfigError(f"{key} is {value.shape}, expected {(k, k)}")
                grams[key.removeprefix(_GRAM)] = np.asarray(value, dtype=np.float64)
            elif key.startswith(_HISTOGRAM):
                histograms[key.removeprefix(_HISTOGRAM)] = np.asarray(value, dtype=np.int64)
        thresholds = None
        if space.has_base:
            thresholds = GlobalThresholds(space, sources, histograms=histograms)
        return cls(grams, thresholds)


def derive_for(operator: type, space: ModelSpace, sources: Mapping[str, TensorSource]) -> Derived:
    """Return what an operator class needs; thresholds are read lazily, Grams at once."""
    needs_gram = bool(getattr(operator, "needs_gram", False))
    needs_thresholds = bool(getattr(operator, "needs_thresholds", False))
    return Derived(
        tensor_grams(space, sources) if needs_gram else {},
        GlobalThresholds(space, sources) if needs_thresholds and space.has_base else None,
    )
