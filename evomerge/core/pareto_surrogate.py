"""ParetoSurrogate: one quadratic per objective over a search space, and the front they predict.

Shapes: n scored points, D dimensions of the unit cube, M objectives, c predictions checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from evomerge.core.arrays import FloatArray, IntArray
from evomerge.core.choice_space import Space
from evomerge.core.directions import spread_directions
from evomerge.core.nsga3 import nsga3
from evomerge.core.pareto import non_dominated_mask
from evomerge.core.quadratic_surrogate import (
    Link,
    QuadraticSurrogate,
    fit_quadratic,
    suitable_link,
)
from evomerge.core.space_json import space_from_json, space_to_json
from evomerge.errors import RunError

FORMAT = 1
LinkChoice = Literal["auto", "identity", "sigmoid", "softplus"]


@dataclass(frozen=True, eq=False)
class ParetoSurrogate:
    """What was measured, and a quadratic through it for each objective.

    Attributes:
        space: What vectors mean.
        names: (M,) objectives.
        candidate_ids: (n,) what was scored.
        points: (n, D) its vectors.
        values: (n, M) its objective values.
        parts: (M,) one surrogate per objective.
        predicted: (c, M) what surrogates said of points before they were scored.
        measured: (c, M) what those points then scored.
    """

    space: Space
    names: tuple[str, ...]
    candidate_ids: IntArray
    points: FloatArray
    values: FloatArray
    parts: tuple[QuadraticSurrogate, ...]
    predicted: FloatArray
    measured: FloatArray

    @classmethod
    def fit(
        cls,
        space: Space,
        names: Sequence[str],
        candidate_ids: Sequence[int],
        points: FloatArray,
        values: FloatArray,
        *,
        link: LinkChoice = "auto",
        checks: Sequence[tuple[FloatArray, FloatArray]] = (),
    ) -> ParetoSurrogate:
        """Fit one quadratic per objective to n >= 1 scored points.

        Args:
            space: What vectors mean.
            names: (M,) objectives.
            candidate_ids: (n,) ids.
            points: (n, D) in the unit cube.
            values: (n, M).
            link: Of every objective; "auto" chooses by the values' range.
            checks: Pairs of (M,) predicted and measured values.
        """

        def one(column: FloatArray) -> QuadraticSurrogate:
            chosen: Link = suitable_link(column) if link == "auto" else link
            return fit_quadratic(points, column, chosen)

        pairs = np.array(checks, dtype=np.float64).reshape(-1, 2, len(names))
        return cls(
            replace(space, founders=()),
            tuple(names),
            np.array(candidate_ids, dtype=np.int64),
            points,
            values,
            tuple(one(values[:, m]) for m in range(len(names))),
            pairs[:, 0],
            pairs[:, 1],
        )

    def predict(self, points: FloatArray) -> FloatArray:
        """Return (p, M) expected objectives of (p, D) points."""
        return np.stack([part.predict(points) for part in self.parts], axis=1)

    def std(self, points: FloatArray) -> FloatArray:
        """Return (p, M) posterior standard deviations of (p, D) points."""
        return np.stack([part.std(points) for part in self.parts], axis=1)

    @property
    def scale(self) -> FloatArray:
        """(M,) range of the measured values; 1 where they are all equal."""
        width = np.ptp(self.values, axis=0)
        scale: FloatArray = np.where(width > 0.0, width, 1.0)
        return scale

    def front(
        self,
        rng: np.random.Generator,
        *,
        size: int = 100,
        generations: int = 40,
        optimism: float = 0.0,
    ) -> tuple[FloatArray, FloatArray]:
        """Return (F, D) non-dominated points of the surrogate and their (F, M) expected values.

        Searched inside the box that the scored points span: a quadratic says nothing beyond.

        Args:
            rng: Source of all randomness.
            size: About how many points are kept.
            generations: Of NSGA-III.
            optimism: Posterior standard deviations added to every objective; the returned
                values are without.

        Source: MAP (arXiv:2406.07529); algorithms.md §4. Differs from the reference code: bounds
        are those of the data, not [-3, 3].
        """

        def merit(points: FloatArray) -> FloatArray:
            value = self.predict(points)
            if optimism > 0.0:
                value = value + optimism * self.std(points)
            # What differs in the last bits only is a tie on another machine.
            rounded: FloatArray = np.round(value / self.scale, 9) * self.scale
            return rounded

        best = self.points[non_dominated_mask(self.values)]
        points, merits = nsga3(
            merit,
            self.points.min(axis=0),
            self.points.max(axis=0),
            spread_directions(len(self.names), max(size, len(self.names))),
            rng,
            generations=generations,
            start=best[: size // 2],
        )
        points = np.unique(points[non_dominated_mask(merits)], axis=0)
        return points, self.predict(points)

    def nearest(self, point: FloatArray) -> tuple[int, float]:
        """Return (row, distance) of the scored point nearest to a (D,) point of the unit cube."""
        away = np.linalg.norm(self.points - point, axis=1)
        row = int(away.argmin())
        return row, float(away[row])

    def error(self) -> dict[str, dict[str, float | int | None]]:
        """Return objective -> root mean squared errors of the fit and of its predictions.

        ``fit``: over the points it was fitted to. ``predicted``: of what surrogates said before
        points were scored, against what was then measured; None before there are any, ``n``
        says how many.
        """
        fit = np.sqrt(np.square(self.predict(self.points) - self.values).mean(axis=0))
        n = len(self.measured)
        ahead = np.sqrt(np.square(self.predicted - self.measured).mean(axis=0)) if n else None
        return {
            name: {
                "fit": float(fit[m]),
                "predicted": None if ahead is None else float(ahead[m]),
                "n": n,
            }
            for m, name in enumerate(self.names)
        }

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        return {
            "format": FORMAT,
            "space": space_to_json(self.space),
            "objectives": {
                name: part.to_json() for name, part in zip(self.names, self.parts, strict=True)
            },
            "candidates": self.candidate_ids.tolist(),
            "points": self.points.tolist(),
            "values": self.values.tolist(),
            "predicted": self.predicted.tolist(),
            "measured": self.measured.tolist(),
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any], *, where: str) -> ParetoSurrogate:
        """Read what `to_json` wrote.

        Raises:
            RunError: It is another format, or damaged; names `where`.
        """
        if not isinstance(body, Mapping) or body.get("format") != FORMAT:
            raise RunError(f"{where}: is no surrogate of format {FORMAT}")
        try:
            space = space_from_json(body["space"])
            names = tuple(body["objectives"])
            ids = np.asarray(body["candidates"], dtype=np.int64)
            points = np.asarray(body["points"], dtype=np.float64)
            values = np.asarray(body["values"], dtype=np.float64)
            shapes = ((len(ids), space.dimension), (len(ids), len(names)))
            if not len(ids) or (points.shape, values.shape) != shapes:
                raise ValueError("the arrays' shapes disagree")
            if not (np.isfinite(points).all() and np.isfinite(values).all()):
                raise ValueError("a number is not finite")
            parts = tuple(
                QuadraticSurrogate.from_json(part, points) for part in body["objectives"].values()
            )
            shape = (-1, len(names))
            predicted = np.asarray(body["predicted"], dtype=np.float64).reshape(shape)
            measured = np.asarray(body["measured"], dtype=np.float64).reshape(shape)
            return cls(space, names, ids, points, values, parts, predicted, measured)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(
                f"{where}: is damaged: {error}. `evomerge resume RUN` writes it anew"
            ) from None
