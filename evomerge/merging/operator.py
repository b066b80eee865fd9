"""MergeOperator: the one thing a new merge method has to implement.

A merge method is a frozen dataclass whose fields are its parameters *for one group of
tensors*, registered with `@merge_operator("name")`. `merge` sees one tensor name at a
time. Fields annotated with `Gene` can be searched; the others are settings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.errors import ConfigError
from evomerge.merging.apart import empty_apart
from evomerge.merging.fused import (
    FLOAT16_LIMIT,
    MIN_ELEMENTS,
    WeightedSum,
    cast,
    pass_size,
    weighted_sum,
)
from evomerge.merging.low_rank import LowRank
from evomerge.merging.philox import philox_uniform
from evomerge.merging.quantiles import QuantileTable, kth_largest, n_kept, snapped
from evomerge.merging.variances import variance_of, variance_threshold
from evomerge.registry import Registry
from evomerge.seeding import derive

merge_operators = Registry("merge method", "evomerge.merge_operators")
merge_operator = merge_operators.register

Compat = Literal["paper", "mergekit"]


class MergeOperator(Protocol):
    """A merge method with its parameters for one group of tensors.

    Class attributes:
        needs_base: It works on task vectors and cannot run without a base.
        n_models: Exact number of models it merges, the base not counted; None for any.
            A base with one expert counts as two models for methods that can do without a base.
        weights_over: Whether per-source parameters have one value per expert, or one for
            every source, the base included.
        sliceable: `merge` gives the same elements on any slice of a tensor, so that
            recipes in segments can use it.
        needs_gram: `tensors.gram` is filled in.
        needs_thresholds: `tensors.threshold` may be called; tables for it are prepared.
        needs_ranks: `tensors.rank_codes` are prepared.
    """

    needs_base: ClassVar[bool]
    n_models: ClassVar[int | None]
    weights_over: ClassVar[Literal["experts", "sources"]]
    sliceable: ClassVar[bool]
    needs_gram: ClassVar[bool]
    needs_thresholds: ClassVar[bool]
    needs_ranks: ClassVar[bool]

    def merge(self, tensors: TensorInputs) -> Tensor:
        """Return the merged tensor, same shape, in `tensors.out_dtype`."""
        ...


class OperatorDefaults:
    """Class attributes of an ordinary operator; inherit and override what differs."""

    needs_base: ClassVar[bool] = True
    n_models: ClassVar[int | None] = None
    weights_over: ClassVar[Literal["experts", "sources"]] = "experts"
    sliceable: ClassVar[bool] = False
    needs_gram: ClassVar[bool] = False
    needs_thresholds: ClassVar[bool] = False
    needs_ranks: ClassVar[bool] = False
    needs_variances: ClassVar[bool] = False  # tables for `variance_threshold` are prepared
    needs_factors: ClassVar[bool] = False  # `tensors.factors` is filled in


Op = TypeVar("Op", bound=type[Any])

# (expert index, density, exact) -> magnitude below which an element is trimmed, over all merged
# tensors; not exact: the lower edge of a histogram's bin, 2**-15 below it at most
GlobalThreshold = Callable[[int, float, bool], float]
Scope = Literal["tensor", "global"]

# Which tensors a pooled Gram matrix is summed over: those of this tensor's layer (for one outside
# the layers: of its side of them), or all that are merged.
Pool = Literal["layer", "model"]
PooledGram = Callable[[Pool], FloatArray]


def _no_thresholds(_expert: int, _density: float, _exact: bool) -> float:
    raise ConfigError("this merge was prepared without global thresholds")


def _no_table(_expert: int) -> None:
    return None


def _no_variances() -> None:
    return None


def _no_pooled_gram(_pool: Pool) -> FloatArray:
    raise ConfigError("this merge was prepared without Gram matrices of the whole model")


class FiniteResults:
    """The tensors already known to hold neither NaN nor infinity."""

    def __init__(self) -> None:
        """Start with none."""
        self._known: dict[tuple[int, int], Tensor] = {}

    def add(self, tensor: Tensor) -> None:
        """Remember a tensor; it is held, so that no other one gets its storage meanwhile."""
        self._known[tensor.data_ptr(), tensor.numel()] = tensor

    def clear(self) -> None:
        """Forget them all."""
        self._known.clear()

    def __contains__(self, tensor: Tensor) -> bool:
        return (tensor.data_ptr(), tensor.numel()) in self._known


@lru_cache(maxsize=1 << 16)
def _mask_key(seed: int, source_key: str, name: str) -> int:
    """Return `TensorInputs.mask_key`, which is the same for every candidate of a search."""
    return derive(seed, "mask", source_key, name)


@dataclass(frozen=True, eq=False)
class TensorInputs:
    """One tensor name, seen in every source.

    Attributes:
        name: Tensor name as in the base's files.
        base: The base's tensor in its own dtype, or None for a merge without a base.
        experts: (E,) the experts' tensors, in recipe order, each in its own dtype.
        out_dtype: Dtype of the result.
        source_keys: (E,) digest of each expert's file; random masks are keyed by it, so
            that they do not depend on the order of the experts.
        gram: (K, K) float64 Gram matrix of this tensor over the basis
            (s_0, s_1 - s_0, …, s_{K-1} - s_0) of `sources`, so that with a base the lower
            right block is the Gram matrix of the task vectors; None unless the operator
            asks for it. Differences keep the digits of small task vectors.
        global_threshold: See `GlobalThreshold`.
        exact_deltas: (E,) float32 task vectors that are known exactly (LoRA adapters), else None.
        pooled_gram: `gram` summed over a layer or the model; there when `gram` is.
        n_layers: Layers of the model, for methods that depend on the depth; 0 when not known.
        factors: (E,) the exact task vectors as low-rank products, else None; () unless the
            operator sets `needs_factors`, and for slices of a tensor.
        quantiles: Expert index -> table of this tensor's magnitudes, None where none is prepared.
        rank_codes: Expert index -> codes of `rank_codes.rank_codes`, None where none are prepared.
        variance_table: Table of the variances over these experts that are not zero, None where
            none is prepared.
        into: Where the result may be written, contiguous, of the result's shape and dtype; None
            for a new tensor. Undefined content; an operator need not use it.
        finite: Results that a kernel has found finite as it wrote them.
        add: What `weighted_sum` computes with; it may do so later.
        least_compiled: Elements from which on compiled kernels are used: fewer than `MIN_ELEMENTS`
            where the model's larger tensors have them compiled anyway.
    """

    name: str
    base: Tensor | None
    experts: tuple[Tensor, ...]
    out_dtype: torch.dtype
    source_keys: tuple[str, ...] = ()
    gram: FloatArray | None = None
    global_threshold: GlobalThreshold = _no_thresholds
    exact_deltas: tuple[Tensor | None, ...] = ()
    pooled_gram: PooledGram = _no_pooled_gram
    n_layers: int = 0
    factors: tuple[LowRank | None, ...] = ()
    quantiles: Callable[[int], QuantileTable | None] = _no_table
    rank_codes: Callable[[int], Tensor | None] = _no_table
    variance_table: Callable[[], QuantileTable | None] = _no_variances
    into: Tensor | None = None
    finite: FiniteResults = field(default_factory=FiniteResults)
    add: WeightedSum = weighted_sum
    least_compiled: int = MIN_ELEMENTS

    @property
    def is_vector(self) -> bool:
        """True for norms, biases and scalars: tensors with at most one axis."""
        return self.experts[0].dim() <= 1

    @property
    def sources(self) -> tuple[Tensor, ...]:
        """Return all K tensors, the base first when there is one."""
        return self.experts if self.base is None else (self.base, *self.experts)

    @cached_property
    def deltas(self) -> tuple[Tensor, ...]:
        """Return (E,) float32 task vectors, expert - base.

        float32 differences of bf16 or fp16 tensors are exact whenever the two are within
        a factor of two (Sterbenz); deltas rounded to bf16 would not be.
        """
        return tuple(self.delta(expert) for expert in range(len(self.experts)))

    def delta(self, expert: int, *, into: Tensor | None = None) -> Tensor:
        """Return one float32 task vector; unlike `deltas`, it is not kept, and all may not fit.

        Args:
            expert: Its number.
            into: Where to write it; None: new memory, or the task vector itself where it is known
                exactly, which may be a view of a file and must not be written to.
        """
        if self.base is None:
            raise ConfigError(f"{self.name}: task vectors need a base model")
        exact = self.exact_deltas[expert] if self.exact_deltas else None
        if exact is not None:
            return exact if into is None else into.copy_(exact)
        source = self.experts[expert]
        if into is None:
            into = empty_apart(source.shape, torch.float32, source.device)
        flat = into.view(-1)
        # In passes: torch would raise all of a narrow base at once, gigabytes of a large tensor.
        for at, (part,) in self.delta_slices([expert]):
            flat[at] = part
        return into

    def delta_slices(
        self, order: Sequence[int], *, run: int = 1
    ) -> Iterator[tuple[slice, list[Tensor]]]:
        """Yield a stretch, and its flat float32 task vectors of the experts in `order`.

        Never more than a pass of the task vectors is in memory; each part may be written to.

        Args:
            order: Positions of experts.
            run: Stretches are whole numbers of so many elements, but for the last.
        """
        if self.base is None:
            raise ConfigError(f"{self.name}: task vectors need a base model")
        base = self.base.reshape(-1)
        experts = [self.experts[k].reshape(-1) for k in order]
        exact = [self.exact_deltas[k] if self.exact_deltas else None for k in order]
        run = max(run, 1)  # rows of an empty tensor have no elements
        step = max(pass_size(base) // run, 1) * run
        for start in range(0, base.numel(), step):
            at = slice(start, min(start + step, base.numel()))
            origin = base[at].float()
            yield (
                at,
                [
                    expert[at].float() - origin
                    if delta is None
                    else delta.reshape(-1)[at].float().clone()
                    for expert, delta in zip(experts, exact, strict=True)
                ],
            )

    def seen_as(self, view: Callable[[Tensor], Tensor]) -> TensorInputs:
        """Return the inputs of a merge of a view of every source's tensor."""
        exact = [None if delta is None else view(delta) for delta in self.exact_deltas]
        return replace(
            self,
            base=None if self.base is None else view(self.base),
            experts=tuple([view(expert) for expert in self.experts]),
            exact_deltas=tuple(exact),
            into=None,
        )

    def threshold(
        self, expert: int, density: float, *, scope: Scope = "tensor", exact: bool = False
    ) -> float:
        """Return the magnitude from which on `density` keeps elements of a task vector.

        Args:
            expert: Index of the expert.
            density: Fraction kept, rounded down to whole elements, at least one.
            scope: Over what it is counted: this tensor, or all merged ones.
            exact: The magnitude of the smallest element kept. Otherwise the number kept is off
                by at most n / 2**15 (`quantiles`; "global": by one bin of `thresholds`), and a
                prepared table answers without reading the task vector.

        Raises:
            ConfigError: `scope` is "global" and the merge was prepared without.
        """
        if scope == "global":
            return self.global_threshold(expert, density, exact)
        n_elements = self.experts[expert].numel()
        return self.kept_threshold(expert, n_kept(density, n_elements), exact=exact)

    def kept_threshold(self, expert: int, count: int, *, exact: bool = False) -> float:
        """Return the magnitude of this tensor's `count`-th largest element; see `threshold`."""
        table = self.quantiles(expert)
        if table is None:
            source = self.experts[expert]
            own = empty_apart(source.shape, torch.float32, source.device)
            magnitudes = self.delta(expert, into=own).abs_()
            return kth_largest(magnitudes, count if exact else snapped(count, magnitudes.numel()))
        if not exact:
            return table.at(count)
        return table.exactly_at(count, (part for _, (part,) in self.delta_slices([expert])))

    def variance_threshold(self, select: float, *, at_least: int, exact: bool) -> float:
        """Return the variance over the experts that selects a fraction of the elements.

        See `variances.variance_threshold`; experts in the canonical order.
        """
        table = self.variance_table()
        values = None
        if table is None or exact:
            values = torch.empty(self.experts[0].numel(), device=self.experts[0].device)
            for at, deltas in self.delta_slices(self.canonical_order):
                values[at] = variance_of(deltas)
        return variance_threshold(values, select, at_least=at_least, exact=exact, table=table)

    @cached_property
    def canonical_order(self) -> tuple[int, ...]:
        """Positions of the experts in the order of their digests, in which they are summed."""
        keys, positions = self.source_keys, range(len(self.experts))
        return tuple(sorted(positions, key=lambda k: keys[k]) if keys else positions)

    def weighted_sum(self, coefficients: Sequence[float] | FloatArray) -> Tensor:
        """Return sum_k coefficients[k] * sources[k], accumulated in float32, rounded once.

        A source with coefficient 0 is not read, and a lone coefficient 1 gives that source
        bit for bit.

        Args:
            coefficients: (K,) one per source, the base first when there is one.
        """
        sources = self.sources
        weights = [float(coefficient) for coefficient in coefficients]
        if len(weights) != len(sources):
            raise ConfigError(
                f"{self.name}: {len(weights)} coefficients for {len(sources)} sources"
            )
        extra: list[tuple[float, Tensor]] = []
        if self.base is not None:
            # theta_k = theta_0 + delta_k: use the exact low-rank delta, not its rounded sum.
            for k, delta in enumerate(self.exact_deltas, start=1):
                if delta is not None and weights[k] != 0.0:
                    extra.append((weights[k], delta))
                    weights[0] += weights[k]
                    weights[k] = 0.0
        terms = [(w, t) for w, t in zip(weights, sources, strict=True) if w != 0.0]
        terms += extra
        is_copy = len(terms) == 1 and terms[0][0] == 1.0
        if is_copy and self.into is None:
            return cast(terms[0][1], self.out_dtype)
        out = self.empty_result()
        if is_copy:
            out.copy_(cast(terms[0][1], self.out_dtype))
        elif self.add(terms, out):
            self.finite.add(out)
        return out

    def empty_result(self) -> Tensor:
        """Return the tensor that the result is to be written to, its content undefined."""
        if self.into is not None:
            return self.into
        like = self.experts[0]
        return empty_apart(like.shape, self.out_dtype, like.device)

    @property
    def known_deltas(self) -> tuple[Tensor, ...] | None:
        """The (E,) task vectors when all are known exactly, else None."""
        known = tuple(delta for delta in self.exact_deltas if delta is not None)
        return known if known and len(known) == len(self.experts) else None

    def add_to_base(self, delta: Tensor) -> Tensor:
        """Return base + delta (float32), rounded once to the output dtype."""
        if self.base is None:
            raise ConfigError(f"{self.name}: adding a task vector needs a base model")
        return self.round(self.base.float() + delta)

    def round(self, merged: Tensor) -> Tensor:
        """Round a float32 result to the output dtype; fp16 is clamped to its finite range."""
        if self.out_dtype == torch.float16:
            merged = merged.clamp(-FLOAT16_LIMIT, FLOAT16_LIMIT)
        return merged.to(self.out_dtype)

    def uniform(self, expert: int, seed: int) -> Tensor:
        """Return float32 uniforms in (0, 1) of the tensor's shape for one expert.

        Counter-based: a function of (seed, expert's digest, tensor name, element index),
        the same on every device and for any chunking.
        """
        like = self.experts[expert]
        key = self.mask_key(expert, seed)
        return philox_uniform(key, like.numel(), device=like.device).reshape(like.shape)

    def mask_key(self, expert: int, seed: int) -> int:
        """Return the key of one expert's random stream for this tensor."""
        return _mask_key(seed, self.source_keys[expert], self.name)
