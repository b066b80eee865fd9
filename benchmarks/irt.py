"""How well a few examples tell the score of a candidate: anchors and item response models.

    python benchmarks/irt.py [--problems P …] [--recipes 100] [--smoke]

First the synthetic check: 1000 items of five abilities with known parameters, two parents with full
scores, candidates whose ability is a random mixture of theirs plus noise of 0.15. Printed is the
root mean squared error of the estimated mean score, over the repetitions, of the plain mean of n
random examples (naive) and of the two item response estimators.

Then real merges: random recipes of a problem are scored in full, and estimated from n anchors.
Anchors are picked, and item parameters fitted, on the scores of the problem's founders and of
`--known` other random recipes, as a search has them after a while. Printed are Spearman's and
Kendall's rank correlation of the estimated with the full mean, and the root mean squared error.
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
import evomerge.merging  # noqa: F401  (importing registers them)
from benchmarks.problems.problem import Problem
from benchmarks.quality_run import ProblemScorer
from benchmarks.search_quality import PROBLEMS, problem_file
from evomerge.algorithms.algorithm import search_algorithms
from evomerge.core.anchor_model import ESTIMATORS, PICKS, AnchorModel, pick_anchors
from evomerge.core.anchors import Anchors, estimated_scores
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Candidate
from evomerge.core.item_response import Items, fit_abilities, fit_mixture
from evomerge.seeding import generator

SYNTHETIC_N = (10, 20, 50, 100)
REAL_N = (20, 50, 100)


def synthetic_errors(repetition: int, sizes: Sequence[int] = SYNTHETIC_N) -> FloatArray:
    """Return (len(sizes), 3) errors of naive, MP-IRT and GMP-IRT means for one candidate."""
    rng = generator(repetition, "irt")
    n_items, d, k = 1000, 5, 2
    items = Items(rng.lognormal(0.0, 0.5, (n_items, d)), rng.normal(size=n_items))
    seeds = rng.normal(size=(k, d))
    responses = (rng.random((k, n_items)) < items.probabilities(seeds)).astype(np.float64)
    ability = rng.random(k) @ seeds + 0.15 * rng.normal(size=d)
    truth = (rng.random(n_items) < items.probabilities(ability[None])[0]).astype(np.float64)
    parents = fit_abilities(items, responses)
    errors = []
    for n in sizes:
        anchors = Anchors(np.sort(rng.permutation(n_items)[:n]), np.full(n, 1.0 / n))
        row = np.full(n_items, np.nan)
        row[anchors.positions] = seen = truth[anchors.positions]
        mixture = fit_mixture(items.at(anchors.positions), parents, seen)
        guesses = items.probabilities((mixture @ parents)[None])[0]
        one = {"task": n_items}
        errors.append(
            [
                estimated_scores(anchors, row, guesses, one, direct).mean() - truth.mean()
                for direct in ESTIMATORS.values()
            ]
        )
    return np.array(errors)


def synthetic(repetitions: int, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Return n -> estimator -> root mean squared error."""
    errors = np.stack([synthetic_errors(repetition) for repetition in range(repetitions)])
    rmse = np.sqrt((errors**2).mean(axis=0))
    say(f"synthetic, {repetitions} candidates: RMSE")
    say(f"{'n':>5} {'naive':>8} {'mp_irt':>8} {'gmp_irt':>8} {'mp/naive':>9}")
    for n, (naive, mp, gmp) in zip(SYNTHETIC_N, rmse, strict=True):
        say(f"{n:5d} {naive:8.4f} {mp:8.4f} {gmp:8.4f} {mp / naive:9.2f}")
    names = ("naive", *list(ESTIMATORS)[1:])
    return {
        str(n): dict(zip(names, map(float, row), strict=True))
        for n, row in zip(SYNTHETIC_N, rmse, strict=True)
    }


def full_scores(problem: Problem, n_recipes: int, seed: int) -> tuple[FloatArray, int]:
    """Return (P, N) scores of the founders and of random recipes, and how many are founders."""
    space = problem.search_space(search_algorithms.get("random"))
    rng = generator(seed, "irt", "recipes")
    recipes = [founder.recipe for founder in space.founders]
    recipes += [space.decode(rng.random(space.dimension)) for _ in range(n_recipes)]
    scorer = ProblemScorer(problem)
    rows = [
        scorer.evaluate(Candidate(number, recipe)).evaluation.flat_scores()
        for number, recipe in enumerate(recipes)
    ]
    return np.stack(rows).astype(np.float64), len(space.founders)


