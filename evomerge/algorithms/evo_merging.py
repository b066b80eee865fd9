"""Evo-Merging: CMA-ES on how much to prune each expert, then on how much of each to add."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.algorithms.algorithm import search_algorithm
from evomerge.algorithms.generations import GenerationAlgorithm, Point, require_within
from evomerge.algorithms.nevergrad_adapter import DIAGONAL_ABOVE, PrivateGlobalStreams
from evomerge.core.arrays import BoolArray, FloatArray
from evomerge.core.corners import param_slices

AUTHORS_BUDGET = 1200  # 400 for the first stage, 800 for the second


@search_algorithm("evo_merging")
@dataclass(kw_only=True)
class EvoMergingSearch(GenerationAlgorithm):
    """Two stages of CMA-ES with an L1 penalty: first `alpha`, then everything else.

    Stage 1 searches the parameter called `first`, others at their initial values: with the merge
    method `evo_merging` the share of each expert that is kept, from 1. Its best values are frozen,
    and stage 2 searches the other parameters: the signed scales `beta`, from 1/E. Each stage
    maximises f - l1 * mean |x| over its own parameters, in their own units. Where the space does
    not search `first`, or nothing else, there is one stage: with `alpha: {values: [1, 1]}` it is
    the authors' ablation without pruning, LoRAHub with CMA-ES. Where the method
    itself is searched there is one stage, too.

    Source: arXiv:2509.12951, code Chansl-Lucky/Black-Box-Merging; spec: algorithms.md §3.
    Differs from the code: stage 2 does not begin with stage 1's best loss, which holds another
    penalty, as the one to beat; diagonal CMA-ES above 100 numbers, where so few evaluations
    cannot teach a full covariance; f is the mean of the objectives, where theirs is minus the
    cross-entropy; failures count as worse than the rest of their generation; stage 2 begins anew
    from its best when CMA-ES has converged, where theirs stops.

    Attributes:
        first: Parameter of stage 1.
        first_share: Share of the budget for stage 1, in whole generations, at least one.
        first_penalty: l1 of stage 1.
        second_penalty: l1 of stage 2.
        population_size: Points per generation.
        sigma: First standard deviation, in the parameters' own units.
        budget_hint: Evaluations of the run; None: the authors' 1200.
    """

    first: str = "alpha"
    first_share: float = 1.0 / 3.0
    first_penalty: float = 0.05
    second_penalty: float = 0.05
    population_size: int = 20
    sigma: float = 0.05
    budget_hint: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        require_within("first_share", self.first_share, 1e-9, 1.0)
        require_within("first_penalty", self.first_penalty, 0.0)
        require_within("second_penalty", self.second_penalty, 0.0)
        require_within("population_size", self.population_size, 4)
        require_within("sigma", self.sigma, 1e-9)
        if self.budget_hint is not None:
            require_within("budget_hint", self.budget_hint, 1)

    def _begin(self) -> None:
        space = self._space
        self._low, high = np.zeros(space.dimension), np.zeros(space.dimension)
        for stretch in space.layout:
            self._low[stretch.slice], high[stretch.slice] = stretch.param.low, stretch.param.high
        self._width = high - self._low
        is_first = np.zeros(space.dimension, dtype=np.bool_)
        is_first[param_slices(space).get(self.first, slice(0, 0))] = True
        self._stages: list[tuple[BoolArray, float]] = [
            (mask, penalty)
            for mask, penalty in (
                (is_first, self.first_penalty),
                (~is_first, self.second_penalty),
            )
            if mask.any()
        ]
        self._streams = PrivateGlobalStreams(int(self._rng.integers(2**32)))
        own = (self.budget_hint or AUTHORS_BUDGET) - len(space.founders)
        self._first_generations = max(1, round(self.first_share * own / self.population_size))
        self._generations = 0
        self._open_stage(0, space.initial())

    def _open_stage(self, stage: int, vector: FloatArray) -> None:
        """Search from (D,) `vector` on; what the stage leaves alone stays as it is there."""
        self._stage = stage
        self._free, self._penalty = self._stages[stage]
        self._fixed = vector.copy()
        self._best: FloatArray = vector[self._free]
        self._best_loss = np.inf
        self._n_founders = 0  # founders that have counted for this stage
        self._engine = self._make_engine(self._best)

    def _make_engine(self, start: FloatArray) -> Any:
        """Return pycma's CMA-ES over the free parameters, in their own units, from a unit start."""
        low, width = self._low[self._free], self._width[self._free]
        mean = low + start * width
        if len(mean) == 1:  # pycma needs two numbers; the second one does nothing
            low, width, mean = (np.append(values, values) for values in (low, width, mean))
        options = {
            "popsize": self.population_size,
            "bounds": [low.tolist(), (low + width).tolist()],
            "CMA_diagonal": len(mean) > DIAGONAL_ABOVE,
            "randn": _normals(self._rng),
            "seed": np.nan,
            "verbose": -9,
        }
        with self._guarded():
            return _pycma().CMAEvolutionStrategy(mean, self.sigma, options)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Keep pycma away from the process's random streams, and its advice from the user."""
        with warnings.catch_warnings(), self._streams:
            warnings.simplefilter("ignore")
            yield

    def _next_batch(self, done: list[Point]) -> list[Point]:
        self._learn(done)
        is_last = self._stage + 1 == len(self._stages)
        has_converged = bool(self._engine.stop())
        if not is_last and (has_converged or self._generations >= self._first_generations):
            vector = self._fixed.copy()
            vector[self._free] = self._best
            self._open_stage(self._stage + 1, vector)
        elif has_converged:
            self._engine = self._make_engine(self._best)
        self._generations += 1
        with self._guarded():
            self._asked = [np.asarray(x, dtype=np.float64) for x in self._engine.ask()]
        return [self._at(x) for x in self._asked]

    def _at(self, x: FloatArray) -> Point:
        """Return the point of CMA-ES's numbers, one per free parameter at least."""
        n = int(self._free.sum())
        vector = self._fixed.copy()
        vector[self._free] = (x[:n] - self._low[self._free]) / self._width[self._free]
        return self._point(vector, f"stage {self._stage + 1} of {len(self._stages)}")

    def _learn(self, done: list[Point]) -> None:
        for point in self._founders[self._n_founders :]:
            if np.array_equal(point.vector[~self._free], self._fixed[~self._free]):
                self._note(point)
        self._n_founders = len(self._founders)
        scored = [point for point in done if point.value is not None]
        for point in scored:
            self._note(point)
        if not scored:
            return  # nothing to learn from: the next generation is drawn alike
        losses = [np.inf if point.value is None else self._loss(point) for point in done]
        worst = max(loss for loss in losses if loss < np.inf)
        bad = worst + max(1.0, abs(worst))
        with self._guarded():
            self._engine.tell(self._asked, [min(loss, bad) for loss in losses])

    def _note(self, point: Point) -> None:
        loss = self._loss(point)
        if loss < self._best_loss:
            self._best, self._best_loss = point.vector[self._free], loss

    def _loss(self, point: Point) -> float:
        """Return minus the value, plus the penalty of the stage's own parameters."""
        values = self._low[self._free] + point.vector[self._free] * self._width[self._free]
        return l1_loss(point.fitness, values, self._penalty)


def l1_loss(value: float, parameters: FloatArray, penalty: float) -> float:
    """Return -value + penalty * mean |parameters|, lower is better."""
    return -value + penalty * float(np.abs(parameters).mean())


def _pycma() -> Any:
    """Import pycma and return it. Importing it draws random numbers, so not from our streams."""
    if "cma" not in sys.modules:
        with warnings.catch_warnings(), PrivateGlobalStreams(0):
            warnings.simplefilter("ignore")
            importlib.import_module("cma")
    return sys.modules["cma"]


def _normals(rng: np.random.Generator) -> Callable[..., FloatArray]:
    """Return a stand-in for numpy.random.randn that draws from `rng`."""

    def draw(*shape: int) -> FloatArray:
        return np.asarray(rng.standard_normal(shape))

    return draw
