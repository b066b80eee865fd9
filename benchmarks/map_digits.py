"""MAP on scikit-learn's digits: how good are surrogates of 12 and 30 evaluations (A4)?

::

    OMP_NUM_THREADS=1 python benchmarks/map_digits.py

A 64-256-10 MLP on raw pixels, weights N(0, 0.05**2): 8 full-batch Adam steps (lr 3e-3) on all
digits make the base, 40 more on 0-4 and on 5-9 the experts; objectives are the accuracies on both
halves of the first 1437 digits. The truth is a grid of 31 x 31 coefficients in [0, 1]**2. The
registered "amortized_pareto" scores a design through ask / tell. R2 is that of its surrogate on the
grid; the hypervolume ratio that of its predicted front, scored, to the grid's, over (0, 0).
`refined`: 12 evaluations of design and 18 of the algorithm's own batches, all measured. Means over
seeds x designs. Progress goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

# Run as a script too, where only this folder is on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks.m2n2_digits import N_CLASSES, N_FITNESS, N_HIDDEN, N_INPUTS, Digits
from evomerge.algorithms.amortized_pareto import AmortizedPareto
from evomerge.core.arrays import FloatArray
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.objective import Objective, Objectives
from evomerge.core.pareto import hypervolume
from evomerge.core.pareto_surrogate import LinkChoice
from evomerge.core.search_space import SearchedParam, SearchSpace
from evomerge.seeding import generator

NAMES = ("low", "high")
ORIGIN = np.zeros(2)
SPACE = SearchSpace(
    "task_arithmetic",
    ("base", *NAMES),
    "global",
    1,
    (SearchedParam("weights", 2, True, 0.0, 1.0, 0.5),),
)
OBJECTIVES = Objectives(tuple(Objective(name, {name: 1.0}) for name in NAMES))


@dataclass(frozen=True, eq=False)
class Problem:
    """A base, two task vectors, and the digits of each half.

    Attributes:
        base: (19210,) float32.
        vectors: (2, 19210) float32 task vectors.
        halves: Digits 0-4 and 5-9.
        grid: (961, 2) coefficients.
        truth: (961, 2) accuracies there.
    """

    base: FloatArray
    vectors: FloatArray
    halves: tuple[Digits, Digits]
    grid: FloatArray
    truth: FloatArray

    def accuracy(self, coefficients: FloatArray) -> FloatArray:
        """Return (n, 2) accuracies of (n, 2) coefficients."""
        return score(self.base, self.vectors, self.halves, coefficients)


def score(
    base: FloatArray,
    vectors: FloatArray,
    halves: tuple[Digits, Digits],
    coefficients: FloatArray,
) -> FloatArray:
    rows = []
    for c in coefficients:
        merged = (base + c @ vectors).astype(np.float32)
        rows.append([half.correct(merged).mean(dtype=np.float64) for half in halves])
    return np.array(rows)


def make_problem(seed: int) -> Problem:
    """Train base and experts of one seed, and score the grid."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels, labels = data.data[:N_FITNESS], data.target[:N_FITNESS]
    is_low = labels < 5
    random = torch.Generator().manual_seed(seed)
    shapes = ((N_INPUTS, N_HIDDEN), (N_HIDDEN,), (N_HIDDEN, N_CLASSES), (N_CLASSES,))
    start = [0.05 * torch.randn(shape, generator=random) for shape in shapes]
    base = trained(start, pixels, labels, 8)
    experts = [trained(base, pixels[part], labels[part], 40) for part in (is_low, ~is_low)]
    flat = [np.concatenate([p.numpy().ravel() for p in model]) for model in (base, *experts)]
    vectors = np.stack([flat[1] - flat[0], flat[2] - flat[0]])
    halves = (Digits(pixels[is_low], labels[is_low]), Digits(pixels[~is_low], labels[~is_low]))
    axis = np.linspace(0.0, 1.0, 31)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return Problem(flat[0], vectors, halves, grid, score(flat[0], vectors, halves, grid))


def trained(
    start: list[torch.Tensor], pixels: FloatArray, labels: FloatArray, steps: int
) -> list[torch.Tensor]:
    weights = [torch.nn.Parameter(part.clone()) for part in start]
    x, y = torch.tensor(pixels, dtype=torch.float32), torch.tensor(labels)
    adam = torch.optim.Adam(weights, lr=3e-3)
    for _ in range(steps):
        adam.zero_grad()
        logits = torch.relu(x @ weights[0] + weights[1]) @ weights[2] + weights[3]
        torch.nn.functional.cross_entropy(logits, y).backward()
        adam.step()
    return [part.detach() for part in weights]


def search(problem: Problem, evaluations: int, seed: int, algorithm: AmortizedPareto) -> FloatArray:
    """Drive an algorithm for some evaluations; return the (n, 2) accuracies it measured."""
    algorithm.start(SPACE, OBJECTIVES, generator(seed, "map_digits"))
    measured = []
    for number in range(evaluations):
        proposal = algorithm.ask()
        assert proposal is not None, "nothing is outstanding"
        values = problem.accuracy(proposal.recipe.params["weights"])[0]
        scores = {name: np.array([v], np.float32) for name, v in zip(NAMES, values, strict=True)}
        algorithm.tell(Evaluation(Candidate(number, proposal.recipe), scores))
        measured.append(values)
    return np.array(measured)


def quality(problem: Problem, samples: int, seed: int, link: LinkChoice) -> tuple[float, float]:
    """Return R2 on the grid and the hypervolume ratio of one design's surrogate."""
    algorithm = AmortizedPareto(samples=samples, link=link)
    search(problem, samples, seed, algorithm)
    surrogate = algorithm.surrogate()
    assert surrogate is not None
    residual = ((surrogate.predict(problem.grid) - problem.truth) ** 2).sum(axis=0)
    total = ((problem.truth - problem.truth.mean(axis=0)) ** 2).sum(axis=0)
    points, _ = surrogate.front(generator(seed, "front"))
    found = hypervolume(problem.accuracy(points), ORIGIN)
    return float((1.0 - residual / total).mean()), found / hypervolume(problem.truth, ORIGIN)


def measure(seeds: int, designs: int) -> dict[str, float]:
    """Return the mean figures over seeds x designs."""
    rows: dict[str, list[float]] = {}
    for seed in range(seeds):
        problem = make_problem(seed)
        best = hypervolume(problem.truth, ORIGIN)
        for number in range(designs):
            run = 1000 * seed + number
            for samples in (12, 30):
                for link in ("identity", "sigmoid"):
                    r2, ratio = quality(problem, samples, run, link)
                    rows.setdefault(f"{link}_{samples}_r2", []).append(r2)
                    rows.setdefault(f"{link}_{samples}_hypervolume_ratio", []).append(ratio)
            refined = search(problem, 30, run, AmortizedPareto(samples=12, link="sigmoid"))
            rows.setdefault("refined_30_hypervolume_ratio", []).append(
                hypervolume(refined, ORIGIN) / best
            )
        print(f"seed {seed}: {designs} designs", file=sys.stderr, flush=True)
    return {name: round(float(np.mean(values)), 4) for name, values in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--designs", type=int, default=10)
    options = parser.parse_args()
    print(json.dumps(measure(options.seeds, options.designs)))


if __name__ == "__main__":
    main()
