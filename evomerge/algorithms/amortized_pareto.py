"""MAP: score a design of samples, fit a quadratic per objective, read the front off it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evomerge.algorithms.algorithm import require_dimensions, search_algorithm
from evomerge.algorithms.merging_tree import Scored, merge_up
from evomerge.algorithms.pending import Pending
from evomerge.core.arrays import FloatArray
from evomerge.core.batch_choice import far_enough, least_known, spread_along_front
from evomerge.core.candidate import Evaluation, Proposal
from evomerge.core.choice_space import Space
from evomerge.core.objective import Objectives
from evomerge.core.pareto import non_dominated_mask
from evomerge.core.pareto_surrogate import LinkChoice, ParetoSurrogate
from evomerge.core.quadratic_surrogate import check_link, n_features
from evomerge.core.sample_design import design, latin_square, single_parents, with_weights
from evomerge.errors import ConfigError

MOST_FEATURES = 4  # coefficients per evaluation of the budget; beyond, a fit says nothing
DESIGN_SHARE = 0.6  # of the budget, at most
SAME = 1e-3  # points nearer than this in every dimension are not scored again
NEARBY = 0.1  # standard deviation of points around the front, in the unit cube
POOL = 256


@dataclass(frozen=True, eq=False)
class _Entry:
    """A point to propose, and the (M,) objectives predicted for it, if they were."""

    point: FloatArray
    origin: str
    predicted: FloatArray | None = None


@dataclass(frozen=True, eq=False)
class _Batch:
    """Points to propose; the plan goes on once they are asked, or with `is_awaited` told."""

    entries: list[_Entry]
    is_awaited: bool = False


@search_algorithm("amortized_pareto")
@dataclass(kw_only=True)
class AmortizedPareto:
    """MAP: a quadratic surrogate per objective, NSGA-III on it, its front measured and refitted.

    First a design of points is scored: founders, each model alone, the initial values and an
    even spread. Then, batch by batch, surrogates are fitted to all that was scored, NSGA-III
    finds their front inside the box of scored points, and a selection of it is scored. Waits
    between design and first fit only. The last surrogate is `surrogate()`.

    `variant: bayesian` designs half as many points, searches the front of mean + `optimism`
    posterior standard deviations, and scores the points of it that are least known. `variant:
    nested` replaces the even spread by a tree: the two models with the closest per-example
    scores are merged by a fit in their two shares, again and again.

    Source: Li et al. 2024 (MAP), arXiv:2406.07529; spec: algorithms.md §4. Differs from the
    reference code: see `core.quadratic_surrogate`, `core.sample_design` and
    `ParetoSurrogate.front`; predictions are re-measured and refitted until the budget is spent;
    Bayesian batches follow the posterior variance instead of bins of angles, of which empty ones
    were never explored; failed evaluations are left out.

    Attributes:
        variant: How points are chosen, see above.
        link: What a quadratic is put through: sigmoid for scores in [0, 1], softplus for scores
            of one sign, identity; "auto" chooses by the scores, per objective.
        samples: Points of the design, founders included; None: (D + 1)(D + 2), for bayesian half
            of it, at most 60 % of `budget_hint`. Unused by nested.
        samples_per_merge: Shares scored for each pair of nested.
        batch_size: Points taken from each front.
        generations: Of NSGA-III on the surrogate.
        population_size: Of NSGA-III.
        optimism: See above.
        budget_hint: Evaluations of the run; the config fills it in.
    """

    variant: Literal["plain", "bayesian", "nested"] = "plain"
    link: LinkChoice = "auto"
    samples: int | None = None
    samples_per_merge: int = 12
    batch_size: int = 10
    generations: int = 40
    population_size: int = 100
    optimism: float = 1.0
    budget_hint: int | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        least = {
            "samples": 3,
            "samples_per_merge": 3,
            "batch_size": 1,
            "generations": 1,
            "population_size": 4,
            "optimism": 0,
            "budget_hint": 1,
        }
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and not low <= value < float("inf"):
                raise ConfigError(f"algorithm.{name} is {value}, must be at least {low}")
        known = {
            "variant": ("plain", "bayesian", "nested"),
            "link": ("auto", "identity", "sigmoid", "softplus"),
        }
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"algorithm.{name} is {getattr(self, name)!r}, must be one of {choices}"
                )

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: Nothing is searched, the budget is far too small for a quadratic in so
                many dimensions, or nested finds no weight per model.
        """
        require_dimensions(space, "amortized_pareto")
        features = n_features(space.dimension)
        if self.budget_hint is not None and features > MOST_FEATURES * self.budget_hint:
            raise ConfigError(
                f"algorithm 'amortized_pareto' would fit {features} coefficients per objective "
                f"for {space.dimension} searched numbers, with {self.budget_hint} evaluations. "
                "Search fewer (coarser `merge.groups`, fixed parameters), raise the budget, or "
                "use algorithm cma_es."
            )
        if self.variant == "nested" and len(single_parents(space)) < 2:
            raise ConfigError(
                "algorithm.variant: nested merges models pair by pair, and operator "
                f"{' or '.join(space.methods)!r} searches no weight per model; use plain"
            )
        self._space, self._objectives, self._rng = space, objectives, rng
        self._pending: Pending[_Entry] = Pending()
        self._queue: deque[_Entry] = deque()
        self._is_awaited = False
        self._asked: list[FloatArray] = []
        self._ids: list[int] = []
        self._points: list[FloatArray] = []
        self._values: list[FloatArray] = []
        self._scored: dict[bytes, Scored] = {}  # of nested, by point
        self._checks: list[tuple[FloatArray, FloatArray]] = []
        self._plan = self._batches()

    def surrogate(self) -> ParetoSurrogate | None:
        """Return surrogates of everything told so far; None before anything was scored."""
        if not self._points:
            return None
        return ParetoSurrogate.fit(
            self._space,
            self._objectives.names,
            self._ids,
            np.array(self._points),
            np.array(self._values),
            link=self.link,
            checks=self._checks,
        )

    def ask(self) -> Proposal | None:
        """Return the next point of the design or of the predicted front, or None to wait."""
        while not self._queue:
            if self._is_awaited and len(self._pending):
                return None
            batch = next(self._plan)
            self._queue.extend(batch.entries)
            self._is_awaited = batch.is_awaited
        entry = self._queue.popleft()
        recipe = self._space.decode(entry.point)
        self._pending.put(recipe, entry)
        self._asked.append(entry.point)
        return Proposal(recipe, origin=entry.origin)

    def tell(self, evaluation: Evaluation) -> None:
        """Add one scored point; failures and recipes outside the space are passed over.

        Raises:
            ConfigError: The `link` asked for cannot express the scores.
        """
        recipe = evaluation.candidate.recipe
        entry = self._pending.pop(recipe)
        point = self._space.encode(recipe) if entry is None else entry.point
        if evaluation.error is not None or point is None:
            return
        values = self._objectives.values(evaluation)
        if self.link != "auto":
            everything = np.array([*self._values, values])
            for name, column in zip(self._objectives.names, everything.T, strict=True):
                check_link(self.link, column, f"algorithm.link: objective {name!r}")
        self._ids.append(evaluation.candidate.id)
        self._points.append(point)
        self._values.append(values)
        if entry is not None and entry.predicted is not None:
            self._checks.append((entry.predicted, values))
        if self.variant == "nested":
            self._scored[_key(point)] = Scored(values, evaluation.flat_scores())

    # ------------------------------------------------------------------- plan

    def _batches(self) -> Iterator[_Batch]:
        """Yield what to propose, in order, without end. Reads what was told meanwhile."""
        yield _Batch(self._design(), is_awaited=True)
        if self.variant == "nested":
            for weights in merge_up(
                len(single_parents(self._space)), self._look_up, self.samples_per_merge, self._rng
            ):
                points = with_weights(self._space, weights)
                fresh = [point for point in points if _key(point) not in self._scored]
                yield _Batch([_Entry(point, "nested") for point in fresh], is_awaited=True)
        while True:
            # A quadratic through next to nothing is no guide: spread more points.
            enough = len(self._points) >= min(self._space.dimension + 2, 2 * self.batch_size)
            yield self._front_batch() if enough else _Batch(self._spread(self.batch_size))

    def _design(self) -> list[_Entry]:
        encoded = [self._space.encode(founder.recipe) for founder in self._space.founders]
        founders = [point for point in encoded if point is not None]
        dimension = self._space.dimension
        known = np.array(founders).reshape(-1, dimension)
        if self.variant == "nested":
            # Founders are asked first; without any the tree's parents come first anyway.
            n = len(known) + (2 if len(known) else 0)
        else:
            n = self.samples or self._default_samples()
        points = design(self._space, n, known, self._rng)
        return [_Entry(point, "design") for point in points]

    def _default_samples(self) -> int:
        features = n_features(self._space.dimension)
        wanted = features if self.variant == "bayesian" else 2 * features
        if self.budget_hint is None:
            return wanted
        return max(3, min(wanted, int(DESIGN_SHARE * self.budget_hint)))

    def _spread(self, n: int) -> list[_Entry]:
        anchors = np.array([*self._points, *self._asked]).reshape(-1, self._space.dimension)
        return [_Entry(point, "design") for point in latin_square(n, anchors, self._rng)]

    def _look_up(self, weights: FloatArray) -> Scored | None:
        return self._scored.get(_key(with_weights(self._space, weights[None])[0]))

    def _front_batch(self) -> _Batch:
        surrogate = self.surrogate()
        assert surrogate is not None, "a surrogate needs scored points"
        is_bayesian = self.variant == "bayesian"
        points, values = surrogate.front(
            self._rng,
            size=self.population_size,
            generations=self.generations,
            optimism=self.optimism if is_bayesian else 0.0,
        )
        taken = np.array([*self._points, *self._asked])
        new = far_enough(points, taken, SAME)
        points, values = points[new], values[new]
        if is_bayesian:
            rows = least_known(surrogate, points, self.batch_size)
        else:
            anchors = surrogate.predict(taken) / surrogate.scale
            rows = spread_along_front(values / surrogate.scale, anchors, self.batch_size)
        chosen = points[rows]
        entries = [_Entry(point, "front") for point in chosen]
        missing = self.batch_size - len(entries)
        if missing:
            around = self._around_front(surrogate)
            extra = least_known(surrogate, around, missing)
            entries += [_Entry(point, "near the front") for point in around[extra]]
        predicted = surrogate.predict(np.array([entry.point for entry in entries]))
        return _Batch(
            [
                _Entry(entry.point, entry.origin, row)
                for entry, row in zip(entries, predicted, strict=True)
            ]
        )

    def _around_front(self, surrogate: ParetoSurrogate) -> FloatArray:
        """Return (p, D) points scattered around what is best so far, inside the scored box."""
        best = surrogate.points[non_dominated_mask(surrogate.values)]
        centres = best[self._rng.integers(len(best), size=POOL)]
        noise = NEARBY * self._rng.standard_normal(centres.shape)
        low, high = surrogate.points.min(axis=0), surrogate.points.max(axis=0)
        return np.clip(centres + noise, low, high)


def _key(point: FloatArray) -> bytes:
    return np.round(point, 9).tobytes()
