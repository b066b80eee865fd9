"""Merging P candidates at once, each piece of the sources read from memory a single time.

One candidate moves (K + 1) model sizes of memory; P of them one after the other P (K + 1), together
only K + P. Weighted sums of the same tensors go through one kernel; other methods merge candidate
after candidate, tensor by tensor, while the tensor's sources are still in the cache.

Shape letters: P candidates, K sources, n elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from evomerge.core.model_space import ModelSpace
from evomerge.core.recipe import Recipe
from evomerge.errors import ConfigError
from evomerge.merging.derived import Derived
from evomerge.merging.fused import as_array, kernel_arrays, weighted_sum
from evomerge.merging.layer_scale import LayerScaled
from evomerge.merging.materialize import build_operators, check_merged, materialize
from evomerge.merging.operator import FiniteResults, MergeOperator
from evomerge.merging.source import TensorSource
from evomerge.merging.threads import in_threads


def merge_population(
    recipes: Sequence[Recipe],
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    derived: Derived,
    *,
    out_dtype: torch.dtype | None = None,
    into: Sequence[Mapping[str, Tensor]] | None = None,
) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Yield (name, (P,) tensors) for every tensor of the merged models.

    Bit for bit what `materialize` gives for each recipe. P tensors of one name are in memory.

    Args:
        recipes: (P,) of any methods.
        space: The aligned models.
        sources: Sources by id.
        derived: What the methods of all the recipes need; see `derive_for`.
        out_dtype: As for `materialize`.
        into: (P,) places the results may be written to; as for `materialize`.

    Raises:
        ConfigError: There is no recipe, or one does not fit.
        EvaluationError: A merged tensor holds NaN or infinity.
    """
    if not recipes:
        raise ConfigError("a population needs at least one recipe")
    members = [
        _Member(recipe, build_operators(recipe, space), {} if into is None else into[p])
        for p, recipe in enumerate(recipes)
    ]

    def stream(member: _Member, names: Sequence[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        return materialize(
            member.recipe,
            space,
            sources,
            derived,
            out_dtype=out_dtype,
            into=member.into,
            operators=member.operators,
            names=names,
            add=member.deferred if names is None and member.can_wait else None,
        )

    streams = [stream(member) for member in members]
    for tensor in space.tensors:
        merged = [next(part)[1] for part in streams]
        waiting: list[_Sum] = []
        unchecked: list[Tensor] = []
        for p, member in enumerate(members):
            sums = member.take()
            if _fill(merged[p], sums):
                waiting += sums
                unchecked.append(merged[p])
            elif sums:  # the method went on with the sum: it cannot wait
                merged[p] = next(stream(member, [tensor.spec.name]))[1]
            elif member.can_wait and tensor.action == "merge":
                check_merged(tensor, merged[p], merged[p].dtype, FiniteResults())
        if not _compute(waiting):
            for result in unchecked:
                check_merged(tensor, result, result.dtype, FiniteResults())
        yield tensor.spec.name, tuple(merged)


@dataclass(frozen=True, eq=False)
class _Sum:
    """A weighted sum that is still to be computed, and the state its result had then."""

    terms: Sequence[tuple[float, Tensor]]
    out: Tensor
    version: int

    @property
    def key(self) -> tuple[object, ...]:
        """Equal for sums over the same elements of the same sources."""
        return (self.out.dtype, *((t.data_ptr(), t.numel(), t.dtype) for _, t in self.terms))


@dataclass(eq=False)
class _Member:
    recipe: Recipe
    operators: Sequence[MergeOperator]
    into: Mapping[str, Tensor]
    sums: list[_Sum] = field(default_factory=list)

    @property
    def can_wait(self) -> bool:
        """Whether no operator is known to work on with a weighted sum."""
        return not any(isinstance(operator, LayerScaled) for operator in self.operators)

    def deferred(self, terms: Sequence[tuple[float, Tensor]], out: Tensor) -> bool:
        """Note a weighted sum instead of computing it; say that it is finite, to be checked."""
        self.sums.append(_Sum(terms, out, out._version))
        return True

    def take(self) -> list[_Sum]:
        """Return the sums noted since the last call."""
        sums, self.sums = self.sums, []
        return sums


def _fill(merged: Tensor, sums: Sequence[_Sum]) -> bool:
    """Return whether the sums, once computed, are the whole of `merged`, untouched since."""
    storage = merged.untyped_storage().data_ptr()
    n_elements = sum(part.out.numel() for part in sums)
    return n_elements == merged.numel() > 0 and all(
        part.out.untyped_storage().data_ptr() == storage and part.out._version == part.version
        for part in sums
    )


def _compute(waiting: Sequence[_Sum]) -> bool:
    """Compute sums, those over the same elements together; return whether all are finite."""
    groups: dict[tuple[object, ...], list[_Sum]] = {}
    for part in waiting:
        groups.setdefault(part.key, []).append(part)
    return all([_together(sums) for sums in groups.values()])


def _together(sums: Sequence[_Sum]) -> bool:
    """Compute sums over the same elements; return whether all results are known to be finite."""
    arrays = kernel_arrays([tensor for _, tensor in sums[0].terms])
    outs = [as_array(part.out) for part in sums]
    target = outs[0]
    if arrays is None or target is None or any(out is None for out in outs):
        return all([weighted_sum(part.terms, part.out) for part in sums])
    from evomerge.merging.kernels import compiled

    coefficients = np.array([[weight for weight, _ in part.terms] for part in sums], np.float32)
    size = target.itemsize
    addresses = np.array([part.out.data_ptr() for part in sums], dtype=np.int64)
    like = np.zeros(1, dtype=target.dtype)

    def part(start: int, stop: int) -> bool:
        slices = tuple(source[start:stop] for source in arrays)
        finite: bool = compiled.population_sum(addresses + start * size, like, slices, coefficients)
        return finite

    return in_threads(part, sums[0].out.numel())
