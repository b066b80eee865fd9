"""Acceptance A1 and A5 of algorithms.md §12, on the reference's pretrained pair."""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks.m2n2_digits import (
    PAIR,
    dense_angle,
    load_digits_parts,
    load_pair,
    materialise,
    pair_space,
    run_pretrained,
    run_scratch,
)
from evomerge.algorithms.m2n2 import M2N2, SpanLineage
from evomerge.algorithms.niche_search import NicheSearch
from evomerge.core.linear_span import Segments, slerp_weights
from evomerge.seeding import generator

pytestmark = pytest.mark.skipif(not PAIR.exists(), reason=f"needs the reference pair, {PAIR}")


def brute_force(vectors, fitness, test):
    """Correct answers (train, test) of the best of 10,000 SLERPs."""
    angle = dense_angle(vectors[0], vectors[1])
    assert angle == pytest.approx(1.56704, abs=1e-5)
    counts = []
    ts = np.linspace(0.0, 1.0, 10_000)
    for t in ts:
        u, v = slerp_weights(float(t), angle)
        counts.append(fitness.correct((u * vectors[0] + v * vectors[1]).astype(np.float32)).sum())
    best = float(ts[int(np.argmax(counts))])
    assert best == pytest.approx(0.493249, abs=2e-4)
    u, v = slerp_weights(best, angle)
    model = (u * vectors[0] + v * vectors[1]).astype(np.float32)
    return int(max(counts)), int(test.correct(model).sum())


def test_the_pair_is_the_reference_one():
    with np.load(PAIR) as pair:
        digests = [hashlib.sha256(pair[name].astype("<f4").tobytes()).hexdigest() for name in "ab"]
    assert [digest[:8] for digest in digests] == ["2cfd3f0f", "c8918dc5"]


@pytest.mark.slow
def test_without_split_m2n2_finds_what_brute_force_finds():
    vectors = load_pair()
    fitness, test = load_digits_parts()
    train_count, test_count = brute_force(vectors, fitness, test)
    assert abs(train_count - 1025) <= 1
    assert abs(test_count - 208) <= 1
    for seed in range(3):
        champion = run_pretrained(vectors, fitness, 1500, seed, M2N2(split_point=False))
        assert abs(int(fitness.correct(champion).sum()) - train_count) <= 1
        assert abs(int(test.correct(champion).sum()) - test_count) <= 1


@dataclass(frozen=True)
class Paired:
    """A member as coefficients and, independently, as the float64 weights of its lineage."""

    segments: Segments
    weights: np.ndarray


class PairedLineage:
    def __init__(self, span):
        self.inner = SpanLineage(span=span)

    def cross(self, a, b, rng):
        same_draws = copy.deepcopy(rng)
        w, split = same_draws.random(), int(same_draws.integers(len(a.weights)))
        child = self.inner.cross(a.segments, b.segments, rng)
        if child is a.segments:
            return a
        angle = dense_angle(a.weights, b.weights)
        weights = np.empty_like(a.weights)
        for part, t in ((slice(0, split), w), (slice(split, None), 1.0 - w)):
            u, v = slerp_weights(t, angle)
            weights[part] = u * a.weights[part] + v * b.weights[part]
        return Paired(child, weights)

    def warm_up(self, rng):
        raise AssertionError("two founders are told first")

    def key(self, genome):
        return self.inner.key(genome.segments)


@pytest.mark.slow
def test_recipes_equal_the_float64_chain_of_their_lineage():
    vectors = load_pair()
    fitness, _ = load_digits_parts()
    space = pair_space(vectors)
    search = NicheSearch(
        PairedLineage(space.span), generator(0), population_size=20, alpha=1.0, use_attraction=True
    )
    for k in range(2):
        search.tell(
            Paired(space.span.single(k), vectors[k]),
            fitness.correct(vectors[k].astype(np.float32)),
            k,
        )
    worst, flips, most_segments = 0.0, 0, 0
    for number in range(2, 3002):
        child = search.ask().genome
        recipe = materialise(space.span.recipe(child.segments), vectors)
        gap = np.linalg.norm(recipe - child.weights) / np.linalg.norm(child.weights)
        worst = max(worst, float(gap))
        most_segments = max(most_segments, len(child.segments.coefficients))
        predicted = fitness.predictions(recipe.astype(np.float32))
        flips += int((predicted != fitness.predictions(child.weights.astype(np.float32))).sum())
        search.tell(child, fitness.correct(recipe.astype(np.float32)), number)
    print(f"A5: worst relative error {worst:.2g}, {flips} flips, {most_segments} segments")
    assert worst <= 1e-12
    assert flips == 0
    assert most_segments <= 200


def test_a_split_beats_no_split_on_the_digits():
    vectors = load_pair()
    fitness, _ = load_digits_parts()
    plain = run_pretrained(vectors, fitness, 400, 0, M2N2(split_point=False))
    split = run_pretrained(vectors, fitness, 1200, 0, M2N2())
    assert fitness.correct(split).mean() > fitness.correct(plain).mean() + 0.01


def test_early_rejection_ends_with_the_same_archive():
    vectors = load_pair()
    fitness, _ = load_digits_parts()
    ends = []
    for reject_early in (False, True):
        algorithm = M2N2()
        champion = run_pretrained(vectors, fitness, 1000, 2, algorithm, reject_early=reject_early)
        assert algorithm.champion is not None
        ends.append((algorithm.member_ids, algorithm.champion.candidate.id, champion.tobytes()))
    assert ends[0] == ends[1]


def test_from_scratch_evolution_learns():
    fitness, test = load_digits_parts()
    champion = run_scratch(fitness, 1000, 1, M2N2())
    assert test.correct(champion).mean() > 0.3
