"""M2N2 on scikit-learn's digits, as in the paper's first experiment (algorithms.md §12, A2, A3).

::

    export OMP_NUM_THREADS=1
    python benchmarks/m2n2_digits.py --mode pretrained --evaluations 10000 --seeds 5
    python benchmarks/m2n2_digits.py --mode scratch --evaluations 50000 --seeds 3

A 64-256-10 MLP on raw 0-16 pixels; the first 1437 digits are the fitness, the last 360 the test;
nothing is shuffled. `pretrained` merges the two fixed parents of the reference with the registered
"m2n2" through ask / tell; `scratch` starts from two random vectors, adds N(0, 0.01**2) to every
child, and keeps weights instead of coefficients, under the same archive. Progress goes to
stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from evomerge.algorithms.early_rejection import RejectsEarly
from evomerge.algorithms.m2n2 import M2N2
from evomerge.algorithms.niche_search import NicheSearch
from evomerge.core.arrays import FloatArray, IntArray, ScoreArray
from evomerge.core.candidate import Candidate, Evaluation, Proposal
from evomerge.core.linear_span import LinearSpan, slerp_weights
from evomerge.core.objective import Objective, Objectives
from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SearchSpace
from evomerge.seeding import generator

Weights = NDArray[np.float32]

PAIR = Path(__file__).resolve().parents[2] / "shared" / "reference" / "m2n2_digits_pair.npz"
N_INPUTS, N_HIDDEN, N_CLASSES = 64, 256, 10
N_WEIGHTS = (N_INPUTS + 1) * N_HIDDEN + (N_HIDDEN + 1) * N_CLASSES
N_FITNESS = 1437
CHUNK = 480  # digits per matrix product
FIRST_STEP, STEP = 400, 200  # digits before the first and between further looks at a child
SIGMA = 0.01


class Digits:
    """One part of the digits, and the forward pass of a flat float32 vector over it.

    The vector holds W1 (64, 256), b1, W2 (256, 10), b2. A column of ones next to the pixels
    makes W1 and b1 one matrix.
    """

    def __init__(self, pixels: FloatArray, labels: NDArray[np.int64]) -> None:
        """Args: pixels: (N, 64), 0 to 16; labels: (N,)."""
        ones = np.ones((len(pixels), 1))
        self._inputs = np.ascontiguousarray(np.hstack([pixels, ones]), dtype=np.float32)
        self._hidden = np.empty((CHUNK, N_HIDDEN), np.float32)
        self._labels = labels

    def predictions(self, weights: Weights) -> NDArray[np.intp]:
        """Return the (N,) classes that (19210,) weights predict."""
        return np.concatenate([self._classes(weights, part) for part in self._chunks()])

    def _chunks(self) -> list[ScoreArray]:
        # Their hidden layer stays in the cache, as does what the search keeps there.
        return np.split(self._inputs, range(CHUNK, len(self._inputs), CHUNK))

    def margins(self, weights: Weights) -> ScoreArray:
        """Return by how much the (N,) right digits' logits lead the best other ones."""
        logits = np.concatenate([self._logits(weights, part) for part in self._chunks()])
        rows = np.arange(len(logits))
        right = logits[rows, self._labels].copy()
        logits[rows, self._labels] = -np.inf
        leads: ScoreArray = right - logits.max(axis=1)
        return leads

    def _classes(self, weights: Weights, inputs: Weights) -> NDArray[np.intp]:
        classes: NDArray[np.intp] = self._logits(weights, inputs).argmax(axis=1)
        return classes

    def _logits(self, weights: Weights, inputs: Weights) -> ScoreArray:
        cut = (N_INPUTS + 1) * N_HIDDEN
        first = weights[:cut].reshape(N_INPUTS + 1, N_HIDDEN)
        second = weights[cut:-N_CLASSES].reshape(N_HIDDEN, N_CLASSES)
        hidden = self._hidden[: len(inputs)]
        np.matmul(inputs, first, out=hidden)
        np.maximum(hidden, 0.0, out=hidden)
        logits = hidden @ second
        logits += weights[-N_CLASSES:]
        return logits

    def correct(self, weights: Weights) -> ScoreArray:
        """Return (N,) 1.0 where the prediction is right, else 0.0."""
        return (self.predictions(weights) == self._labels).astype(np.float32)

    def correct_until(
        self, weights: Weights, order: IntArray, stop: Callable[[ScoreArray], bool]
    ) -> ScoreArray:
        """Return `correct` of some digits: the first of `order`, until `stop` of them says so."""
        found = np.empty(len(order), np.float32)
        n = 0
        while n < len(order):
            rows = order[n : n + (STEP if n else FIRST_STEP)]
            classes = self._classes(weights, self._inputs.take(rows, axis=0))
            np.equal(classes, self._labels.take(rows), out=found[n : n + len(rows)])
            n += len(rows)
            if n < len(order) and stop(found[:n]):
                break
        return found[:n]


