"""LayerSequenceSpace: vectors in [0, 1]^D <-> sequences of the layers of several models.

Shape letters: M layers of all models, r repetitions, T slots, S steps of a path, k rank.

Source: data-flow space of Akiba et al. 2025 (Nature Machine Intelligence; arXiv:2403.13187),
section 3.2. All M layers stand in series, r times; an indicator per slot says whether the path
goes through it, and the hidden state that enters layer j from layer i is scaled by W_ij.

What of W a plain architecture can hold: let P_t be the product of all W up to step t. In a
pre-norm model h' = W h + A(norm(W h)) + … the norms undo a positive factor of the residual stream,
so in units of P_t the stream is that of the unscaled model, with what each block adds divided by
P_t; the final norm undoes the last P. A step therefore has a `LayerSlot.scale` of 1 / P_t, which is
a factor of the matrices (and biases) at the ends of its attention and of its MLP: weights only.
The two are equal in exact arithmetic but for the norms' epsilon, which would have to be divided by
P_t² and is one number per model. A candidate is the folded form, when it is scored and when it is
exported, so both are equal bit for bit whatever the scales. Negative W cannot be folded.

Differs from the paper: W is positive, starts from 1, and is low-rank in its logarithm or belongs to
the layer entered, instead of M x M free numbers; nothing scales what enters the first layer; a path
without a layer keeps the slot with the largest indicator; the path's length may be bounded; layers
at both ends of the first model may be fixed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.layer_plan import MAX_LAYERS, LayerPlan, LayerSlot
from evomerge.core.layer_sequence import GROUPING, LAYER_SEQUENCE, plan_of, recipe_of
from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.errors import ConfigError, nearest

Layer = tuple[str, int]

INDICATOR, SCALE_FROM, SCALE_TO = "indicator", "scale_from", "scale_to"
# Two standard deviations of CMA-ES in the unit cube (1/6 each) away from the threshold.
_ON, _OFF = 0.5 + 1 / 3, 0.5 - 1 / 3
# Of 1 / P_t and of its inverse: a block beyond it is the identity, or all that is left.
_MOST_SCALE = 1e4


@dataclass(frozen=True)
class SequenceRules:
    """What of all sequences is searched; the keys of `merge: {name: layer_sequence}`.

    Attributes:
        start: The model that gives embeddings, final norm and head, and whose layers are the
            path a search starts from; None: the first one.
        repeats: r, how often all layers stand in series; a layer may occur so often.
        scaling: What W is. none: 1. layer: a factor per layer entered. low_rank:
            log W_ij = log(max_scale) * sum_k u_ik v_jk, clipped to ± log(max_scale).
        rank: k of low_rank.
        max_scale: Largest W; the smallest is its inverse.
        scale_at: Which steps W counts for: all, or jumps, those that do not go from a layer to
            the next one of its model.
        keep_first: How many layers of `start` the path always begins with.
        keep_last: How many layers of `start` the path always ends with.
        max_layers: Longest path; of a longer one the slots with the largest indicators stay.
            None: no limit.
    """

    start: str | None = None
    repeats: int = 1
    scaling: Literal["none", "layer", "low_rank"] = "none"
    rank: int = 1
    max_scale: float = 1.25
    scale_at: Literal["all", "jumps"] = "all"
    keep_first: int = 0
    keep_last: int = 0
    max_layers: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: One is out of range; names the key.
        """
        for name, least in (("repeats", 1), ("rank", 1), ("keep_first", 0), ("keep_last", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}, must be at least {least}")
        if not 1.0 < self.max_scale <= 4.0:
            raise ConfigError(f"max_scale is {self.max_scale:g}, must be above 1 and at most 4")
        kept = self.keep_first + self.keep_last
        if self.max_layers is not None and self.max_layers <= kept:
            raise ConfigError(
                f"max_layers is {self.max_layers}, must be more than the {kept} layers that are "
                "kept first and last"
            )


@dataclass(frozen=True, eq=False)
class LayerSequenceSpace(SearchSpace):
    """All sequences of layers that an algorithm may propose.

    A vector has an indicator per slot, then the numbers of W. Made by `layer_sequence_space`.

    Attributes:
        n_layers: Source id -> number of its layers, the model of `rules.start` first.
        rules: What is searched.
    """

    n_layers: Mapping[str, int] = field(default_factory=dict)
    rules: SequenceRules = SequenceRules()

    @property
    def start(self) -> str:
        """The model that gives embeddings, final norm and head."""
        return next(iter(self.n_layers))

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """(M,) all layers in series, those of the first model first."""
        return tuple((name, i) for name, depth in self.n_layers.items() for i in range(depth))

    @cached_property
    def _ends(self) -> tuple[tuple[Layer, ...], tuple[Layer, ...]]:
        """The layers that every path begins and ends with."""
        depth, first, last = self.n_layers[self.start], self.rules.keep_first, self.rules.keep_last
        own = [(self.start, index) for index in range(depth)]
        return tuple(own[:first]), tuple(own[depth - last :])

    @cached_property
    def slots(self) -> tuple[Layer, ...]:
        """(T,) what the path may go through, in order, between the layers that are kept."""
        return _free(self.layers, self._ends) * self.rules.repeats

    @cached_property
    def _place(self) -> dict[Layer, int]:
        return {layer: index for index, layer in enumerate(self.layers)}

    def initial(self) -> FloatArray:
        """Return the (D,) vector of the start model itself, W being 1 everywhere."""
        vector = super().initial()
        n_first = len(self.slots) // self.rules.repeats
        own = [t for t in range(n_first) if self.slots[t][0] == self.start]
        vector[: len(self.slots)] = _OFF
        vector[own] = _ON
        return vector

    def corners(self) -> FloatArray:
        """Return (C, D) the vectors of the layers of one model each, W being 1 everywhere.

        C is the number of models; 2 for one model alone, the second all its slots.
        """
        found = np.tile(self.initial(), (max(len(self.n_layers), 2), 1))
        found[:, : len(self.slots)] = _ON
        n_first = len(self.slots) // self.rules.repeats
        for row, name in zip(found, self.n_layers, strict=False):
            own = [t for t in range(n_first) if self.slots[t][0] == name]
            row[: len(self.slots)] = _OFF
            row[own] = _ON
        return found

    def decode(self, vector: FloatArray) -> Recipe:
        """Return the recipe of a (D,) vector; values outside [0, 1] are clipped."""
        unit = np.clip(np.asarray(vector, dtype=np.float64), 0.0, 1.0)
        if unit.shape != (self.dimension,):
            raise ValueError(f"expected a vector of shape ({self.dimension},), got {unit.shape}")
        path = self._path(self._used(unit))
        scales = np.exp(-self._log_products(unit, path))
        slots = tuple(
            LayerSlot(source, layer, float(scale))
            for (source, layer), scale in zip(path, scales, strict=True)
        )
        return recipe_of(LayerPlan(slots, self.start, self.start), self.sources)

    def encode(self, recipe: Recipe) -> FloatArray | None:
        """Return a (D,) vector of a recipe, or None when this space cannot express it.

        Several vectors may give one recipe. This one has the earliest slots; where W has a low
        rank it is found only for scales that depend on the layer entered alone.
        """
        if recipe.operator != LAYER_SEQUENCE or recipe.sources != self.sources:
            return None
        plan = plan_of(recipe)
        path = [(slot.source, slot.layer) for slot in plan.layers]
        used = self._slots_of(path) if plan.stem == self.start else None
        entered = self._scales_of(plan)
        if used is None or entered is None or not set(path) <= set(self._place):
            return None
        vector = self.initial()
        vector[: len(self.slots)] = _OFF
        vector[used] = _ON
        for item in self.layout:
            if item.param.name == SCALE_TO:
                rows = vector[item.slice].reshape(len(self.layers), -1)
                limit, gain = math.log(self.rules.max_scale), self._gain
                for layer, value in entered.items():
                    if abs(value) > limit * gain * (1 + 1e-9):
                        return None
                    unit = (value / (limit * gain) + 1.0) / 2.0
                    rows[self._place[layer]] = np.clip(unit, 0.0, 1.0)
        return vector

    def canonical(self, points: FloatArray) -> FloatArray:
        """Return (n, D) points with the numbers that do not count at fixed values.

        Indicators become those of a layer on the path or off it; W of layers that are not on it
        has its initial value.
        """
        found = np.tile(self.initial(), (len(points), 1))
        for row, point in zip(found, np.clip(points, 0.0, 1.0), strict=True):
            used = self._used(point)
            row[: len(self.slots)] = _OFF
            row[used] = _ON
            rows = sorted({self._place[layer] for layer in self._path(used)})
            for item in self.layout[1:]:
                own = row[item.slice].reshape(len(self.layers), -1)
                own[rows] = point[item.slice].reshape(len(self.layers), -1)[rows]
        return found

    def _used(self, unit: FloatArray) -> IntArray:
        """Return the slots on the path, rising."""
        indicators = unit[: len(self.slots)]
        used = np.flatnonzero(indicators > 0.5)
        n_kept = sum(map(len, self._ends))
        if not len(used) and not n_kept:
            return np.array([indicators.argmax()])
        limit = self.rules.max_layers
        if limit is not None and len(used) > limit - n_kept:
            strongest = np.argsort(-indicators[used], kind="stable")[: limit - n_kept]
            used = np.sort(used[strongest])
        return used

    def _path(self, used: IntArray) -> list[Layer]:
        first, last = self._ends
        return [*first, *(self.slots[t] for t in used), *last]

    def _counts(self, before: Layer, after: Layer) -> bool:
        """Whether W counts for a step."""
        is_next = after == (before[0], before[1] + 1)
        return self.rules.scaling != "none" and not (self.rules.scale_at == "jumps" and is_next)

    def _log_products(self, unit: FloatArray, path: list[Layer]) -> FloatArray:
        """Return (S,) log P_t, kept in a range that any dtype holds."""
        table = self._log_table(unit)
        steps = np.zeros(len(path))
        for t, (before, after) in enumerate(pairwise(path), start=1):
            if self._counts(before, after):
                steps[t] = table(self._place[before], self._place[after])
        bound = math.log(_MOST_SCALE)
        products: FloatArray = np.clip(np.cumsum(steps), -bound, bound)
        return products

    def _log_table(self, unit: FloatArray) -> _LogScale:
        values = {
            item.param.name: (2.0 * unit[item.slice] - 1.0).reshape(len(self.layers), -1)
            for item in self.layout[1:]
        }
        entered = values.get(SCALE_TO, np.zeros((len(self.layers), 1)))
        left = values.get(SCALE_FROM, np.ones((len(self.layers), 1)))
        return _LogScale(left, entered, math.log(self.rules.max_scale))

    @property
    def _gain(self) -> float:
        """Sum of u over the rank, where u has its initial value."""
        return 1.0 if self.rules.scaling == "layer" else 0.5 * self.rules.rank

    def _slots_of(self, path: list[Layer]) -> IntArray | None:
        """Return the earliest slots that make a path; None where there are none."""
        first, last = self._ends
        inner = path[len(first) : len(path) - len(last)]
        if [*first, *inner, *last] != path:
            return None
        limit = self.rules.max_layers
        if (limit is not None and len(path) > limit) or not (inner or first or last):
            return None
        found: list[int] = []
        for layer in inner:
            begin = found[-1] + 1 if found else 0
            if layer not in self.slots[begin:]:
                return None
            found.append(self.slots.index(layer, begin))
        return np.array(found, dtype=np.int64)

    def _scales_of(self, plan: LayerPlan) -> dict[Layer, float] | None:
        """Return log W of each layer entered; None where it is no function of the layer."""
        if plan.layers[0].scale != 1.0:
            return None
        found: dict[Layer, float] = {}
        for before, after in pairwise(plan.layers):
            if not (before.scale > 0.0 and after.scale > 0.0):
                return None
            value = math.log(before.scale / after.scale)
            layer = (after.source, after.layer)
            if not self._counts((before.source, before.layer), layer):
                if value != 0.0:
                    return None
            elif abs(found.setdefault(layer, value) - value) > 1e-9:
                return None
        return found


@dataclass(frozen=True, eq=False)
class _LogScale:
    """log W as a function of two layers.

    Attributes:
        left: (M, k) u of the layer that is left.
        entered: (M, k) v of the layer that is entered.
        limit: log of the largest W.
    """

    left: FloatArray
    entered: FloatArray
    limit: float

    def __call__(self, before: int, after: int) -> float:
        # Not `@`: BLAS rounds differently on other CPUs, and a journal should replay on all.
        value = float((self.left[before] * self.entered[after]).sum())
        return self.limit * min(max(value, -1.0), 1.0)


def layer_sequence_space(
    sources: tuple[str, ...], n_layers: Mapping[str, int], rules: SequenceRules
) -> LayerSequenceSpace:
    """Return the space of the sequences of some models' layers, without founders.

    Args:
        sources: (K,) ids, in the order of recipes.
        n_layers: Source id -> number of its layers, of all sources.
        rules: What is searched.

    Raises:
        ConfigError: `start` is no source, more layers are kept than it has, nothing is left to
            search, or a path could have more layers than a plan may.
    """
    start = sources[0] if rules.start is None else rules.start
    if start not in sources:
        raise ConfigError(
            f"start: {start!r} is not a model whose layers are searched.{nearest(start, sources)} "
            f"Known: {', '.join(sources)}."
        )
    kept = rules.keep_first + rules.keep_last
    if kept > n_layers[start]:
        raise ConfigError(
            f"keep_first and keep_last keep {kept} layers of {start!r}, which has {n_layers[start]}"
        )
    order = (start, *(name for name in sources if name != start))
    n_all = sum(n_layers[name] for name in order)
    n_slots = rules.repeats * (n_all - kept)
    if not n_slots:
        raise ConfigError("keep_first and keep_last keep all layers; none is left to search")
    if n_slots + kept > MAX_LAYERS:
        raise ConfigError(
            f"repeats is {rules.repeats}: a path could have {n_slots + kept} layers, at most "
            f"{MAX_LAYERS} go"
        )
    searched = [SearchedParam(INDICATOR, n_slots, False, 0.0, 1.0, 0.5)]
    if rules.scaling == "layer":
        searched.append(SearchedParam(SCALE_TO, n_all, False, -1.0, 1.0, 0.0))
    if rules.scaling == "low_rank":
        # u starts from 1/2 and v from 0: W is 1, and v alone moves it at once.
        searched.append(SearchedParam(SCALE_FROM, n_all * rules.rank, False, -1.0, 1.0, 0.5))
        searched.append(SearchedParam(SCALE_TO, n_all * rules.rank, False, -1.0, 1.0, 0.0))
    return LayerSequenceSpace(
        LAYER_SEQUENCE,
        sources,
        GROUPING,
        1,
        tuple(searched),
        n_layers={name: n_layers[name] for name in order},
        rules=rules,
    )


def _free(
    layers: tuple[Layer, ...], ends: tuple[tuple[Layer, ...], tuple[Layer, ...]]
) -> tuple[Layer, ...]:
    kept = {*ends[0], *ends[1]}
    return tuple(layer for layer in layers if layer not in kept)
