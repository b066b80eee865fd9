from __future__ import annotations

import itertools

import numpy as np
import pytest

from evomerge.algorithms.m2n2 import M2N2, SpanLineage
from evomerge.algorithms.niche_search import NicheSearch
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.core.linear_span import LinearSpan, Segments, slerp_weights
from evomerge.core.recipe import Recipe
from evomerge.core.search_space import SearchSpace
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from evomerge.testing import linear_problem

PROBLEM = linear_problem()
SPAN = PROBLEM.space.span


def started(seed=0, **config) -> M2N2:
    algorithm = M2N2(**config)
    algorithm.start(PROBLEM.space, PROBLEM.objectives, generator(seed))
    return algorithm


def evaluation(number, recipe, first, second=(0.0,) * 8):
    scores = {"first": np.array(first, np.float32), "second": np.array(second, np.float32)}
    return Evaluation(Candidate(number, recipe), scores)


def single(source, grouping="global"):
    weights = np.zeros((1, 3))
    weights[0, source] = 1.0
    return Recipe("linear", SPAN.sources, {"weights": weights}, settings={"normalize": False})


class Letters:
    """A lineage of strings, for tests of the archive alone."""

    def __init__(self, children="xyz"):
        self.children = iter(children * 1000)

    def cross(self, a, b, rng):
        return next(self.children)

    def warm_up(self, rng):
        return "w"

    def key(self, genome):
        return genome.encode()


def archive(size=2, lineage=None, **config):
    settings = {"alpha": 1.0, "use_attraction": True} | config
    return NicheSearch(lineage or Letters(), generator(1), population_size=size, **settings)


def test_the_least_fit_of_members_and_newcomer_goes():
    search = archive()
    search.tell("a", np.array([1.0, 1.0, 0.0]), 0)
    search.tell("b", np.array([1.0, 0.0, 0.0]), 1)
    assert search.tell("c", np.array([0.0, 0.0, 1.0]), 2)  # rare skill beats a shared one
    assert search.members == ["a", "c"]
    assert search.ids == (0, 2)
    assert not search.tell("d", np.array([0.0, 1.0, 0.0]), 3)


def test_a_newcomer_wins_a_tie():
    search = archive()
    search.tell("a", np.array([1.0, 1.0]), 0)
    search.tell("b", np.array([1.0, 1.0]), 1)
    assert search.tell("c", np.array([1.0, 1.0]), 2)
    assert search.members == ["c", "b"]


def test_empty_slots_accept_anything():
    search = archive(size=3)
    for number, name in enumerate("abc"):
        assert search.tell(name, np.zeros(4), number)
    assert len(search) == 3


def test_a_parent_is_mated_with_what_it_lacks():
    search = archive(size=3)
    search.tell("a", np.array([1.0, 0.0, 0.0, 0.0]), 0)
    search.tell("b", np.array([0.0, 1.0, 1.0, 1.0]), 1)
    search.tell("c", np.array([1.0, 0.0, 0.0, 0.0]), 2)
    pairs = {search.ask().parents for _ in range(200)}
    assert (0, 1) in pairs
    assert (0, 2) not in pairs  # c offers nothing to a


def test_zero_attraction_mates_with_any_other_member():
    search = archive(size=3)
    for number, name in enumerate("abc"):
        search.tell(name, np.ones(4), number)
    pairs = {search.ask().parents for _ in range(300)}
    assert pairs == {(i, j) for i in range(3) for j in range(3) if i != j}


def test_members_that_solve_nothing_still_breed():
    search = archive(size=3)
    search.tell("a", np.zeros(4), 0)
    search.tell("b", np.zeros(4), 1)
    assert {search.ask().parents for _ in range(100)} == {(0, 1), (1, 0)}


def test_negative_scores_breed_like_positive_ones():
    plain, shifted = archive(size=3), archive(size=3)
    rows = np.random.default_rng(0).random((8, 5))
    rows[0], rows[1] = 0.0, 1.0
    for number, row in enumerate(rows):
        plain.tell("a", row, number)
        shifted.tell("a", row - 40.0, number)
    assert len(shifted) == 3
    assert np.isfinite(shifted._members_view().fitness).all()
    worst = archive(size=2)
    worst.tell("bad", np.full(5, -9.0), 0)
    worst.tell("good", np.full(5, -1.0), 1)
    worst.tell("fair", np.full(5, -2.0), 2)
    assert worst.members == ["fair", "good"]


def test_a_child_proposed_before_is_redrawn_and_then_accepted():
    search = archive(lineage=Letters("xxxy"))
    search.tell("a", np.array([1.0, 0.0]), 0)
    search.tell("b", np.array([0.0, 1.0]), 1)
    assert [search.ask().genome for _ in range(2)] == ["x", "y"]
    assert search.ask().genome in "xy"  # nothing new to be had


