"""pyribs' emitters behind ask / tell: quality-diversity search over the objectives.

pyribs is an extra (`pip install evomerge[ribs]`) and imported when a run starts.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.algorithms.algorithm import require_dimensions, search_algorithm
from evomerge.algorithms.generations import require_within
from evomerge.algorithms.nevergrad_adapter import PrivateGlobalStreams
from evomerge.algorithms.pending import Pending
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.objective import Objectives, mixture
from evomerge.errors import ConfigError, nearest

EMITTERS = ("EvolutionStrategyEmitter", "GaussianEmitter", "IsoLineEmitter")
MAX_CELLS = 1_000_000  # the grid is dense


@dataclass(eq=False)
class _Batch:
    """Points of one emitter that are scored together; complete when `left` is 0."""

    points: FloatArray  # (B, D)
    quality: FloatArray  # (B,) NaN until told, and for failures
    measures: FloatArray  # (B, M)
    left: int


@search_algorithm("ribs")
@dataclass(kw_only=True)
class Ribs:
    """Emitters of pyribs that fill a grid over the objectives' values.

    A cell keeps the candidate with the best mean of the objectives. An emitter learns once its
    whole batch is told; with the batches of all emitters out, `ask` waits. Failures count as
    rejected by the archive. Founders that the space can express enter the archive.

    Source: Tjanaka et al. 2023, pyribs, arXiv:2303.00191; Fontaine et al. 2020 (CMA-ME).
    Differs from its scheduler: emitters are asked and told one by one, not in lockstep.

    Attributes:
        emitter: EvolutionStrategyEmitter (CMA-ME), GaussianEmitter or IsoLineEmitter.
        emitters: How many of them.
        batch_size: Candidates per batch of an emitter.
        sigma: Step size at the start, or of the Gaussian or isotropic noise; of the unit cube.
        cells: Grid cells per objective.
        low: Value where the first cell begins.
        high: Value where the last cell ends; set both for scores outside [0, 1].
        weights: Objective -> weight in the mean; None weighs all alike.
        options: Further keyword arguments of the emitter.
    """

    emitter: str = "EvolutionStrategyEmitter"
    emitters: int = 3
    batch_size: int = 8
    sigma: float = 0.15
    cells: int = 15
    low: float = 0.0
    high: float = 1.0
    weights: Mapping[str, float] | None = None
    options: Mapping[str, str | float | int | bool | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range, or there is no such emitter.
        """
        if self.emitter not in EMITTERS:
            raise ConfigError(
                f"algorithm.emitter: {self.emitter!r} is not one of pyribs' emitters that can be "
                f"used here.{nearest(self.emitter, EMITTERS)} Known: {', '.join(EMITTERS)}."
            )
        require_within("emitters", self.emitters, 1)
        require_within("batch_size", self.batch_size, 2)
        require_within("sigma", self.sigma, 1e-6, 1.0)
        require_within("cells", self.cells, 1)
        if not (np.isfinite([self.low, self.high]).all() and self.low < self.high):
            raise ConfigError(f"algorithm.low and high are {self.low} and {self.high}: no range")

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: Nothing is searched, pyribs is not installed or refuses an option, a
                weight names no objective, or the grid would be too large.
        """
        require_dimensions(space, "ribs")
        if importlib.util.find_spec("ribs") is None:
            raise ConfigError(
                "algorithm 'ribs' needs the package ribs: pip install 'evomerge[ribs]'"
            )
        if self.cells ** len(objectives) > MAX_CELLS:
            raise ConfigError(
                f"algorithm.cells: {self.cells} cells for each of {len(objectives)} objectives "
                f"are more than {MAX_CELLS} in all; use fewer"
            )
        self._space, self._objectives = space, objectives
        self._mixture = mixture(self.weights, objectives, "algorithm.weights")
        self._pending: Pending[tuple[int, int]] = Pending()
        self._archive, self._emitters = self._make(rng)
        self._batches: dict[int, _Batch] = {}  # emitter -> the batch that is out
        self._queue: deque[tuple[int, int]] = deque()  # (emitter, row) not handed out yet

    def _make(self, rng: np.random.Generator) -> tuple[Any, list[Any]]:
        with PrivateGlobalStreams(0):  # importing it draws random numbers
            from ribs import archives, emitters

        n_objectives = len(self._objectives)
        archive = archives.GridArchive(
            solution_dim=self._space.dimension,
            dims=[self.cells] * n_objectives,
            ranges=[(self.low, self.high)] * n_objectives,
            seed=int(rng.integers(2**32)),
        )
        first = self._space.initial()
        options: dict[str, Any] = dict(self.options)
        if self.emitter == "EvolutionStrategyEmitter":
            options |= {"x0": first, "sigma0": self.sigma}
        else:
            name = "sigma" if self.emitter == "GaussianEmitter" else "iso_sigma"
            options |= {"x0": first, name: self.sigma}
        made = getattr(emitters, self.emitter)
        try:
            return archive, [
                made(
                    archive,
                    batch_size=self.batch_size,
                    seed=int(rng.integers(2**32)),
                    **options,
                )
                for _ in range(self.emitters)
            ]
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"algorithm.options: pyribs' {self.emitter} refuses {dict(self.options)}: {error}"
            ) from error

    def ask(self) -> Proposal | None:
        """Return the next point of a batch; None while every emitter waits for results."""
        if not self._queue:
            idle = [i for i in range(self.emitters) if i not in self._batches]
            if not idle:
                return None
            for index in idle:
                self._open(index)
        index, row = self._queue.popleft()
        recipe = self._space.decode(self._batches[index].points[row])
        self._pending.put(recipe, (index, row))
        return Proposal(recipe, origin=f"{self.emitter} {index}")

    def _open(self, index: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            asked = np.asarray(self._emitters[index].ask(), dtype=np.float64)
        n = len(asked)
        measures = np.full((n, len(self._objectives)), self.low)
        # Clipped as the recipe is: the archive must hold what was scored.
        points = np.clip(asked, 0.0, 1.0)
        self._batches[index] = _Batch(points, np.full(n, math.nan), measures, n)
        self._queue.extend((index, row) for row in range(n))

    def tell(self, evaluation: Evaluation) -> None:
        """Take a result into its batch, and a complete batch into archive and emitter."""
        place = self._pending.pop(evaluation.candidate.recipe)
        values = None if evaluation.error is not None else self._objectives.values(evaluation)
        if place is None:
            vector = self._space.encode(evaluation.candidate.recipe)
            if vector is not None and values is not None:
                self._archive.add(vector[None], [float(self._mixture @ values)], values[None])
            return
        index, row = place
        batch = self._batches[index]
        batch.left -= 1
        if values is not None:
            batch.quality[row] = float(self._mixture @ values)
            batch.measures[row] = values
        if batch.left == 0:
            del self._batches[index]
            self._learn(index, batch)

    def _learn(self, index: int, batch: _Batch) -> None:
        """Add a batch to the archive and tell its emitter; one without a success is dropped."""
        scored = np.isfinite(batch.quality)
        if not scored.any():
            return
        found = self._archive.add(
            batch.points[scored], batch.quality[scored], batch.measures[scored]
        )
        status = np.zeros(len(scored), dtype=np.int32)
        status[scored] = found["status"]
        # Below all others: rankers sort by it.
        value = np.full(len(scored), float(np.min(found["value"])) - 1.0)
        value[scored] = found["value"]
        quality = np.where(scored, batch.quality, batch.quality[scored].min() - 1.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._emitters[index].tell(
                batch.points, quality, batch.measures, {"status": status, "value": value}
            )