def ranking(
    known: FloatArray, n_parents: int, rows: FloatArray, sizes: Mapping[str, int], repeats: int
) -> list[dict[str, Any]]:
    """Return one figure per way to pick, estimator and n, means over repeated picks.

    Args:
        known: (P, N) full scores that anchors and items may be made from, parents first.
        n_parents: How many of them are parents of all.
        rows: (R, N) full scores to be estimated.
        sizes: Task -> number of examples.
        repeats: Picks per figure.
    """
    from scipy.stats import kendalltau, spearmanr

    def mean(scores: FloatArray) -> float:
        ends = np.cumsum([sizes[task] for task in sorted(sizes)])[:-1]
        return float(np.mean([part.mean() for part in np.split(scores, ends)]))

    truth = [mean(row) for row in rows]
    models = {name: AnchorModel.fit(known, n_parents, sizes, name) for name in ESTIMATORS}
    table = []
    for n in REAL_N:
        for pick in PICKS:
            found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in models}
            for repeat in range(repeats):
                rng = generator(repeat, "irt", "pick")
                anchors = pick_anchors(pick, known, sizes, n, rng)
                for name, model in models.items():
                    guesses = []
                    for row in rows:
                        hidden = np.full(len(row), np.nan)
                        hidden[anchors.positions] = row[anchors.positions]
                        guesses.append(mean(model.complete(anchors, hidden)))
                    error = float(np.sqrt(np.mean((np.array(guesses) - truth) ** 2)))
                    rho = float(spearmanr(guesses, truth).statistic)
                    found[name].append((rho, float(kendalltau(guesses, truth).statistic), error))
            for name, values in found.items():
                rho, tau, error = np.mean(values, axis=0).tolist()
                table.append({"n": n, "pick": pick, "estimator": name} | {
                    "spearman": rho, "kendall": tau, "rmse": error
                })  # fmt: skip
    return table


def main(say: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = ["digits_four", "language_skills"]
    parser.add_argument("--problems", nargs="*", choices=PROBLEMS, default=default)
    parser.add_argument("--recipes", type=int, default=100, help="that are estimated")
    parser.add_argument("--known", type=int, default=20, help="scored in full, beside the founders")
    parser.add_argument("--repeats", type=int, default=5, help="picks of anchors per figure")
    parser.add_argument("--repetitions", type=int, default=120, help="of the synthetic check")
    parser.add_argument("--smoke", action="store_true", help="10 repetitions, one small problem")
    temporary = Path(tempfile.gettempdir()) / "evomerge-search-quality"
    parser.add_argument("--cache", type=Path, default=temporary, help="built problems")
    args = parser.parse_args()
    if args.smoke:
        args.problems, args.recipes, args.known = ["synthetic_experts"], 10, 4
        args.repeats, args.repetitions = 1, 10
    rmse = synthetic(args.repetitions, say)
    ranks: dict[str, Any] = {}
    for name in args.problems:
        problem = problem_file(name).build(args.cache)
        rows, n_founders = full_scores(problem, args.known + args.recipes, seed=0)
        cut = n_founders + args.known
        ranks[name] = ranking(rows[:cut], n_founders, rows[cut:], problem.sizes, args.repeats)
        say(f"\n{name}: {args.recipes} random recipes, {n_founders} founders + {args.known} known")
        say(f"{'n':>5} {'pick':10} {'estimator':9} {'spearman':>9} {'kendall':>8} {'rmse':>7}")
        for item in ranks[name]:
            say(
                f"{item['n']:5d} {item['pick']:10} {item['estimator']:9} "
                f"{item['spearman']:9.3f} {item['kendall']:8.3f} {item['rmse']:7.4f}"
            )
    say(json.dumps({"rmse": rmse, "ranking": ranks, "recipes": args.recipes, "known": args.known}))


if __name__ == "__main__":
    main()
