"""Computing a recipe: one streaming pass over the tensors of the merged model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TypeVar

import torch
from torch import Tensor

from evomerge.core.ancestry import is_made
from evomerge.core.arrays import FloatArray
from evomerge.core.grouping import assign_groups
from evomerge.core.model_space import ModelSpace, SpaceTensor
from evomerge.core.recipe import Recipe
from evomerge.core.tensor_names import count_layers
from evomerge.errors import ConfigError, EvaluationError, nearest
from evomerge.merging.ancestor_source import with_made
from evomerge.merging.apart import empty_apart
from evomerge.merging.derived import Derived, derive_for
from evomerge.merging.fused import MIN_ELEMENTS, WeightedSum, cast, weighted_sum
from evomerge.merging.grams import change_basis
from evomerge.merging.low_rank import LowRank, read_factors
from evomerge.merging.operator import (
    FiniteResults,
    GlobalThreshold,
    MergeOperator,
    Pool,
    PooledGram,
    TensorInputs,
    merge_operators,
)
from evomerge.merging.plan import (
    PIECE,
    Roles,
    assign_roles,
    build_operators,
    plan_paths,
    segments_of,
)
from evomerge.merging.quantiles import QuantileTable
from evomerge.merging.source import TensorSource

__all__ = ["build_operators", "materialize", "plan_paths"]

_T = TypeVar("_T")

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def materialize(
    recipe: Recipe,
    space: ModelSpace,
    sources: Mapping[str, TensorSource],
    derived: Derived | None = None,
    *,
    device: torch.device | str = "cpu",
    out_dtype: torch.dtype | None = None,
    names: Collection[str] | None = None,
    into: Mapping[str, Tensor] | None = None,
    operators: Sequence[MergeOperator] | None = None,
    add: WeightedSum | None = None,
    is_plain: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the merged model, in the order of `space.tensors`.

    Only one tensor name is in memory at a time. Arithmetic is float32 with one rounding at
    the end. Tensors that are copied, or that equal a source, may be views of that source's
    file: do not write to them.

    Args:
        recipe: What to compute; its sources may be a subset or permutation of the space's.
        space: The aligned models.
        sources: Sources by id; the donor (`space.sources[0]`) and those of the recipe.
        derived: From `derive_for` with the same space; computed here when None.
        device: Where to compute; the results stay there.
        out_dtype: Dtype of float tensors; None keeps the donor's.
        names: Yield only these tensors; None for all.
        into: Tensor name -> contiguous tensor that its result may be written to, such as a
            resident model's parameter. Used where dtype, shape and device fit and the merge
            method can; the yielded tensor is then this one.
        operators: From `build_operators`, when at hand.
        add: Computes weighted sums, perhaps later: results are then not checked to be finite.
        is_plain: Use no compiled kernels; the results are the same, bit for bit.

    Raises:
        ConfigError: The recipe does not fit the space; see `build_operators`.
        EvaluationError: A merged tensor holds NaN or infinity.
    """
    operators = operators or build_operators(recipe, space)
    _check_names(names, space)
    cls = merge_operators.get(recipe.operator)
    derived = derive_for(cls, space, sources) if derived is None else derived
    job = _Job(
        recipe,
        space,
        with_made(sources, recipe, space, derived.ancestors),
        derived,
        assign_roles(recipe, space),
        torch.device(device),
        bool(getattr(cls, "needs_gram", False)),
        count_layers(tensor.spec.name for tensor in space.tensors),
        bool(getattr(cls, "needs_factors", False)),
        into or {},
        add,
        sys.maxsize if is_plain else _least_compiled(space),
    )
    merged = [tensor.spec.name for tensor in space.merged]
    rows: tuple[int, ...] = ()
    if recipe.breaks is None:
        _, rows = assign_groups(recipe.grouping, merged)
    return _stream(job, operators, dict(zip(merged, rows, strict=False)), out_dtype, names)


def _least_compiled(space: ModelSpace) -> int:
    """Return from how many elements on kernels are used: all, where large tensors need them."""
    is_large = any(tensor.spec.n_elements >= MIN_ELEMENTS for tensor in space.merged)
    return 1 if is_large else MIN_ELEMENTS