def load_digits_parts() -> tuple[Digits, Digits]:
    """Return the fitness part and the test part."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return (
        Digits(data.data[:N_FITNESS], data.target[:N_FITNESS]),
        Digits(data.data[N_FITNESS:], data.target[N_FITNESS:]),
    )


def load_pair(path: Path = PAIR) -> FloatArray:
    """Return the (2, 19210) pretrained parents, in float64."""
    with np.load(path) as pair:
        return np.stack([pair["a"], pair["b"]]).astype(np.float64)


def pair_space(vectors: FloatArray) -> SearchSpace:
    """Return the space of all linear merges of (2, D) vectors, split anywhere."""
    basis = np.stack([vectors[0], vectors[1] - vectors[0]])
    grams = basis.T[:, :, None] * basis.T[:, None, :]
    span = LinearSpan.from_block_grams(("a", "b"), vectors.shape[1], 1, grams)
    return SearchSpace("linear", span.sources, "global", 1, (), span=span)


def materialise(recipe: Recipe, vectors: FloatArray) -> FloatArray:
    """Return the (D,) float64 vector of a linear recipe with or without segments."""
    weights = recipe.params["weights"]
    if recipe.breaks is None:
        merged: FloatArray = weights[0] @ vectors
        return merged
    total: FloatArray = np.empty(vectors.shape[1])
    _weighted_segments(total, vectors, recipe.breaks, weights)
    return total


@njit  # float64 sums in the order of the sources, as NumPy gives them
def _weighted_segments(total: Any, vectors: Any, breaks: Any, weights: Any) -> None:
    for segment in range(len(weights)):
        start, stop = breaks[segment], breaks[segment + 1]
        out = total[start:stop]
        for k in range(len(vectors)):
            weight, source = weights[segment, k], vectors[k, start:stop]
            for i in range(len(out)):
                out[i] = weight * source[i] + (out[i] if k else 0.0)


@dataclass(frozen=True)
class MaterialisedLineage:
    """SLERP with a split point, and noise on every weight, on whole (D,) float32 vectors."""

    n_weights: int
    sigma: float

    def cross(self, a: Weights, b: Weights, rng: np.random.Generator) -> Weights:
        """Return slerp_w(a, b) before the split, slerp_{1-w}(a, b) after it, plus noise."""
        w, split = rng.random(), int(rng.integers(self.n_weights))
        angle = dense_angle(a, b)
        child = rng.standard_normal(self.n_weights, dtype=np.float32)
        child *= np.float32(self.sigma)
        for part, t in ((slice(0, split), w), (slice(split, None), 1.0 - w)):
            u, v = slerp_weights(t, angle)
            child[part] += np.float32(u) * a[part]
            child[part] += np.float32(v) * b[part]
        return child

    def warm_up(self, rng: np.random.Generator) -> Weights:
        """Return a random vector."""
        return rng.standard_normal(self.n_weights, dtype=np.float32) * np.float32(self.sigma)

    def key(self, genome: Weights) -> None:
        """Return None: noise makes every child another."""


def dense_angle(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Return the angle between two vectors, 0 when one is zero."""
    norm_a, norm_b = math.sqrt(float(a @ a)), math.sqrt(float(b @ b))
    if norm_a == 0.0 or norm_b == 0.0:
        return 0.0
    gap = a / norm_a - b / norm_b
    return 2.0 * math.asin(min(math.sqrt(float(gap @ gap)) / 2.0, 1.0))


