"""auto: Bayesian optimisation in coefficient space that learns from every example's score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from evomerge.algorithms.algorithm import require_dimensions, search_algorithm
from evomerge.algorithms.generations import require_within
from evomerge.algorithms.pending import Pending
from evomerge.algorithms.task_model import MIN_POINTS, TaskModel
from evomerge.core.arrays import BoolArray, FloatArray, ScoreArray
from evomerge.core.candidate import Evaluation, Proposal, split_scores
from evomerge.core.choice_space import Space
from evomerge.core.feasibility import Feasibility
from evomerge.core.gaussian_process import Columns
from evomerge.core.margins import blur_of
from evomerge.core.objective import Objective, Objectives, mixture

MAX_POINTS = 400  # in a model: the best half of them, and the latest
MAX_TARGETS = 512  # per task; with more examples, means of some
WIDEST = 10.0  # blurs: margins beyond count as so many, since one may be off by thousands
LEAST_MARGINS = 0.9  # share of the points that have some, for these to be modelled
MAX_MARGINS = 1024  # per task; with more examples, those of some
ELITES = 6  # told points that proposals start from
STEP_SIZES = (0.2, 0.1, 0.05, 0.02)  # of the unit cube, one screening each
POOL = 16  # candidates that survive a screening
SAME = 1e-4  # points nearer than this in every coordinate are one
PENALTY = 10.0  # of a missed constraint, per unit of score
FIRST_STEPS, STEPS = 40, 10  # of a model's settings: at first, and at each fit after


@search_algorithm("auto")
@dataclass(kw_only=True)
class Auto:
    """Models each task over the coefficients and scores what the models, half hopeful, say is best.

    Each task has a Gaussian process with a length scale per model, over logits of scores in
    [0, 1]. A graded score (a probability) says how near to right an example is: such tasks are
    modelled example by example with one kernel, and the modelled examples averaged, which
    extrapolates much better than their mean does. 0/1 scores say little one by one: where the
    evaluator tells margins (`Evaluation.margins`) these are modelled, and an example counts as
    `core.margins` blurs it; else their mean is. Proposals start from the best points told
    (founders are the first), and 1,600 cheap steps around them are screened by the models: in all
    coordinates, in a few, the same for all layers, or along the line of two of the best. Every
    other proposal takes the models' mean, the next one `optimism` standard deviations above it.
    Pending points count as told what the models expect of them, so it never waits.

    Several objectives are reduced to their weighted mean; a `front_share` of proposals draws other
    weights, for the front. A missed constraint costs 10 times the gap, as the models see it.
    Failures are left out. What was tried and measured: docs/decisions/0006-auto.md.

    Source: none; parts from Srinivas 2010 (upper confidence bounds), Eriksson 2019 (TuRBO: local
    candidates that change few coordinates), MAP (a sigmoid link), arXiv:2406.07529.

    Attributes:
        optimism: Standard deviations that every other proposal adds.
        front_share: Share of proposals for a random mean of the objectives.
        weights: Objective -> weight in the mean; None weighs all alike, objectives left out
            count for nothing.
    """

    # Where a config names no groups, the method gets as many as come to about this; see
    # docs/decisions/0006-auto.md for what others measure.
    wanted_numbers: ClassVar[int] = 64
    # Runs keep margins for algorithms that say so.
    uses_margins: ClassVar[bool] = True

    optimism: float = 1.0
    front_share: float = 0.0
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse values that cannot work.

        Raises:
            ConfigError: A field is out of range.
        """
        require_within("optimism", self.optimism, 0.0)
        require_within("front_share", self.front_share, 0.0, 1.0)

    def start(self, space: Space, objectives: Objectives, rng: np.random.Generator) -> None:
        """Begin a run.

        Raises:
            ConfigError: Nothing is searched, or a weight names no objective.
        """
        require_dimensions(space, "auto")
        self._space, self._objectives, self._rng = space, objectives, rng
        self._mixture = mixture(self.weights, objectives, "algorithm.weights")
        self._feasibility = Feasibility(objectives.constraints)
        self._columns = Columns.of(space)
        self._points: list[FloatArray] = []
        self._ids: list[int] = []
        self._scores: list[Mapping[str, FloatArray]] = []  # of examples
        self._observed: list[Mapping[str, BoolArray]] = []  # which of them were scored
        self._margins: list[Mapping[str, FloatArray]] = []  # of examples, NaN where not scored
        self._means: list[Mapping[str, FloatArray]] = []  # (1,) of tasks
        self._variances: list[Mapping[str, float]] = []  # of those means
        self._best: tuple[float, Mapping[str, ScoreArray]] | None = None  # scored in full
        self._values: list[float] = []  # measured mean of the objectives
        self._graded: set[str] = set()  # tasks with scores other than 0 and 1
        self._pending: Pending[int] = Pending()
        self._waiting: dict[int, FloatArray] = {}  # number of ask -> point
        self._n_asked = 0
        self._settings: dict[str, FloatArray] = {}
        self._fit_at = MIN_POINTS

    def tell(self, evaluation: Evaluation) -> None:
        """Learn from one evaluation; failures, and what the space cannot express, are left out."""
        number = self._pending.pop(evaluation.candidate.recipe)
        vector = None if number is None else self._waiting.pop(number)
        if evaluation.error is not None:
            return
        measured = self._feasibility.measure(evaluation)
        self._feasibility.learn(evaluation.candidate.origin, measured)
        if vector is None:
            vector = self._space.encode(evaluation.candidate.recipe)
        if vector is None:
            return
        self._points.append(vector)
        self._ids.append(evaluation.candidate.id)
        if evaluation.examples is None:  # what a race estimates is never 0 or 1
            self._graded |= {t for t, own in evaluation.scores.items() if not _is_binary(own)}
        self._scores.append({task: _binned(own) for task, own in evaluation.scores.items()})
        self._margins.append({task: _thinned(own) for task, own in evaluation.margins.items()})
        self._values.append(float(self._mixture @ self._objectives.values(evaluation)))
        self._observed.append(self._binned_observed(evaluation))
        self._variances.append(self._variances_of(evaluation))
        self._means.append(
            {task: np.mean(own, keepdims=True) for task, own in evaluation.scores.items()}
        )

    def _variances_of(self, evaluation: Evaluation) -> Mapping[str, float]:
        """Return how far off the mean of each task may be, from its differences to the best.

        A race's estimate is the best one's mean and the mean difference on the examples that both
        have; half an example that differs is added, for samples without any.
        """
        if evaluation.examples is None or self._best is None:
            value = self._values[-1]
            if evaluation.examples is None and (self._best is None or value > self._best[0]):
                self._best = value, evaluation.scores
            return dict.fromkeys(evaluation.scores, 0.0)
        variances, start = {}, 0
        for task in sorted(evaluation.scores):
            own, best = evaluation.scores[task], self._best[1][task]
            n_all = len(own)
            scored = evaluation.examples - start
            scored = scored[(scored >= 0) & (scored < n_all)]
            n = max(1, len(scored))
            differences = own[scored].astype(np.float64) - best[scored]
            squares = ((differences - differences.mean()) ** 2).sum() if len(scored) else 0.0
            variances[task] = float(squares + 0.25) / n / n * (1.0 - len(scored) / n_all)
            start += n_all
        return variances

    def _binned_observed(self, evaluation: Evaluation) -> Mapping[str, BoolArray]:
        """Return which of the `_scores` of an evaluation are more scored than estimated."""
        sizes = {task: len(own) for task, own in evaluation.scores.items()}
        row = np.ones(sum(sizes.values()), np.float32)
        if evaluation.examples is not None:
            row[:] = 0.0
            row[evaluation.examples] = 1.0
        return {task: _binned(own) >= 0.5 for task, own in split_scores(row, sizes).items()}

    def ask(self) -> Proposal:
        """Return the next proposal. Never waits."""
        if len(self._points) < MIN_POINTS:
            noise = self._same_in_all_rows(self._rng.standard_normal((1, self._space.dimension)))
            return self._asking(self._space.initial() + 0.1 * noise[0], "start")
        models = self._models()
        is_hopeful = self._n_asked % 2 == 1
        mixed = self._mixture
        if len(mixed) > 1 and self.front_share and self._rng.random() < self.front_share:
            mixed = self._rng.dirichlet(np.ones(len(mixed)))

        def promise(points: FloatArray, optimism: float) -> FloatArray:
            means = {task: model.mean_score(points, optimism) for task, model in models.items()}
            return self._worth(means, mixed)

        told = np.stack(self._points)
        elites = told[np.argsort(-promise(told, 0.0), kind="stable")[:ELITES]]
        pool = elites
        for size in STEP_SIZES:
            pool = np.vstack([pool, self._around(pool, elites, size)])
            order = np.argsort(-promise(pool, is_hopeful * self.optimism), kind="stable")
            pool = pool[order[:POOL]]
        return self._asking(self._first_new(pool, told), "hopeful" if is_hopeful else "expected")

    def _models(self) -> dict[str, TaskModel]:
        """Return a model per task, settings fitted anew after a tenth more points."""
        rows = self._rows()
        is_due = len(self._points) >= self._fit_at
        if is_due:
            self._fit_at = len(self._points) + max(3, len(self._points) // 10)
        points = np.stack([self._points[row] for row in rows])
        models = {}
        waiting = np.stack(list(self._waiting.values())) if self._waiting else None
        for task in self._scores[0]:
            model = self._margin_model(task, rows, points, is_due=is_due)
            if model is not None:
                self._settings[task] = model.settings
                models[task] = model if waiting is None else model.believing(waiting)
                continue
            is_graded = task in self._graded
            kept = self._scores if is_graded else self._means
            scores = np.stack([kept[row][task] for row in rows])
            observed = np.ones(scores.shape, dtype=bool)
            if is_graded:
                observed = np.stack([self._observed[row][task] for row in rows])
            before = self._settings.get(task)
            model = TaskModel.fit(
                self._columns,
                points,
                scores,
                observed,
                is_graded=is_graded,
                settings=before,
                steps=_steps(before, is_due=is_due),
                variances=None
                if is_graded
                else np.array([self._variances[row][task] for row in rows]),
            )
            self._settings[task] = model.settings
            models[task] = model if waiting is None else model.believing(waiting)
        return models

    def _margin_model(
        self, task: str, rows: list[int], points: FloatArray, *, is_due: bool
    ) -> TaskModel | None:
        """Return a model of a task's margins; None where another one knows more.

        That is where points were scored on some examples only (a race), where many have no
        margins (a warm start), and where a constraint asks for the share that is really right.
        """
        known = [self._margins[row].get(task) for row in rows]
        having = [i for i, own in enumerate(known) if own is not None]
        if len(having) < max(MIN_POINTS, LEAST_MARGINS * len(rows)):
            return None
        margins = np.stack([own for own in known if own is not None])
        if np.isnan(margins).any():
            return None
        if any(task in item.measure.weights for item in self._objectives.constraints):
            return None
        width = blur_of(margins)
        if not width > 0.0:  # most examples of every point are alike
            return None
        margins = margins.clip(-WIDEST * width, WIDEST * width)
        before = self._settings.get(task)
        return TaskModel.fit(
            self._columns,
            points[having],
            margins,
            np.ones(margins.shape, dtype=bool),
            is_graded=False,
            settings=before,
            steps=_steps(before, is_due=is_due),
            width=width,
        )

    def _worth(self, means: Mapping[str, FloatArray], mixed: FloatArray) -> FloatArray:
        """Return the (m,) weighted objectives of tasks' means, less what constraints miss."""
        worth = sum(
            weight * _weighted(item, means)
            for weight, item in zip(mixed, self._objectives.items, strict=True)
        )
        found: FloatArray = (worth - PENALTY * self._missed(means)).round(9)
        return found

    def _rows(self) -> list[int]:
        """Return which told points are modelled."""
        n = len(self._points)
        if n <= MAX_POINTS:
            return list(range(n))
        best = np.argsort(-np.array(self._values), kind="stable")[: MAX_POINTS // 2]
        return sorted({*best.tolist(), *range(n - MAX_POINTS // 2, n)})

    def _missed(self, means: Mapping[str, FloatArray]) -> FloatArray | float:
        """Return by how much the known constraints are missed, summed, where tasks score so."""
        missed: FloatArray | float = 0.0
        limits = self._feasibility.limits()
        for item, limit in zip(self._objectives.constraints, limits, strict=True):
            if limit is not None:
                gap = limit - _weighted(item.measure, means)
                missed = missed + np.maximum(gap if item.is_minimum else -gap, 0.0)
        return missed

    def _around(self, centres: FloatArray, elites: FloatArray, size: float) -> FloatArray:
        """Return (400, D) points that are steps of about `size` away from some of the centres."""
        rng, n_dimensions, count = self._rng, self._space.dimension, 400
        centre = centres[rng.integers(len(centres), size=count)]
        noise = rng.standard_normal((count, n_dimensions))
        share = np.where(rng.random((count, 1)) < 0.5, 1.0, min(1.0, 3.0 / n_dimensions))
        mask = rng.random((count, n_dimensions)) < share
        mask[np.arange(count), rng.integers(n_dimensions, size=count)] = True
        for_all_layers = self._same_in_all_rows(noise)
        first, second = rng.integers(len(elites), size=(2, count))
        along = 4.0 * (elites[first] - elites[second])
        kind = rng.random((count, 1))
        step = np.where(kind < 0.5, noise * mask, np.where(kind < 0.8, for_all_layers, along))
        length = size * np.exp(0.7 * rng.standard_normal((count, 1)))
        moved: FloatArray = np.clip(centre + length * step, 0.0, 1.0)
        return moved

    def _same_in_all_rows(self, noise: FloatArray) -> FloatArray:
        """Return (n, D) standard normal noise made the same for all groups of tensors."""
        average = self._columns.average
        n_rows = np.round(1.0 / np.diag(average))  # of each number's parameter
        same: FloatArray = np.sqrt(n_rows) * (noise @ average)
        return same

    def _first_new(self, pool: FloatArray, told: FloatArray) -> FloatArray:
        """Return the first point of a pool that was not asked or told, or one beside the first."""
        taken = np.vstack([told, *self._waiting.values()])
        for point in pool:
            if np.abs(taken - point).max(axis=1).min() > SAME:
                found: FloatArray = point
                return found
        beside: FloatArray = pool[0] + 0.02 * self._rng.standard_normal(pool.shape[1])
        return beside

    def _asking(self, vector: FloatArray, origin: str) -> Proposal:
        point = np.clip(vector, 0.0, 1.0)
        parents: tuple[int, ...] = ()
        if self._points:
            nearest = int(((np.stack(self._points) - point) ** 2).sum(axis=1).argmin())
            parents = (self._ids[nearest],)
        recipe = self._space.decode(point)
        self._pending.put(recipe, self._n_asked)
        self._waiting[self._n_asked] = point
        self._n_asked += 1
        return Proposal(recipe, parents, origin)


def _steps(settings: FloatArray | None, *, is_due: bool) -> int:
    """Return the steps of the search for settings that begins with these."""
    if not is_due:
        return 0
    return FIRST_STEPS if settings is None else STEPS


def _thinned(margins: np.ndarray) -> FloatArray:
    """Return float64 margins, of at most `MAX_MARGINS` examples from end to end."""
    values = np.asarray(margins, dtype=np.float64)
    if len(values) <= MAX_MARGINS:
        return values
    return values[np.linspace(0, len(values) - 1, MAX_MARGINS).round().astype(np.int64)]


def _binned(scores: np.ndarray) -> FloatArray:
    """Return scores as float64; means of neighbours where there are more than `MAX_TARGETS`."""
    values = np.asarray(scores, dtype=np.float64)
    if len(values) <= MAX_TARGETS:
        return values
    return np.array([part.mean() for part in np.array_split(values, MAX_TARGETS)])


def _is_binary(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _weighted(item: Objective, means: Mapping[str, FloatArray]) -> FloatArray:
    """Return an objective's (m,) values where its tasks have these means."""
    total: FloatArray = np.sum([weight * means[task] for task, weight in item.weights.items()], 0)
    return total / sum(item.weights.values())