@dataclass(frozen=True, eq=False)
class _Job:
    recipe: Recipe
    space: ModelSpace
    sources: Mapping[str, TensorSource]
    derived: Derived
    roles: Roles
    device: torch.device
    needs_gram: bool
    n_layers: int
    needs_factors: bool
    into: Mapping[str, Tensor]
    add: WeightedSum | None
    least_compiled: int
    finite: FiniteResults = field(default_factory=FiniteResults)

    @cached_property
    def adds(self) -> WeightedSum:
        """What computes weighted sums."""
        return self.add or partial(weighted_sum, least=self.least_compiled)

    @cached_property
    def longest(self) -> int | None:
        """Most elements of a stretch; None: any number."""
        return PIECE if any(map(is_made, self.recipe.sources)) else None

    @cached_property
    def is_cpu(self) -> bool:
        """Whether tensors are merged where sources are read."""
        return self.device.type == "cpu"

    @cached_property
    def opened(self) -> tuple[TensorSource | None, tuple[TensorSource, ...]]:
        """The base, if there is one, and the (E,) experts."""
        base = None if self.roles.base is None else self.sources[self.roles.base]
        return base, tuple(self.sources[source] for source in self.roles.experts)

    @cached_property
    def expert_digests(self) -> tuple[str, ...]:
        """(E,) content digests of the experts."""
        return tuple(self.sources[source].digest for source in self.roles.experts)

    def target(self, tensor: SpaceTensor, dtype: torch.dtype) -> Tensor | None:
        """Return where a tensor may be written, if there is such a place and it fits."""
        place = self.into.get(tensor.spec.name)
        fits = (
            place is not None
            and place.dtype == dtype
            and tuple(place.shape) == tensor.spec.shape
            and place.device == self.device
            and place.is_contiguous()
        )
        return place if fits else None

    def inputs(
        self,
        name: str,
        out_dtype: torch.dtype,
        start: int = 0,
        stop: int | None = None,
        *,
        into: Tensor | None = None,
    ) -> TensorInputs:
        """Return one tensor in every source, whole, or elements [start, stop) of it."""
        base, experts = self.opened

        def read(source: TensorSource) -> Tensor:
            tensor = source.read(name) if stop is None else source.read_range(name, start, stop)
            return tensor if self.is_cpu else tensor.to(self.device)

        def exact(source: TensorSource) -> Tensor | None:
            delta = source.exact_delta(name)
            if delta is not None and stop is not None:
                delta = delta.reshape(-1)[start:stop]
            return None if delta is None else delta.to(self.device, torch.float32)

        # Lists: made a fifth faster than by generators, once per tensor of every candidate.
        return TensorInputs(
            name=name,
            base=None if base is None else read(base),
            experts=tuple([read(source) for source in experts]),
            out_dtype=out_dtype,
            source_keys=self.expert_digests,
            gram=self._gram(name),
            global_threshold=self.threshold,
            exact_deltas=() if base is None else tuple([exact(source) for source in experts]),
            pooled_gram=self._pooled_gram(name),
            n_layers=self.n_layers,
            factors=self._factors(name) if stop is None else (),
            quantiles=self._per_expert(self.derived.quantiles, name, stop),
            rank_codes=self._per_expert(self.derived.rank_codes, name, stop),
            variance_table=self._variances(name, stop),
            into=into,
            finite=self.finite,
            add=self.adds,
            least_compiled=self.least_compiled,
        )

    def _per_expert(
        self, find: Callable[[str, str], _T | None], name: str, stop: int | None
    ) -> Callable[[int], _T | None]:
        """Return expert index -> what is prepared for a whole tensor, None for a slice."""
        if stop is not None or self.roles.base is None:
            return lambda _expert: None
        experts = self.roles.experts
        return lambda expert: find(experts[expert], name)

    def _variances(self, name: str, stop: int | None) -> Callable[[], QuantileTable | None]:
        tables = self.derived.variances
        fits = tables is not None and stop is None and set(self.roles.experts) == tables.experts
        return lambda: tables.of(name) if tables is not None and fits else None

    def _factors(self, name: str) -> tuple[LowRank | None, ...]:
        if not self.needs_factors or self.roles.base is None:
            return ()
        found = (read_factors(self.sources[source], name) for source in self.roles.experts)
        return tuple(None if part is None else part.to(self.device) for part in found)

    def _gram(self, name: str) -> FloatArray | None:
        if not self.needs_gram:
            return None
        if name not in self.derived.grams:
            raise ConfigError(f"no Gram matrix was prepared for {name}; see derive_for")
        return change_basis(self.derived.grams[name], self.space, self.recipe.sources)

    def _pooled_gram(self, name: str) -> PooledGram:
        def pooled(pool: Pool) -> FloatArray:
            if not self.needs_gram:
                raise ConfigError("this merge was prepared without Gram matrices")
            gram = self.derived.pooled_gram(name, pool)
            return change_basis(gram, self.space, self.recipe.sources)

        return pooled

    @cached_property
    def threshold(self) -> GlobalThreshold:
        """The thresholds over all merged tensors."""
        thresholds, experts = self.derived.thresholds, self.roles.experts

        def threshold(expert: int, density: float, exact: bool) -> float:
            if thresholds is None:
                raise ConfigError("this merge was prepared without global thresholds")
            return thresholds.threshold(experts[expert], density, exact=exact)

        return threshold


