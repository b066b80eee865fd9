"""GENOME and GENOME+ in coefficients."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.algorithms.generations import Point
from evomerge.algorithms.genome import Genome, crossover_share, random_pairs
from evomerge.algorithms.genome_plus import GenomePlus
from evomerge.core.candidate import Proposal
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from tests.algorithms.driving import Run, closeness, task_space, weights


def test_random_pairs_use_every_pair_once_before_any_twice():
    points = random_pairs(np.eye(4), 12, generator(0))
    used = [tuple(np.flatnonzero(point.vector)) for point in points]
    assert sorted(used[:6]) == sorted(used[6:]) == sorted(set(used))
    assert all(point.vector.sum() == pytest.approx(1.0) for point in points)


@given(st.lists(st.floats(-3.0, 3.0), min_size=2, max_size=6))
@settings(deadline=None, max_examples=50)
def test_crossover_shares_of_two_parents_sum_to_one(fitness):
    values = np.array(fitness)
    share = crossover_share(values, 0, 1)
    assert 0.0 <= share <= 1.0
    assert share + crossover_share(values, 1, 0) == pytest.approx(1.0)


def test_crossover_weighs_parents_by_fitness():
    assert crossover_share(np.array([0.6, 0.2]), 0, 1) == pytest.approx(0.75)
    assert crossover_share(np.array([0.0, 0.0]), 0, 1) == 0.5
    assert crossover_share(np.array([-1.0, -3.0, -5.0]), 0, 1) == pytest.approx(4.0 / 6.0)


def test_children_without_mutation_are_the_fitness_weighted_means_of_their_parents():
    algorithm = Genome(population_size=4, crossover_probability=1.0, mutation_probability=0.0)
    run = Run(algorithm, task_space(), closeness([0.2, 0.3, 0.5]))
    run.batch()
    vectors = weights(run.proposals)
    values = np.array([np.float32(run.score(item.recipe)) for item in run.proposals], float)
    for child in run.batch():
        a, b = child.parents
        expected = (values[a] * vectors[a] + values[b] * vectors[b]) / (values[a] + values[b])
        np.testing.assert_allclose(weights([child])[0], expected, atol=1e-7)


def test_mutated_copies_differ_from_their_parent():
    algorithm = Genome(
        population_size=4,
        crossover_probability=0.0,
        mutation_probability=1.0,
        gene_probability=1e-9,
    )
    run = Run(algorithm, task_space(), closeness([0.2, 0.3, 0.5]))
    run.batch()
    first = weights(run.proposals)
    copies = run.batch()
    assert len(copies) == 4
    for copy in copies:
        assert (weights([copy])[0] != first[copy.parents[0]]).sum() == 1


def test_the_best_member_survives_every_generation():
    algorithm = Genome(population_size=6, elites=1, patience=1000)
    run = Run(algorithm, task_space(), closeness([0.1, 0.6, 0.3]))
    run.batch()
    for _ in range(12):
        told = max(run.score(item.recipe) for item in run.proposals)
        run.batch()  # its ask selected the members from all that was told before
        assert algorithm._members[0].fitness == pytest.approx(told, abs=1e-6)
        assert len(algorithm._members) <= 6


def test_founders_compete_with_the_first_generation():
    space = task_space()
    best = space.decode(np.array([0.2, 0.3, 0.5]))
    algorithm = Genome(population_size=4)
    run = Run(algorithm, space, closeness([0.2, 0.3, 0.5]))
    run.tell(Proposal(best))
    run.batch()
    run.batch()
    assert algorithm._members[0].id == 0


def test_stagnation_begins_anew_from_random_pairs_and_the_best():
    algorithm = Genome(population_size=4, patience=2)
    run = Run(algorithm, task_space(), lambda recipe: 0.5)
    origins = [{item.origin for item in run.batch()} for _ in range(4)]
    assert origins[0] == {"random pair"}
    assert "random pair" not in origins[1] | origins[2]
    assert origins[3] == {"random pair"}
    assert len(algorithm._members) == 1


def test_a_generation_always_scores_something():
    algorithm = Genome(
        population_size=2, crossover_probability=1e-12, mutation_probability=0.0, patience=100
    )
    run = Run(algorithm, task_space(), closeness([0.2, 0.3, 0.5]))
    run.batch()
    assert [item.origin for item in run.batch()] == ["crossover"]


def test_genome_finds_a_mixture_inside_the_simplex():
    run = Run(Genome(), task_space(), closeness([0.2, 0.3, 0.5]), seed=3)
    while run.asked < 150:
        run.batch()
    assert max(run.score(item.recipe) for item in run.proposals) > 0.99


@pytest.mark.parametrize(
    "config",
    [
        {"population_size": 1},
        {"crossover_probability": 1.5},
        {"crossover_probability": 0.0, "mutation_probability": 0.0},
        {"elites": 11},
        {"patience": 0},
        {"sigma": float("nan")},
    ],
)
def test_values_that_cannot_work_are_refused(config):
    with pytest.raises(ConfigError, match=f"algorithm.{next(iter(config))}"):
        Genome(**config)


def plus(**config):
    settings = {"population_size": 4, "patience": 1000} | config
    return GenomePlus(**settings)


def test_succession_moves_every_member_and_scores_it_again():
    algorithm = plus()
    run = Run(algorithm, task_space(), closeness([0.2, 0.3, 0.5]))
    run.batch()
    moves = run.batch()
    assert [item.origin for item in moves] == ["succession"] * 4
    run.algorithm.ask()  # the members are now the moved ones, with their own values
    values = {member.id: member.fitness for member in algorithm._members}
    assert set(values) == {4, 5, 6, 7}
    for number, item in enumerate(moves, start=4):
        assert values[number] == pytest.approx(run.score(item.recipe), abs=1e-6)


def test_a_members_best_is_a_copy_that_stays_behind():
    algorithm = plus(inertia=0.0, cognitive=0.0, social=0.0, repel=1.0, step=1.0)
    run = Run(algorithm, task_space(), closeness([0.34, 0.33, 0.33]))
    run.batch()
    run.batch()
    run.algorithm.ask()
    moved = [p for p in algorithm._particles.values() if p.best is not p.position]
    assert moved
    assert all(p.best.fitness >= p.position.fitness for p in moved)


def test_the_step_shrinks_once_per_move_of_all():
    algorithm = plus(step=0.5, step_decay=0.9)
    run = Run(algorithm, task_space(), closeness([0.2, 0.3, 0.5]))
    n_moves = 0
    for _ in range(9):
        n_moves += run.batch()[0].origin == "succession"
    assert n_moves == 4
    assert algorithm._step == pytest.approx(0.5 * 0.9**4)


def test_a_member_whose_move_failed_stays_where_it_was():
    algorithm = plus()
    run = Run(algorithm, task_space(), closeness([0.2, 0.3, 0.5]))
    run.batch()
    run.score = lambda recipe: None
    run.batch()
    run.algorithm.ask()
    assert {member.id for member in algorithm._members} == {0, 1, 2, 3}


def test_a_newcomer_heads_for_another_member():
    algorithm = plus()
    run = Run(algorithm, task_space(), closeness([0.2, 0.3, 0.5]))
    run.batch()
    run.algorithm.ask()
    members = [particle.best for particle in algorithm._movers]
    newcomer = Point(np.array([0.1, 0.2, 0.3]), "", value=0.0, id=99)
    towards = newcomer.vector + algorithm._particle(newcomer).velocity
    assert any(np.allclose(towards, member.vector) for member in members)


def test_no_pull_at_all_is_refused():
    with pytest.raises(ConfigError, match="use genome"):
        GenomePlus(inertia=0.0, cognitive=0.0, social=0.0, repel=0.0)
