"""MergeOperator: the one thing a new merge method has to implement.

A merge method is a frozen dataclass whose fields are its parameters *for one group of
tensors*, registered with `@merge_operator("name")`. `merge` sees one tensor name at a
time. Fields annotated with `Gene` can be searched; the others are settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from evomerge.core.arrays import FloatArray
from evomerge.errors import ConfigError
from evomerge.merging.philox import philox_uniform
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
        needs_thresholds: `tensors.global_threshold` may be called.
    """

    needs_base: ClassVar[bool]
    n_models: ClassVar[int | None]
    weights_over: ClassVar[Literal["experts", "sources"]]
    sliceable: ClassVar[bool]
    needs_gram: ClassVar[bool]
    needs_thresholds: ClassVar[bool]

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


# Elements per pass of `weighted_sum` on a CPU.
_CPU_PASS = 1 << 17

Op = TypeVar("Op", bound=type[Any])

# (expert index, density) -> magnitude below which an element is trimmed, over all merged tensors
GlobalThreshold = Callable[[int, float], float]

# Which tensors a pooled Gram matrix is summed over: those of this tensor's layer (for one outside
# the layers: of its side of them), or all that are merged.
Pool = Literal["layer", "model"]
PooledGram = Callable[[Pool], FloatArray]


def _no_thresholds(_expert: int, _density: float) -> float:
    raise ConfigError("this merge was prepared without global thresholds")


def _no_pooled_gram(_pool: Pool) -> FloatArray:
    raise ConfigError("this merge was prepared without Gram matrices of the whole model")


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
        if self.base is None:
            raise ConfigError(f"{self.name}: task vectors need a base model")
        base = self.base.float()
        exact = self.exact_deltas or (None,) * len(self.experts)
        return tuple(
            expert.float() - base if delta is None else delta
            for expert, delta in zip(self.experts, exact, strict=True)
        )

    def weighted_sum(self, coefficients: Sequence[float] | FloatArray) -> Tensor:
        """Return sum_k coefficients[k] * sources[k], accumulated in float32, rounded once.

        A source with coefficient 0 is not read, and a lone coefficient 1 returns that
        source bit for bit.

        Args:
            coefficients: (K,) one per source, the base first when there is one.
        """
        weights = np.array(coefficients, dtype=np.float64)
        if weights.shape != (len(self.sources),):
            raise ConfigError(
                f"{self.name}: {weights.size} coefficients for {len(self.sources)} sources"
            )
        extra: list[tuple[float, Tensor]] = []
        if self.base is not None and any(delta is not None for delta in self.exact_deltas):
            # theta_k = theta_0 + delta_k: use the exact low-rank delta, not its rounded sum.
            for k, delta in enumerate(self.exact_deltas, start=1):
                if delta is not None and weights[k] != 0.0:
                    extra.append((float(weights[k]), delta))
                    weights[0] += weights[k]
                    weights[k] = 0.0
        terms = [(float(w), t) for w, t in zip(weights, self.sources, strict=True) if w != 0.0]
        terms += extra
        if len(terms) == 1 and terms[0][0] == 1.0:
            return terms[0][1].to(self.out_dtype)
        like = self.experts[0]
        flat = [(weight, tensor.reshape(-1)) for weight, tensor in terms]
        out = torch.empty(like.numel(), dtype=self.out_dtype, device=like.device)
        # Passes that fit the cache are about twice as fast; the elements do not depend on them.
        step = _CPU_PASS if like.device.type == "cpu" else max(like.numel(), 1)
        for start in range(0, like.numel(), step):
            part = out[start : start + step]
            total = torch.zeros(part.shape, dtype=torch.float32, device=like.device)
            for weight, tensor in flat:
                total.add_(tensor[start : start + step].float(), alpha=weight)
            part.copy_(self.round(total))
        return out.reshape(like.shape)

    def add_to_base(self, delta: Tensor) -> Tensor:
        """Return base + delta (float32), rounded once to the output dtype."""
        if self.base is None:
            raise ConfigError(f"{self.name}: adding a task vector needs a base model")
        return self.round(self.base.float() + delta)

    def round(self, merged: Tensor) -> Tensor:
        """Round a float32 result to the output dtype; fp16 is clamped to its finite range."""
        if self.out_dtype == torch.float16:
            merged = merged.clamp(-65504.0, 65504.0)
        return merged.to(self.out_dtype)

    def uniform(self, expert: int, seed: int) -> Tensor:
        """Return float32 uniforms in [0, 1) of the tensor's shape for one expert.

        Counter-based: a function of (seed, expert's digest, tensor name, element index),
        the same on every device and for any chunking.
        """
        like = self.experts[expert]
        key = derive(seed, "mask", self.source_keys[expert], self.name)
        return philox_uniform(key, like.numel(), device=like.device).reshape(like.shape)
