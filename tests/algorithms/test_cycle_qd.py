"""CycleQD: rotation, archives, odds."""

import numpy as np
import pytest

from evomerge.algorithms.cycle_qd import CycleQd, elite_odds
from evomerge.core.candidate import Candidate, Evaluation
from evomerge.errors import ConfigError
from evomerge.seeding import generator
from tests.algorithms.driving import Run, objectives, task_space, weights


def run_cycle(n_objectives=3, **config) -> Run:
    def score(recipe):
        return recipe.params["weights"][0][:n_objectives]

    return Run(CycleQd(**config), task_space(), score, n_objectives=n_objectives)


def tell(algorithm, number, values):
    vector = np.array([0.1, 0.2, 0.01 * number])
    scores = {f"o{i}": np.array([v], np.float32) for i, v in enumerate(values)}
    algorithm.tell(Evaluation(Candidate(number, task_space().decode(vector)), scores))


def test_elite_odds_of_a_hand_computed_archive():
    # quality .5, .9, 1.3; descriptor 1.3, .5, .9; a second descriptor on which all agree
    odds = elite_odds(np.array([0.0, 0.5, 1.0]), np.array([[4.0, 7.0], [2.0, 7.0], [3.0, 7.0]]))
    np.testing.assert_allclose(odds, [0.5 * 1.3, 0.9 * 0.5, 1.3 * 0.9])


def test_each_ask_breeds_for_the_next_objective():
    run = run_cycle()
    for number, values in enumerate(np.eye(3) * 0.8 + 0.1):
        tell(run.algorithm, number, values)
    run.asked = 3
    origins = [item.origin for item in run.step(6)]
    assert origins == ["for o0", "for o1", "for o2"] * 2


def test_a_member_enters_the_archive_of_every_objective_by_the_others_cells():
    algorithm = run_cycle(cells=10).algorithm
    tell(algorithm, 0, [0.15, 0.95, 1.0])
    assert [list(archive) for archive in algorithm._archives] == [[(9, 9)], [(1, 9)], [(1, 9)]]
    qualities = [next(iter(archive.values())).quality for archive in algorithm._archives]
    np.testing.assert_allclose(qualities, [0.15, 0.95, 1.0], atol=1e-6)


def test_only_a_better_member_takes_a_cell():
    algorithm = run_cycle(n_objectives=2, cells=2).algorithm
    for number, first in enumerate((0.3, 0.2, 0.3, 0.4)):
        tell(algorithm, number, [first, 0.9])
    assert [member.id for member in algorithm._archives[0].values()] == [3]


def test_values_outside_the_range_count_for_the_outer_cells():
    algorithm = run_cycle(n_objectives=2, cells=4, low=-2.0, high=0.0).algorithm
    tell(algorithm, 0, [-0.9, -7.0])
    tell(algorithm, 1, [-0.9, 3.0])
    assert set(algorithm._archives[0]) == {(0,), (3,)}
    assert set(algorithm._archives[1]) == {(2,)}


def test_children_without_noise_are_means_of_their_parents_task_vectors():
    run = run_cycle(mutation_sigma=1e-9, crossover_sigma=0.01)
    run.step(12)
    known = {number: weights([item])[0] for number, item in enumerate(run.proposals)}
    bred = [item for item in run.step(12) if item.parents]
    known |= {12 + number: weights([item])[0] for number, item in enumerate(run.proposals[12:])}
    assert bred
    for child in bred:
        a, b = (known[parent] for parent in child.parents)
        np.testing.assert_allclose(weights([child])[0], (a + b) / 2.0, atol=0.03)


def test_pairs_of_models_fill_an_empty_archive():
    run = run_cycle()
    first = run.step(1)[0]
    assert (first.origin, first.parents) == ("random pair", ())
    assert weights([first])[0].sum() == pytest.approx(1.0)


def test_one_objective_is_refused():
    with pytest.raises(ConfigError, match="two objectives"):
        CycleQd().start(task_space(), objectives(1), generator(0))


@pytest.mark.parametrize("config", [{"cells": 0}, {"low": 1.0}, {"mutation_sigma": 0.0}])
def test_values_that_cannot_work_are_refused(config):
    with pytest.raises(ConfigError, match=f"algorithm.{next(iter(config))}"):
        CycleQd(**config)