def test_scores_of_another_length_are_refused():
    search = archive()
    search.tell("a", np.zeros(4), 0)
    with pytest.raises(ValueError, match="expected 4 scores, got 5"):
        search.tell("b", np.zeros(5), 1)


def test_a_child_of_clones_is_its_parent():
    lineage = SpanLineage(span=SPAN)
    a = Segments(np.array([0, 20, 64]), np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]))
    b = Segments(np.array([0, 20, 64]), a.coefficients * (1.0 + 1e-14))
    assert lineage.cross(a, b, generator(0)) is a


def test_collinear_parents_are_no_clones():
    lineage = SpanLineage(span=SPAN, split_point=False)
    a = SPAN.single(0)
    b = Segments(a.breaks, 3.0 * a.coefficients)
    child = lineage.cross(a, b, generator(0))
    assert 1.0 < child.coefficients[0, 0] < 3.0


def test_a_zero_vector_is_mixed_linearly():
    lineage = SpanLineage(span=SPAN, split_point=False)
    zero = Segments(np.array([0, 64]), np.zeros((1, 3)))
    child = lineage.cross(zero, SPAN.single(1), generator(0))
    assert 0.0 < child.coefficients[0, 1] < 1.0


@pytest.mark.parametrize("scope", ["global", "segment"])
def test_crossover_is_slerp_with_a_split(scope):
    lineage = SpanLineage(span=SPAN, angle_scope=scope)
    x, y = PROBLEM.vectors[1], PROBLEM.vectors[2]
    rng, copy = generator(3), generator(3)
    for _ in range(20):
        child = PROBLEM.merge(SPAN.recipe(lineage.cross(SPAN.single(1), SPAN.single(2), rng)))
        w, split = copy.random(), int(copy.integers(64))
        expected = np.empty(64)
        for part, t in ((slice(0, split), w), (slice(split, None), 1.0 - w)):
            of = part if scope == "segment" and split > 0 else slice(None)
            angle = (
                np.arccos(x[of] @ y[of] / np.linalg.norm(x[of]) / np.linalg.norm(y[of]))
                if len(x[of])
                else 0.0
            )
            u, v = np.sin((1 - t) * angle), np.sin(t * angle)
            expected[part] = (
                (u * x[part] + v * y[part]) / np.sin(angle)
                if angle > 1e-6
                else (1 - t) * x[part] + t * y[part]
            )
        np.testing.assert_allclose(child, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("block", [1, 4])
def test_crossover_by_tensor_has_the_angle_of_each(block):
    """Tensors of 24, 8 and 32 elements; the split may lie inside one, which keeps its angle."""
    ends = np.array([0, 24, 32, 64])
    basis = np.stack([PROBLEM.vectors[0], *(PROBLEM.vectors[1:] - PROBLEM.vectors[0])])
    parts = basis.reshape(3, -1, block)
    grams = np.einsum("ibn,jbn->bij", parts, parts)
    span = LinearSpan.from_block_grams(SPAN.sources, 64, block, grams, ends)
    lineage = SpanLineage(span=span, angle_scope="tensor")
    rng, copy = generator(3), generator(3)
    parents = [span.single(1), span.single(2)]
    for _ in range(20):
        x, y = (PROBLEM.merge(span.recipe(parent)) for parent in parents)
        child = lineage.cross(*parents, rng)
        w, split = copy.random(), span.snap(int(copy.integers(64)))
        expected = np.empty(64)
        for start, stop in itertools.pairwise(ends):
            of = slice(start, stop)
            a, b = (vector[of] / np.linalg.norm(vector[of]) for vector in (x, y))
            angle = 2.0 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
            for p in range(start, stop):
                u, v = slerp_weights(w if p < split else 1.0 - w, angle)
                expected[p] = u * x[p] + v * y[p]
        np.testing.assert_allclose(PROBLEM.merge(span.recipe(child)), expected, rtol=1e-6)
        parents = [parents[1], child]


def test_crossover_by_tensor_of_one_tensor_is_the_global_one():
    rng, copy = generator(3), generator(3)
    a, b = SPAN.single(1), SPAN.single(2)
    for _ in range(5):
        one = SpanLineage(span=SPAN, angle_scope="tensor").cross(a, b, rng)
        other = SpanLineage(span=SPAN).cross(a, b, copy)
        np.testing.assert_allclose(
            PROBLEM.merge(SPAN.recipe(one)), PROBLEM.merge(SPAN.recipe(other)), rtol=1e-12
        )
        a, b = b, one


def test_a_tensor_of_zeros_is_mixed_linearly():
    """As one that is shorter than a block looks to the span."""
    vectors = np.array([[0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    basis = np.stack([vectors[0], vectors[1] - vectors[0]])
    grams = np.einsum("id,jd->dij", basis, basis)
    span = LinearSpan.from_block_grams(("x", "y"), 4, 1, grams, np.array([0, 2, 4]))
    child = span.crossed_by_tensor(span.single(0), span.single(1), 4, 0.25)
    assert child.breaks.tolist() == [0, 2, 4]
    np.testing.assert_allclose(child.coefficients[0], [0.75, 0.25])
    angles = (np.sin(0.75 * np.pi / 2), np.sin(0.25 * np.pi / 2))
    np.testing.assert_allclose(child.coefficients[1], angles)


def test_max_segments_is_kept():
    algorithm = started(max_segments=5, population_size=4)
    rng = np.random.default_rng(0)
    for number, founder in enumerate(PROBLEM.space.founders):
        algorithm.tell(evaluation(number, founder.recipe, rng.random(16)))
    for number in range(4, 150):
        proposal = algorithm.ask()
        assert proposal.recipe.n_groups <= 5
        algorithm.tell(evaluation(number, proposal.recipe, rng.random(16) + 0.1 * number))


def test_a_space_without_span_is_refused():
    space = SearchSpace("ties", ("base", "low"), "global", 1, ())
    with pytest.raises(ConfigError, match=r"'ties' does not give\. Use a linear operator"):
        M2N2().start(space, PROBLEM.objectives, generator(0))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"population_size": 1}, "population_size is 1, must be at least 2"),
        ({"alpha": -0.5}, "alpha is -0.5"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"max_segments": 1}, "max_segments is 1"),
        ({"angle_scope": "layer"}, "angle_scope is 'layer', must be one of"),
        ({"angle_scope": "tensor", "mutation": 0.1}, "'tensor' goes with mutation: 0 only"),
        ({"capacity": "two"}, "capacity is 'two', must be one of"),
    ],
)
def test_bad_fields_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        M2N2(**config)