def _stream(
    job: _Job,
    operators: Sequence[MergeOperator],
    row_of: Mapping[str, int],
    out_dtype: torch.dtype | None,
    names: Collection[str] | None,
) -> Iterator[tuple[str, Tensor]]:
    donor = job.sources[job.space.sources[0]]
    for tensor in job.space.tensors:
        name = tensor.spec.name
        if names is not None and name not in names:
            continue
        if tensor.action == "copy":
            copied = donor.read(name).to(job.device)
            if out_dtype is not None and copied.is_floating_point():
                copied = cast(copied, out_dtype)
            yield name, copied
            continue
        dtype = DTYPES[tensor.spec.dtype] if out_dtype is None else out_dtype
        job.finite.clear()
        if job.recipe.breaks is None:
            inputs = job.inputs(name, dtype, into=job.target(tensor, dtype))
            merged = operators[row_of[name]].merge(inputs)
        else:
            merged = _merge_segments(job, operators, tensor, dtype)
        if job.add is None:
            check_merged(tensor, merged, dtype, job.finite)
        yield name, merged


def _merge_segments(
    job: _Job, operators: Sequence[MergeOperator], tensor: SpaceTensor, dtype: torch.dtype
) -> Tensor:
    """Return one tensor whose stretches belong to different segments."""
    assert job.recipe.breaks is not None
    name = tensor.spec.name
    stretches = segments_of(tensor, job.recipe.breaks, longest=job.longest)
    out = job.target(tensor, dtype)
    if len(stretches) == 1:
        return operators[stretches[0][0]].merge(job.inputs(name, dtype, into=out))
    if out is None:
        out = empty_apart(tensor.spec.shape, dtype, job.device)
    are_finite = True
    for segment, start, stop in stretches:
        into = out.view(-1)[start:stop]
        part = operators[segment].merge(job.inputs(name, dtype, start, stop, into=into))
        if part.data_ptr() != into.data_ptr():
            into.copy_(part)
        are_finite &= part in job.finite
    if are_finite:
        job.finite.add(out)
    return out


def check_merged(
    tensor: SpaceTensor, merged: Tensor, dtype: torch.dtype, finite: FiniteResults
) -> None:
    """Check shape, dtype, and that a merged tensor not among `finite` holds only finite numbers."""
    name = tensor.spec.name
    if tuple(merged.shape) != tensor.spec.shape or merged.dtype != dtype:
        raise EvaluationError(
            f"{name}: the operator returned {tuple(merged.shape)} {merged.dtype}, expected "
            f"{tensor.spec.shape} {dtype}"
        )
    if merged in finite:
        return
    # The sum of a tensor with a NaN or infinity is not finite; it is ten times faster to get than
    # `isfinite` of every element, which is only asked when the sum itself may have overflowed.
    total = merged.sum(dtype=torch.promote_types(torch.float32, dtype))
    if not bool(torch.isfinite(total)) and not bool(torch.isfinite(merged).all()):
        n_bad = int((~torch.isfinite(merged)).sum())
        raise EvaluationError(
            f"{name}: {n_bad} of {merged.numel()} merged elements are NaN or infinite. Check the "
            "sources for NaN and keep weights and scales in a smaller range."
        )


def _check_names(names: Collection[str] | None, space: ModelSpace) -> None:
    known = [tensor.spec.name for tensor in space.tensors]
    unknown = sorted(set(names or ()) - set(known))
    if unknown:
        raise ConfigError(
            f"{unknown[0]!r} is not a tensor of the merged model.{nearest(unknown[0], known)}"
        )