Progress = Callable[[int, float, float], None]


class Pace:
    """Evaluations against forwards alone, in turns: the load of the machine drifts.

    After every `BLOCK` evaluations come `FORWARDS` passes over the same digits, each with a fresh
    copy of the weights that were scored last, as the search has fresh weights every time.
    """

    BLOCK, FORWARDS = 250, 60

    def __init__(self, fitness: Digits) -> None:
        """Args: fitness: what the search scores on."""
        self._fitness = fitness
        self._clock = time.process_time
        self.evaluation_seconds: list[float] = []  # of processor time, each the mean of a block
        self.forward_seconds: list[float] = []
        self._since = self._clock()

    def evaluated(self, number: int, weights: Weights) -> None:
        """Note that evaluation `number`, from 1, of `weights` is over."""
        if number % self.BLOCK:
            return
        self.evaluation_seconds.append((self._clock() - self._since) / self.BLOCK)
        copies = [weights.copy() for _ in range(self.FORWARDS)]
        before = self._clock()
        for copy in copies:
            self._fitness.correct(copy)
        self._since = self._clock()
        self.forward_seconds.append((self._since - before) / self.FORWARDS)

    @property
    def ratios(self) -> FloatArray:
        """(blocks,) evaluations per second over forwards alone per second."""
        return np.array(self.forward_seconds) / np.array(self.evaluation_seconds)


def run_pretrained(
    vectors: FloatArray,
    fitness: Digits,
    evaluations: int,
    seed: int,
    algorithm: M2N2,
    progress: Progress | None = None,
    test: Digits | None = None,
    *,
    reject_early: bool = False,
    pace: Pace | None = None,
) -> Weights:
    """Return the champion (best mean fitness) of one search over merges of two parents.

    With `reject_early` a child is scored on the most telling digits first, and given up as soon
    as the rest cannot matter; archive and champion stay what they are without.
    """
    space = pair_space(vectors)
    objectives = Objectives((Objective("digits", {"digits": 1.0}),))
    algorithm.start(space, objectives, generator(seed, "m2n2_digits"))
    for k in range(2):
        parent = Recipe("linear", space.sources, {"weights": np.eye(2)[k : k + 1]},
                        settings={"normalize": False})  # fmt: skip
        scores = fitness.correct(vectors[k].astype(np.float32))
        algorithm.tell(Evaluation(Candidate(k, parent), {"digits": scores}))
    for number in range(1, evaluations + 1):
        proposal = algorithm.ask()
        weights = materialise(proposal.recipe, vectors).astype(np.float32)
        candidate = Candidate(number + 1, proposal.recipe, proposal.parents)
        if reject_early:
            found = correct_unless_rejected(fitness, weights, algorithm, proposal)
        else:
            found = fitness.correct(weights)
        if found is None:
            algorithm.tell(Evaluation(candidate, error="rejected early"))
        else:
            algorithm.tell(Evaluation(candidate, {"digits": found}))
        if pace:
            pace.evaluated(number, weights)
        if progress and test and number % 1000 == 0:
            best = _champion(algorithm, vectors)
            progress(number, fitness.correct(best).mean(), test.correct(best).mean())
    return _champion(algorithm, vectors)


def correct_unless_rejected(
    digits: Digits, weights: Weights, algorithm: RejectsEarly, proposal: Proposal
) -> ScoreArray | None:
    """Return `Digits.correct`, or None as soon as the algorithm has no use for the child."""
    order = algorithm.example_order(proposal)
    if order is None:
        return digits.correct(weights)
    found = digits.correct_until(
        weights, order, lambda scores: algorithm.rejects(order[: len(scores)], scores)
    )
    if len(found) < len(order):
        return None
    scores = np.empty_like(found)
    scores[order] = found
    return scores


