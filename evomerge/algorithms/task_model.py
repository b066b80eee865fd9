"""TaskModel: what one task scores at points never scored, from full and from partial scores.

Shapes: n points told, T targets (examples, or one mean), m points asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.core.arrays import BoolArray, FloatArray
from evomerge.core.gaussian_process import Columns, GaussianProcess
from evomerge.core.margins import blurred

MIN_POINTS = 3  # before there is anything to model


@dataclass(frozen=True, eq=False)
class TaskModel:
    """Gaussian processes of one task with one kernel, a process for the targets scored together.

    Attributes:
        processes: Of the targets that were scored at the same points; all targets have one.
        soft: Half-width that keeps the logit of a score finite; None: scores are modelled as
            they are.
        width: Targets are margins, and examples count as `core.margins.blurred` by this; None:
            they are scores.
    """

    processes: Sequence[GaussianProcess]
    soft: float | None
    width: float | None = None

    @classmethod
    def fit(
        cls,
        columns: Columns,
        points: FloatArray,
        scores: FloatArray,
        observed: BoolArray,
        *,
        is_graded: bool,
        settings: FloatArray | None,
        steps: int,
        variances: FloatArray | None = None,
        width: float | None = None,
    ) -> TaskModel:
        """Fit a task.

        Args:
            columns: Of the coordinates.
            points: (n, D).
            scores: (n, T) scores, or margins where there is a width; what was not scored is
                never looked at, unless a target was scored at fewer than three points.
            observed: (n, T) what was scored.
            is_graded: Whether scores other than 0 and 1 were seen.
            settings: Of the kernel, to start from; None for the prior's means.
            steps: Of the search for better ones.
            variances: (n,) of the scores' means, where they are of some examples; None: all 0.
            width: See `TaskModel`.
        """
        targets, soft = (scores, None) if width is not None else logits(scores, is_graded)
        if variances is not None and soft is not None:
            slope = 1.0 / (scores[:, 0] + soft) + 1.0 / (1.0 - scores[:, 0] + soft)
            variances = variances * slope**2  # of the logits
        observed = observed | (observed.sum(axis=0) < MIN_POINTS)
        patterns, member = np.unique(observed, axis=1, return_inverse=True)
        member = member.reshape(-1)
        processes = []
        # The targets scored at most points decide the kernel of all.
        for pattern in np.argsort(-patterns.sum(axis=0), kind="stable"):
            rows, own = patterns[:, pattern], member == pattern
            part = targets[np.ix_(rows, own)]
            noise = None if variances is None else variances[rows]
            processes.append(GaussianProcess(columns, points[rows], part, settings, steps, noise))
            settings, steps = processes[0].settings, 0
        return cls(processes, soft, width)

    @property
    def settings(self) -> FloatArray:
        """The kernel's."""
        return self.processes[0].settings

    def believing(self, points: FloatArray) -> TaskModel:
        """Return the model as if (m, D) points had scored what is expected of them."""
        processes = [process.believing(points) for process in self.processes]
        return TaskModel(processes, self.soft, self.width)

    def mean_score(self, points: FloatArray, optimism: float) -> FloatArray:
        """Return (m,) mean scores at (m, D) points, so many standard deviations above the mean."""
        total, n_targets = np.zeros(len(points)), 0
        for process in self.processes:
            mean, deviation = process.predict(points)
            latent = mean + optimism * deviation[:, None]
            total += self._scores(latent, deviation).sum(axis=1)
            n_targets += latent.shape[1]
        found: FloatArray = total / n_targets
        return found

    def _scores(self, latent: FloatArray, deviation: FloatArray) -> FloatArray:
        """Return (m, T) scores of (m, T) targets that are known to (m,) deviations."""
        if self.width is not None:
            return blurred(latent, np.sqrt(deviation**2 + self.width**2)[:, None])
        if self.soft is None:
            return latent
        scores: FloatArray = 0.5 + 0.5 * np.tanh(0.5 * latent)
        return scores


def logits(scores: FloatArray, is_graded: bool) -> tuple[FloatArray, float | None]:
    """Return what to model of (n, T) scores, (n, T), and `TaskModel.soft`."""
    if scores.min() < 0.0 or scores.max() > 1.0:
        return scores, None
    soft = 0.05 if is_graded else 0.02
    return np.log((scores + soft) / (1.0 - scores + soft)), soft
