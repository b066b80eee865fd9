import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transform_conformance import check_delta_transform
from evomerge.merging.transforms.opt_merge import OptMerge
from evomerge.merging.transforms.wudi import Wudi
from tests.merging.transforms.spectral_cases import (
    EXPERTS,
    SEEDS,
    SHAPES,
    error,
    merged,
    random_deltas,
    rotation,
    run,
)

fast = settings(deadline=None, max_examples=25)


def cut(matrix, rank):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank], s[:rank, None] * vt[:rank]


def minimiser(deltas, rank, *, centred, share):
    """Return the solution nearest to the start, as a least-squares problem in float64."""
    start = share * sum(deltas)
    mean = sum(deltas) / len(deltas) if centred else np.zeros_like(deltas[0])
    rows, wanted = [], []
    for delta in deltas:
        subspace = cut(delta, rank)[1] / np.linalg.norm(delta)
        target = mean + cut(delta - mean, rank)[0]
        rows.append(subspace)
        wanted.append(subspace @ (target - start).T)
    moved = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=1e-7)[0]
    return start + moved.T


@fast
@given(SHAPES, EXPERTS, SEEDS, st.booleans(), st.sampled_from(["mean", "sum", "zero"]))
def test_without_a_stop_it_is_the_nearest_least_squares_solution(shape, n, seed, centred, start):
    deltas = random_deltas(shape, n, seed=seed)
    rank = max(1, -(-min(shape) // n))
    share = {"mean": 1.0 / n, "sum": 1.0, "zero": 0.0}[start]
    expected = minimiser(deltas, rank, centred=centred, share=share)
    got = merged(OptMerge(time=math.inf, centred=centred, start=start), deltas)
    assert error(got, expected) < 1e-3


@fast
@given(SHAPES, EXPERTS, SEEDS)
def test_full_rank_is_wudi(shape, n, seed):
    deltas = random_deltas(shape, n, seed=seed)
    got = run(OptMerge(rank=1.0), deltas)
    for part, expected in zip(got, run(Wudi(start="mean"), deltas), strict=True):
        assert error(part, expected) < 1e-4


def test_one_expert_comes_back():
    (delta,) = random_deltas((9, 6), 1)
    assert error(merged(OptMerge(), [delta]), delta) < 1e-5


@pytest.mark.parametrize("centred", [False, True])
def test_it_turns_and_grows_with_the_task_vectors(centred):
    deltas = random_deltas((12, 9), 3)
    transform = OptMerge(centred=centred)
    left, right = rotation(12, 1), rotation(9, 2)
    expected = merged(transform, deltas)
    turned = merged(transform, [left @ delta @ right for delta in deltas])
    assert error(turned, left @ expected @ right) < 1e-4
    assert error(merged(transform, [-1e-4 * d for d in deltas]), -1e-4 * expected) < 1e-5


def test_outside_the_subspaces_the_start_stays():
    deltas = random_deltas((8, 30), 2)
    rows = np.concatenate([cut(delta, 4)[1] for delta in deltas])
    rest = np.linalg.svd(rows)[2][8:]
    result = merged(OptMerge(time=math.inf), deltas)
    assert error(result @ rest.T, sum(deltas) / 2 @ rest.T) < 1e-5


@pytest.mark.parametrize("parameters", [{}, {"centred": True, "start": "sum", "rank": 0.85}])
def test_it_conforms(parameters):
    check_delta_transform("opt_merge", parameters=parameters)


def test_bad_settings_are_refused():
    for bad in ({"rank": 0.0}, {"rank": 2.0}, {"time": -1.0}, {"start": "end"}, {"centred": 1}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            OptMerge(**bad)