def _champion(algorithm: M2N2, vectors: FloatArray) -> Weights:
    assert algorithm.champion is not None
    return materialise(algorithm.champion.candidate.recipe, vectors).astype(np.float32)


def run_scratch(
    fitness: Digits,
    evaluations: int,
    seed: int,
    settings: M2N2,
    progress: Progress | None = None,
    test: Digits | None = None,
    *,
    pace: Pace | None = None,
) -> Weights:
    """Return the champion (best mean fitness) of one evolution from random weights."""
    rng = generator(seed, "m2n2_digits")
    lineage = MaterialisedLineage(N_WEIGHTS, SIGMA)
    search: NicheSearch[Weights] = NicheSearch(
        lineage,
        rng,
        population_size=settings.population_size,
        alpha=settings.alpha,
        use_attraction=settings.attraction,
        capacity=settings.capacity,
    )
    best, best_value = lineage.warm_up(rng), -1.0
    for number in range(evaluations + 2):
        genome = lineage.warm_up(rng) if number < 2 else search.ask().genome
        scores = fitness.correct(genome)
        value = float(scores.mean())
        if value > best_value:
            best, best_value = genome, value
        search.tell(genome, scores, number)
        done = number - 1
        if pace and done > 0:
            pace.evaluated(done, genome)
        if progress and test and done > 0 and done % 1000 == 0:
            progress(done, best_value, float(test.correct(best).mean()))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mode", choices=("pretrained", "scratch"), required=True)
    parser.add_argument("--evaluations", type=int, default=10_000, help="at least 250")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--algorithm", choices=("m2n2", "ga"), default="m2n2")
    parser.add_argument(
        "--reject-early", action="store_true", help="pretrained: give children up when they lost"
    )
    options = parser.parse_args()
    if options.reject_early and options.mode != "pretrained":
        parser.error("--reject-early goes with --mode pretrained")
    fitness, test = load_digits_parts()
    per_seed: list[float] = []
    paces: list[Pace] = []
    if options.mode == "pretrained":  # compiles
        run_pretrained(load_pair(), fitness, 50, 0, M2N2())
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        is_ga = options.algorithm == "ga"
        algorithm = M2N2(alpha=0.0, attraction=False) if is_ga else M2N2()

        def show(number: int, train: float, tested: float, seed: int = seed) -> None:
            print(f"seed {seed}: {number} evaluations, train {train:.4f}, test {tested:.4f}",
                  file=sys.stderr, flush=True)  # fmt: skip

        pace = Pace(fitness)
        if options.mode == "pretrained":
            champion = run_pretrained(
                load_pair(), fitness, options.evaluations, seed, algorithm, show, test,
                reject_early=options.reject_early, pace=pace,
            )  # fmt: skip
        else:
            champion = run_scratch(
                fitness, options.evaluations, seed, algorithm, show, test, pace=pace
            )
        paces.append(pace)
        per_seed.append(float(test.correct(champion).mean()))
    ratios = np.concatenate([pace.ratios for pace in paces])
    spent = np.concatenate([pace.evaluation_seconds for pace in paces])
    forward = np.concatenate([pace.forward_seconds for pace in paces])
    result = {
        "mode": options.mode,
        "algorithm": options.algorithm,
        "evaluations": options.evaluations,
        "mean_test_accuracy": round(float(np.mean(per_seed)), 5),
        "per_seed": [round(value, 5) for value in per_seed],
        "evaluations_per_cpu_s": round(1.0 / float(np.median(spent)), 1),
        "forward_only_evaluations_per_cpu_s": round(1.0 / float(np.median(forward)), 1),
        "ratio_to_forwards": round(float(np.median(ratios)), 3),
        "ratio_quartiles": [round(q, 3) for q in np.quantile(ratios, (0.25, 0.75)).tolist()],
        "reject_early": options.reject_early,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