def test_founders_outside_the_span_are_scored_but_not_bred():
    algorithm = started()
    outside = Recipe("ties", SPAN.sources, {"weights": np.ones((1, 3)), "density": np.array([0.5])})
    algorithm.tell(evaluation(0, outside, np.ones(16)))
    algorithm.tell(evaluation(1, single(1), [1.0] * 8 + [0.0] * 8))
    algorithm.tell(evaluation(2, single(2), [0.0] * 8 + [1.0] * 8))
    assert algorithm.member_ids == (1, 2)
    assert algorithm.champion is not None
    assert algorithm.champion.candidate.id == 0
    assert {frozenset(algorithm.ask().parents) for _ in range(20)} == {frozenset({1, 2})}


def test_the_champion_survives_its_eviction():
    algorithm = started(population_size=2)
    common = [1.0] * 10 + [0.0] * 6
    algorithm.tell(evaluation(0, single(0), common))
    algorithm.tell(evaluation(1, single(1), [1.0] * 9 + [0.0] * 7))
    algorithm.tell(evaluation(2, single(2), [0.0] * 12 + [1.0] * 4))
    for number in range(3, 9):
        proposal = algorithm.ask()
        algorithm.tell(
            evaluation(number, proposal.recipe, [1.0] * 9 + [0.0] * 2 + [1.0] * 0 + [0.0] * 5)
        )
        proposal = algorithm.ask()
        algorithm.tell(evaluation(number + 100, proposal.recipe, [0.0] * 11 + [1.0] * 5))
    assert algorithm.champion.candidate.id == 0


def test_other_example_sets_stay_out_of_the_archive():
    algorithm = started()
    algorithm.tell(evaluation(0, single(0), np.zeros(16)))
    algorithm.tell(evaluation(1, single(1), np.ones(12)))
    assert algorithm.member_ids == (0,)
    assert algorithm.champion.candidate.id == 0


def test_failures_leave_no_trace():
    algorithm = started()
    algorithm.tell(Evaluation(Candidate(0, single(0)), error="out of memory"))
    proposal = algorithm.ask()
    algorithm.tell(Evaluation(Candidate(1, proposal.recipe), error="out of memory"))
    assert algorithm.member_ids == ()
    assert algorithm.champion is None
    assert algorithm.ask().origin == "warm-up"


def test_ask_and_tell_stay_fast_with_hundreds_of_segments():
    import time

    algorithm = started()
    rng = np.random.default_rng(0)
    seconds = []
    for number in range(1500):
        first = time.process_time()
        proposal = algorithm.ask()
        asked = time.process_time() - first
        told = evaluation(number, proposal.recipe, rng.random(16) * (1.0 + number))
        first = time.process_time()
        algorithm.tell(told)
        seconds.append(asked + time.process_time() - first)
    late = np.median(seconds[1000:])
    assert late < 2e-3  # 0.2 ms on an idle core
