"""How many example-evaluations races save, at equal held-out score.

    python benchmarks/racing.py [--problems P …] [--algorithm cma_es] [--seeds 3] [--smoke]

For each problem the algorithm searches with every candidate fully scored, then raced, from the same
seeds with the same budget of example-evaluations. Saved is how many times fewer of them the raced
search has spent when the candidate it would hand over reaches the held-out score that the full one
ends with; both are means over seeds, and the full one is counted up to where it first reaches it.
A race that never reaches it counts as 0.

The lossless race is another matter: M2N2's archive must be the same after every candidate, byte for
byte, and the figure is how many times fewer examples the last archive of both has cost.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import evomerge.algorithms
import evomerge.algorithms.races
import evomerge.merging  # noqa: F401  (importing registers them)
from benchmarks.problems.problem import Problem
from benchmarks.quality_run import MemoryLog, ProblemScorer, RunResult, run_search
from benchmarks.search_quality import PROBLEMS, problem_file
from evomerge.algorithms.m2n2 import M2N2
from evomerge.algorithms.races.anchors import AnchorRace
from evomerge.algorithms.races.growing import Growing
from evomerge.algorithms.races.halving import Halving
from evomerge.algorithms.races.lossless import Lossless
from evomerge.algorithms.races.paired import Paired
from evomerge.algorithms.races.race import Race
from evomerge.runtime.in_process import InProcessExecutor
from evomerge.search.loop import LoopPlan, SearchLoop

DEFAULT_PROBLEMS = ("digits_four", "language_skills", "synthetic_experts")
RACES: Mapping[str, Race] = {
    "paired": Paired(confidence=0.8),
    "halving": Halving(cohort=8),
    "growing": Growing(),
    "anchors": AnchorRace(),
}


def first_reach(runs: Sequence[RunResult], target: float) -> float | None:
    """Return after how many example-evaluations the runs' mean held-out score is `target`."""
    times = sorted({when for run in runs for when, _, _ in run.steps})
    for when in times:
        if np.mean([run.held_out_at(when) for run in runs]) >= target:
            return float(when)
    return None


def saved(full: Sequence[RunResult], raced: Sequence[RunResult]) -> float:
    """Return how many times fewer example-evaluations the raced runs need; 0 for never."""
    target = float(np.mean([run.held_out_at(run.budget) for run in full]))
    needed, reached = first_reach(full, target), first_reach(raced, target)
    return 0.0 if reached is None or needed is None else needed / reached


def archives(
    problem: Problem, race: Race | None, evaluations: int
) -> tuple[list[bytes], list[int]]:
    """Return M2N2's archive each time it changed, and how many examples were scored by then."""
    algorithm = M2N2(population_size=10)
    seen: list[bytes] = []
    spent: list[int] = []

    def look(loop: SearchLoop) -> None:
        state = algorithm.archive_scores().tobytes()
        if state and (not seen or seen[-1] != state):
            seen.append(state)
            spent.append(loop.examples_told)

    loop = SearchLoop(
        algorithm=algorithm if race is None else race.around(algorithm),
        space=problem.search_space(M2N2),
        objectives=problem.objectives,
        log=MemoryLog(),
        plan=LoopPlan(seed=0, evaluations=evaluations, look_ahead=1, tasks=problem.sizes),
        on_change=look,
    )
    loop.run(InProcessExecutor(ProblemScorer(problem)))
    return seen, spent


def lossless(problem: Problem, evaluations: int) -> dict[str, Any]:
    """Compare M2N2 with and without early rejection."""
    plain, plain_spent = archives(problem, None, evaluations)
    raced, raced_spent = archives(problem, Lossless(), evaluations)
    length = min(len(plain), len(raced))
    return {
        "identical": plain[:length] == raced[:length],
        "archives_compared": length,
        "archives_within_budget": [len(plain), len(raced)],
        "saved": round(plain_spent[length - 1] / raced_spent[length - 1], 2),
    }


def main(say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(DEFAULT_PROBLEMS))
    parser.add_argument("--algorithm", default="cma_es")
    parser.add_argument("--races", nargs="+", choices=list(RACES), default=list(RACES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--budget", type=int, default=200, help="full evaluations")
    parser.add_argument("--smoke", action="store_true", help="one problem, two seeds, 40")
    temporary = Path(tempfile.gettempdir()) / "evomerge-search-quality"
    parser.add_argument("--cache", type=Path, default=temporary, help="built problems")
    args = parser.parse_args()
    if args.smoke:
        args.problems, args.seeds, args.budget = ["synthetic_experts"], 2, 40
    best: dict[str, float] = {}
    by_race: dict[str, dict[str, float]] = {}
    exact: dict[str, Any] = {}
    for name in args.problems:
        problem = problem_file(name).build(args.cache)
        seeds = range(args.seeds)
        full = [run_search(problem, args.algorithm, seed, args.budget) for seed in seeds]
        by_race[name] = {}
        for race in args.races:
            runs = [
                run_search(problem, args.algorithm, seed, args.budget, race=RACES[race])
                for seed in seeds
            ]
            by_race[name][race] = saved(full, runs)
            ends = [np.mean([r.held_out_at(r.budget) for r in group]) for group in (full, runs)]
            say(
                f"{name:20s} {race:8s} saved {by_race[name][race]:5.2f}x, "
                f"held-out at the end {ends[1]:.4f} (full {ends[0]:.4f})"
            )
        best[name] = max(by_race[name].values())
        exact[name] = lossless(problem, args.budget)
        say(f"{name:20s} lossless {exact[name]}")
    say(
        json.dumps(
            {
                "example_evaluations_saved": best,
                "by_race": by_race,
                "lossless": exact,
                "algorithm": args.algorithm,
                "seeds": args.seeds,
                "budget": args.budget,
            }
        )
    )


if __name__ == "__main__":
    main()
