"""Every registered algorithm on five problems, with equal budgets counted in example-evaluations.

::

    export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
    python benchmarks/search_quality.py [--smoke] [--problems …] [--algorithms …]
                                        [--seeds 5] [--budget 400] [--jobs 2]

One example-evaluation is one example scored for one recipe; `--budget` is in full evaluations of
a problem, the founders' included. Searches see the search examples only; every figure is of
held-out examples. Curves, ranks and ratios go into results.json, table.md and curves.png under
`--out`; progress goes to stderr; the last line of stdout is one JSON object. Models are trained
on first use and kept in `--cache`. Each run is kept in runs.jsonl as it ends; `--resume` takes
those of an earlier call (same code!) instead of running them again.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

# Run as a script too, where only this folder is on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import evomerge.algorithms
import evomerge.merging  # noqa: F401  (registers the merge methods)
from benchmarks.problems.problem import Problem
from benchmarks.quality_figures import Results, mean_ranks, picture, ratios, table
from benchmarks.quality_run import RunResult, run_search
from evomerge.algorithms.algorithm import search_algorithms

PROBLEMS = (
    "digits_pair",
    "digits_four",
    "language_skills",
    "text_classification",
    "synthetic_experts",
)

# Names that stand for a whole library are run with a choice that no other name makes.
SETTINGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "nevergrad": {"optimizer": "NGOpt"},
        "optuna": {"sampler": "NSGAIIISampler", "options": {"population_size": 20}},
    }
)

Task = tuple[str, str, int, int, str]  # problem, algorithm, seed, evaluations, cache folder


def problem_file(name: str) -> ModuleType:
    """Return the file of a problem."""
    return importlib.import_module(f"benchmarks.problems.{name}")


@cache
def _problem(name: str, folder: str) -> Problem:
    built: Problem = problem_file(name).build(Path(folder))
    return built


def _run(task: Task) -> RunResult:
    torch.set_num_threads(1)
    name, algorithm, seed, evaluations, folder = task
    problem = _problem(name, folder)
    return run_search(problem, algorithm, seed, evaluations, SETTINGS.get(algorithm))


def run_all(tasks: list[Task], jobs: int) -> Iterator[RunResult]:
    """Yield the results as they come, from `jobs` processes (1: from this one)."""
    if jobs == 1:
        yield from map(_run, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        for future in as_completed([pool.submit(_run, task) for task in tasks]):
            yield future.result()


def recorded(file: Path) -> list[RunResult]:
    """Return the runs that an earlier call has kept; a line that a kill cut off is left out."""
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [RunResult(**json.loads(line)) for line in lines if line.endswith("\n")]


def _place(run: RunResult) -> tuple[str, str, int]:
    return run.problem, run.algorithm, run.seed


def figures(runs: list[RunResult], skipped: Mapping[str, str]) -> dict[str, Any]:
    """Return what is printed: ratios, ranks, curves, and why something is missing."""
    results = Results(runs)
    ranks = mean_ranks(results)
    notes = {**skipped, **results.notes}
    if "auto" not in search_algorithms.names():
        notes["auto"] = "no algorithm of this name is registered"
    return {
        "auto_example_evaluation_ratio": ratios(results, "auto"),
        "mean_rank": ranks,
        "example_evaluation_ratio": {name: ratios(results, name) for name in results.algorithms},
        "curves": {
            problem: {
                name: results.curve(problem, name)
                for name in results.algorithms
                if results.runs(problem, name)
            }
            for problem in results.problems
        },
        "search_cpu_seconds": {
            name: round(sum(run.cpu_seconds for run in runs if run.algorithm == name), 1)
            for name in results.algorithms
        },
        "notes": notes,
    }


def main() -> None:
    known = [name for name in search_algorithms.names() if not name.startswith("test")]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--algorithms", nargs="+", choices=known, default=known)
    parser.add_argument("--seeds", type=int, help="how many, 5 (smoke: 2)")
    parser.add_argument("--budget", type=int, help="full evaluations, 400 (smoke: 40)")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--smoke", action="store_true", help="few seeds, a small budget")
    parser.add_argument("--resume", action="store_true", help="keep the runs that --out has")
    temporary = Path(tempfile.gettempdir())
    parser.add_argument("--cache", type=Path, default=temporary / "evomerge-search-quality")
    parser.add_argument("--out", type=Path, default=temporary / "evomerge-search-quality")
    options = parser.parse_args()
    n_seeds = options.seeds or (2 if options.smoke else 5)
    budget = options.budget or (40 if options.smoke else 400)

    torch.set_num_threads(1)
    reasons = {name: problem_file(name).is_available() for name in options.problems}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    names = [name for name in options.problems if name not in skipped]
    for name in names:
        started = time.perf_counter()
        built = _problem(name, str(options.cache))
        print(f"{name}: {built.summary}; {built.n_examples} search examples, "
              f"ready in {time.perf_counter() - started:.0f} s",
              file=sys.stderr, flush=True)  # fmt: skip
    tasks: list[Task] = [
        (name, algorithm, seed, budget, str(options.cache))
        for seed in range(n_seeds)
        for name in names
        for algorithm in options.algorithms
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    record = options.out / "runs.jsonl"
    place = {task[:3]: number for number, task in enumerate(tasks)}
    sizes = {name: _problem(name, str(options.cache)).n_examples for name in names}
    runs = [
        run
        for run in (recorded(record) if options.resume else [])
        if _place(run) in place and run.budget == budget * sizes[run.problem]
    ]
    record.write_text("".join(json.dumps(run.to_json()) + "\n" for run in runs))
    done = {_place(run) for run in runs}
    for run in run_all([task for task in tasks if task[:3] not in done], options.jobs):
        runs.append(run)
        with record.open("a") as file:
            file.write(json.dumps(run.to_json()) + "\n")
        what = run.note or f"{run.steps[-1][2]:.4f} held out, {run.cpu_seconds:.1f} s"
        print(f"{len(runs)}/{len(tasks)} {run.problem} {run.algorithm} seed {run.seed}: {what}",
              file=sys.stderr, flush=True)  # fmt: skip
    runs.sort(key=lambda run: place[_place(run)])
    found = {"budget": budget, "seeds": n_seeds, **figures(runs, skipped)}
    results = Results(runs)
    everything = {**found, "runs": [run.to_json() for run in runs]}
    (options.out / "results.json").write_text(json.dumps(everything, indent=1) + "\n")
    text = table(results, found["mean_rank"])
    (options.out / "table.md").write_text(text + "\n")
    picture(results, options.out / "curves.png")
    print(text)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
