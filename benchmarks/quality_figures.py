"""Ranks, ratios, tables and the picture of benchmarks/search_quality.py.

Shape letters: A algorithms, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.quality_run import N_CHECKPOINTS, RunResult
from evomerge.core.arrays import FloatArray
from evomerge.seeding import generator

N_RESAMPLES = 2000
AGAINST = ("cma_es", "m2n2")


class Results:
    """The runs of a benchmark, by problem and algorithm."""

    def __init__(self, runs: Sequence[RunResult]) -> None:
        """Args: runs: those with a note instead of steps are listed in `notes` and left out."""
        done = [run for run in runs if run.steps]
        self.problems = list(dict.fromkeys(run.problem for run in runs))
        self.algorithms = list(dict.fromkeys(run.algorithm for run in runs))
        self.notes = {f"{run.problem}/{run.algorithm}": run.note for run in runs if run.note}
        self._runs: dict[tuple[str, str], list[RunResult]] = {}
        for run in done:
            self._runs.setdefault((run.problem, run.algorithm), []).append(run)

    def runs(self, problem: str, algorithm: str) -> list[RunResult]:
        """Return the runs of one cell by seed; empty when the algorithm refused the problem."""
        return sorted(self._runs.get((problem, algorithm), []), key=lambda run: run.seed)

    def finals(self, problem: str, algorithm: str) -> FloatArray:
        """Return (S,) held-out means at the end."""
        return np.array([run.steps[-1][2] for run in self.runs(problem, algorithm)])

    def curve(self, problem: str, algorithm: str) -> dict[str, list[float]]:
        """Return the mean over seeds of held-out score and hypervolume at the ten budgets."""
        runs = self.runs(problem, algorithm)
        budgets = runs[0].checkpoints
        scores = [[run.held_out_at(budget) for budget in budgets] for run in runs]
        volumes = [run.hypervolumes for run in runs]
        return {
            "example_evaluations": [float(budget) for budget in budgets],
            "held_out": np.mean(scores, axis=0).round(5).tolist(),
            "hypervolume": np.mean(volumes, axis=0).round(6).tolist(),
        }


def example_evaluation_ratio(
    results: Results, problem: str, algorithm: str, other: str
) -> float | None:
    """Return which part of its budget `other` is matched in.

    The smallest b such that the algorithm's held-out mean over all seeds after b
    example-evaluations is no less than what the other one ends with, over the budget. None when
    it never is, or one of the two did not run.
    """
    runs, others = results.runs(problem, algorithm), results.runs(problem, other)
    if not runs or not others:
        return None
    goal = float(results.finals(problem, other).mean())
    for spent in sorted({step[0] for run in runs for step in run.steps}):
        if np.mean([run.held_out_at(spent) for run in runs]) >= goal - 1e-12:
            return round(spent / runs[0].budget, 4)
    return None


def ratios(results: Results, algorithm: str) -> dict[str, dict[str, float | None]]:
    """Return problem -> other -> `example_evaluation_ratio`."""
    return {
        problem: {
            other: example_evaluation_ratio(results, problem, algorithm, other) for other in AGAINST
        }
        for problem in results.problems
    }


def mean_ranks(results: Results) -> dict[str, dict[str, float]]:
    """Return algorithm -> mean rank over problems, with a 95 % bootstrap interval over seeds.

    On each problem the algorithms are ranked by the mean of their final held-out scores, 1 is
    best, ties share the mean of their places. An algorithm that refused a problem comes last
    there. The interval resamples the seeds of every cell.
    """
    names, problems = results.algorithms, results.problems
    plain = np.mean([_ranks(results, problem, None) for problem in problems], axis=0)
    rng = generator(0, "search_quality", "bootstrap")
    resampled = np.array(
        [
            np.mean([_ranks(results, problem, rng) for problem in problems], axis=0)
            for _ in range(N_RESAMPLES)
        ]
    )
    low, high = np.quantile(resampled, [0.025, 0.975], axis=0)
    order = np.argsort(plain, kind="stable")
    return {
        names[i]: {
            "rank": round(float(plain[i]), 3),
            "low": round(float(low[i]), 3),
            "high": round(float(high[i]), 3),
        }
        for i in order
    }


def _ranks(results: Results, problem: str, rng: np.random.Generator | None) -> FloatArray:
    """Return (A,) ranks on one problem, of resampled seeds when there is an `rng`."""
    means = np.full(len(results.algorithms), -np.inf)
    for i, algorithm in enumerate(results.algorithms):
        finals = results.finals(problem, algorithm)
        if len(finals):
            chosen = finals if rng is None else rng.choice(finals, len(finals))
            means[i] = chosen.mean()
    better = (means[None] > means[:, None]).sum(axis=1)
    equal = (means[None] == means[:, None]).sum(axis=1)
    ranks: FloatArray = better + (equal + 1) / 2
    return ranks


def table(results: Results, ranks: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table: mean rank, and the final held-out mean by problem."""
    lines = [
        "| algorithm | mean rank [95 %] | " + " | ".join(results.problems) + " |",
        "|---|---|" + "---|" * len(results.problems),
    ]
    for name, rank in ranks.items():
        cells = [f"`{name}`", f"{rank['rank']:.2f} [{rank['low']:.2f}, {rank['high']:.2f}]"]
        for problem in results.problems:
            finals = results.finals(problem, name)
            cells.append(f"{finals.mean():.3f} ± {finals.std():.3f}" if len(finals) else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def picture(results: Results, file: Path) -> None:
    """Write the anytime curves, held-out score above and hypervolume below, as one image."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    n = len(results.problems)
    figure, axes = pyplot.subplots(2, n, figsize=(3.6 * n, 6.4), squeeze=False)
    colours = pyplot.get_cmap("tab20")
    for column, problem in enumerate(results.problems):
        for number, algorithm in enumerate(results.algorithms):
            if not results.runs(problem, algorithm):
                continue
            curve = results.curve(problem, algorithm)
            for row, key in enumerate(("held_out", "hypervolume")):
                axes[row][column].plot(
                    curve["example_evaluations"], curve[key], label=algorithm,
                    color=colours(number % 20), lw=2.5 if algorithm == "auto" else 1.2,
                )  # fmt: skip
        axes[0][column].set_title(problem, fontsize=10)
        axes[1][column].set_xlabel("example-evaluations")
    axes[0][0].set_ylabel("held-out mean of the objectives")
    axes[1][0].set_ylabel("held-out hypervolume of the front")
    handles: dict[str, object] = {}
    for axis in axes[0]:
        drawn, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    figure.legend(
        list(handles.values()), list(handles), loc="lower center", ncol=min(len(handles), 8),
        fontsize=8,
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.04 + 0.03 * (len(handles) > 8), 1, 1))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=90)
    pyplot.close(figure)


__all__ = ["N_CHECKPOINTS", "Results", "mean_ranks", "picture", "ratios", "table"]
