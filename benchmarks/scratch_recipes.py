"""M2N2 from scratch on the digits, through recipes: what a search does, without its loop.

    python benchmarks/scratch_recipes.py --evaluations 10000 --seeds 3 --max-noise 32

`m2n2_digits.py --mode scratch` breeds dense vectors, as the reference does. Here every child is a
recipe over two random models, seeded noise and ancestors, merged by `materialize`; champions of
both should be alike (spec algorithms.md §12, A3). Prints one line of JSON: test accuracy per seed,
evaluations and merges per CPU-second, and how the recipes look at the end: terms, segments, and
ancestors of the champion.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
import torch

from benchmarks.m2n2_digits import N_WEIGHTS, SIGMA, Digits, load_digits_parts
from benchmarks.problems.problem import MemorySource
from evomerge.algorithms.m2n2 import M2N2
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.linear_span import LinearSpan
from evomerge.core.model_space import align
from evomerge.core.objective import Objective, Objectives
from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SearchSpace
from evomerge.merging.derived import Derived
from evomerge.merging.grams import block_grams
from evomerge.merging.materialize import materialize
from evomerge.seeding import generator

IDS = ("a", "b")
NAME = "weights"


class ScratchRun:
    """One evolution from two random models."""

    def __init__(self, fitness: Digits, seed: int, max_noise: int) -> None:
        """Args: fitness: what children are scored on; max_noise: see `M2N2`."""
        rng = generator(seed, "scratch_recipes")
        self._sources = {
            id: MemorySource(id, {NAME: torch.from_numpy(SIGMA * rng.standard_normal(N_WEIGHTS))
                                  .to(torch.float32)})
            for id in IDS
        }  # fmt: skip
        self._fitness = fitness
        self._space = align([source.header() for source in self._sources.values()], has_base=False)
        self._derived = Derived()
        self._algorithm = M2N2(mutation=SIGMA, max_noise=max_noise)
        self.merge_seconds = 0.0  # of processor time
        grams = block_grams(self._space, self._sources, 1)
        span = LinearSpan.from_block_grams(IDS, N_WEIGHTS, 1, grams)
        space = SearchSpace("linear", IDS, "global", 1, (), span=span)
        objectives = Objectives((Objective("digits", {"digits": 1.0}),))
        self._algorithm.start(space, objectives, generator(seed, "algorithm"))
        for k in range(2):
            row = {"weights": np.eye(2)[k : k + 1]}
            self._tell(k, Recipe("linear", IDS, row, settings={"normalize": False}))

    def evaluate(self, number: int) -> Recipe:
        """Breed and score child `number`, from 0; return its recipe."""
        recipe = self._algorithm.ask().recipe
        self._tell(number + 2, recipe)
        return recipe

    def champion(self) -> Recipe:
        """Return the recipe with the best mean fitness so far."""
        assert self._algorithm.champion is not None
        return self._algorithm.champion.candidate.recipe

    def weights(self, recipe: Recipe) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the (D,) weights that a recipe says."""
        begun = time.process_time()
        ((_, tensor),) = materialize(recipe, self._space, self._sources, self._derived)
        self.merge_seconds += time.process_time() - begun
        return tensor.numpy()

    def _tell(self, number: int, recipe: Recipe) -> None:
        scores = self._fitness.correct(self.weights(recipe))
        self._algorithm.tell(Evaluation(Candidate(number, recipe), {"digits": scores}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--evaluations", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--max-noise", type=int, default=32)
    options = parser.parse_args()
    fitness, test = load_digits_parts()
    per_seed: list[float] = []
    terms: list[int] = []
    segments: list[int] = []
    ancestors: list[int] = []
    merging = 0.0
    begun = time.process_time()
    for seed in range(options.seeds):
        run = ScratchRun(fitness, seed, options.max_noise)
        for number in range(options.evaluations):
            recipe = run.evaluate(number)
            terms.append(len(recipe.sources) - len(IDS))
            segments.append(len(recipe.params["weights"]))
            if (number + 1) % 1000 == 0:
                tested = test.correct(run.weights(run.champion())).mean()
                print(f"seed {seed}: {number + 1} evaluations, test {tested:.4f}", file=sys.stderr)
        best = run.champion()
        per_seed.append(float(test.correct(run.weights(best)).mean()))
        ancestors.append(len(best.closure()))
        merging += run.merge_seconds
    seconds, n = time.process_time() - begun, options.evaluations * options.seeds
    result = {
        "evaluations": options.evaluations,
        "max_noise": options.max_noise,
        "mean_test_accuracy": round(float(np.mean(per_seed)), 5),
        "per_seed": [round(value, 5) for value in per_seed],
        "evaluations_per_cpu_s": round(n / seconds, 1),
        "merging_share_of_cpu": round(merging / seconds, 3),
        "mean_terms": round(float(np.mean(terms)), 1),
        "most_terms": max(terms),
        "most_segments": max(segments),
        "ancestors_of_champion": ancestors,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
