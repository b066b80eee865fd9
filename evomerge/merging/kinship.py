"""How the models of a merge are related: lengths and angles, from samples of their matrices.

Norms and biases are left out: those of unrelated models look alike. Shape letters: K sources,
G groups, n elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from evomerge.core.arrays import FloatArray
from evomerge.core.grouping import assign_groups
from evomerge.core.model_space import ModelSpace
from evomerge.core.tensor_names import place
from evomerge.merging.flat_reader import FlatReader
from evomerge.merging.source import TensorSource

SAMPLE = 1 << 23
"""Elements that are read of each model, at most about."""
_SLICE = 1 << 12  # elements that are read in one go; 8 to 32 kB of a file


@dataclass(frozen=True, eq=False)
class Kinship:
    """Inner products of K models, estimated from the same elements of each.

    Attributes:
        sources: (K,) ids; the base first when there is one.
        groups: (G,) labels of the layers.
        grams: (G, K, K) float64 over the basis (s_0, s_1 - s_0, …), scaled up to all elements.
        n_sampled: Elements that were read of each model.
        n_elements: Elements of their matrices.
    """

    sources: tuple[str, ...]
    groups: tuple[str, ...]
    grams: FloatArray
    n_sampled: int
    n_elements: int

    def whole(self) -> FloatArray:
        """Return the (K, K) Gram matrix over all layers."""
        total: FloatArray = self.grams.sum(axis=0)
        return total


def kinship(
    space: ModelSpace, sources: Mapping[str, TensorSource], *, sample: int = SAMPLE
) -> Kinship | None:
    """Return how the sources of a space are related; None where it merges no matrix.

    Args:
        space: The aligned models.
        sources: Every one of them by id.
        sample: Elements to read of each model, about; evenly spread slices of every matrix.
    """
    matrices = [
        tensor.spec
        for tensor in space.merged
        if len(tensor.spec.shape) > 1 and place(tensor.spec.name).kind != "norm"
    ]
    if not matrices:
        return None
    labels, groups = assign_groups("layer", [spec.name for spec in matrices])
    reader = FlatReader(space, sources)
    n_sources = len(space.sources)
    grams = np.zeros((len(labels), n_sources, n_sources))
    n_sampled = 0
    for spec, group in zip(matrices, groups, strict=True):
        gram, n_read = np.zeros((n_sources, n_sources)), 0
        for start, stop in _slices(spec.n_elements, max(sample // len(matrices), _SLICE)):
            gram += _gram(reader, spec.name, start, stop)
            n_read += stop - start
        grams[group] += gram * (spec.n_elements / n_read)
        n_sampled += n_read
    n_elements = sum(spec.n_elements for spec in matrices)
    return Kinship(space.sources, labels, grams, n_sampled, n_elements)


def cosine_to_first(gram: FloatArray, source: int) -> float:
    """Return the cosine of the angle between a source and source 0, 0 for a zero vector.

    Args:
        gram: (K, K) over (s_0, s_1 - s_0, …).
        source: k > 0.
    """
    first, along, change = gram[0, 0], gram[0, source], gram[source, source]
    lengths = np.sqrt(first * max(first + 2 * along + change, 0.0))
    return float((first + along) / lengths) if lengths else 0.0


def relative_change(gram: FloatArray, source: int) -> float:
    """Return ‖s_k − s_0‖ / ‖s_0‖; infinity where s_0 is zero."""
    first, change = gram[0, 0], max(gram[source, source], 0.0)
    return float(np.sqrt(change / first)) if first else float("inf")


def change_cosine(gram: FloatArray, one: int, other: int) -> float:
    """Return the cosine between s_i − s_0 and s_j − s_0, 0 where either is zero."""
    lengths = np.sqrt(max(gram[one, one] * gram[other, other], 0.0))
    return float(gram[one, other] / lengths) if lengths else 0.0


def _slices(n: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of about `wanted` elements in all, evenly spread over [0, n)."""
    count = max(wanted // _SLICE, 1)
    if n <= count * _SLICE:
        yield 0, n
        return
    for index in range(count):
        start = index * (n - _SLICE) // max(count - 1, 1)
        yield start, start + _SLICE


def _gram(reader: FlatReader, name: str, start: int, stop: int) -> FloatArray:
    parts, subtracts = reader.parts(name, start, stop)
    # float64: fine-tunes of one base have cosine > 0.999, and float32 loses the angle.
    rows = torch.stack([part.double().reshape(-1) for part in parts])
    for k, is_whole in enumerate(subtracts):
        if is_whole:
            rows[k] -= rows[0]
    gram: FloatArray = (rows @ rows.T).numpy()
    return gram
