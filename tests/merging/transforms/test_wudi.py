import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transform_conformance import check_delta_transform
from evomerge.merging.transforms.wudi import Wudi
from tests.merging.transforms.spectral_cases import (
    EXPERTS,
    GOLDEN,
    SEEDS,
    SHAPES,
    error,
    golden_task_vectors,
    merged,
    random_deltas,
    rotation,
    run,
)

fast = settings(deadline=None, max_examples=25)
STARTS = {"sum": 1.0, "mean": None, "zero": 0.0}


def quadratic(deltas):
    """Return curvature and pull of the loss; zero task vectors have no term."""
    used = [delta for delta in deltas if np.any(delta)]
    grams = [delta.T @ delta / np.sum(delta**2) for delta in used]
    n = deltas[0].shape[1]
    pull = sum((d @ g for d, g in zip(used, grams, strict=True)), np.zeros_like(deltas[0]))
    return sum(grams, np.zeros((n, n))), pull


def interference(tau, deltas):
    """Return the loss the paper minimises."""
    return sum(np.sum(((tau - d) @ d.T) ** 2) / np.sum(d**2) for d in deltas)


def minimiser(deltas):
    """Return the least-squares solution of tau d^T / |d| = d d^T / |d| over all experts."""
    rows = np.concatenate([delta / np.linalg.norm(delta) for delta in deltas])
    wanted = np.concatenate([delta @ delta.T / np.linalg.norm(delta) for delta in deltas])
    return np.linalg.lstsq(rows, wanted, rcond=1e-7)[0].T


def flow(start, deltas, time, n_steps=400):
    """Integrate d tau / dt = pull - tau curvature with the classical Runge-Kutta method."""
    curvature, pull = quadratic(deltas)
    tau, step = start.copy(), time / n_steps
    for _ in range(n_steps):
        k1 = pull - tau @ curvature
        k2 = pull - (tau + step / 2 * k1) @ curvature
        k3 = pull - (tau + step / 2 * k2) @ curvature
        k4 = pull - (tau + step * k3) @ curvature
        tau = tau + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return tau


@fast
@given(SHAPES, EXPERTS, SEEDS, st.sampled_from(list(STARTS)))
def test_without_a_stop_it_is_the_least_squares_solution(shape, n, seed, start):
    deltas = random_deltas(shape, n, seed=seed)
    assert error(merged(Wudi(time=math.inf, start=start), deltas), minimiser(deltas)) < 1e-4


@fast
@given(SHAPES, EXPERTS, SEEDS, st.sampled_from(list(STARTS)), st.floats(0.1, 20.0))
def test_a_stopped_flow_is_the_integral_of_the_gradient(shape, n, seed, start, time):
    deltas = random_deltas(shape, n, seed=seed)
    share = 1.0 / n if start == "mean" else STARTS[start]
    expected = flow(share * sum(deltas), deltas, time)
    assert error(merged(Wudi(time=time, start=start), deltas), expected) < 1e-5


@fast
@given(SHAPES, SEEDS, st.sampled_from([1.0, 300.0, math.inf]))
def test_one_expert_comes_back(shape, seed, time):
    (delta,) = random_deltas(shape, 1, seed=seed)
    assert error(merged(Wudi(time=time), [delta]), delta) < 1e-5


@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_it_turns_and_grows_with_the_task_vectors(shape):
    deltas = random_deltas(shape, 3)
    left, right = rotation(shape[0], 1), rotation(shape[1], 2)
    expected = merged(Wudi(), deltas)
    turned = merged(Wudi(), [left @ delta @ right for delta in deltas])
    assert error(turned, left @ expected @ right) < 1e-5
    assert error(merged(Wudi(), [-1e-4 * delta for delta in deltas]), -1e-4 * expected) < 1e-5


def test_an_expert_without_a_change_has_no_say():
    first, second = random_deltas((6, 5), 2)
    alone = run(Wudi(), [first, second])
    parts = run(Wudi(), [first, np.zeros((6, 5)), second])
    assert not parts[1].any()
    assert error(parts[0], alone[0]) < 1e-6
    assert error(parts[2], alone[1]) < 1e-6


@pytest.mark.parametrize("time", [300.0, math.inf])
def test_low_rank_task_vectors_keep_their_subspaces(time):
    deltas = random_deltas((20, 16), 3, rank=2)
    result = merged(Wudi(time=time), deltas)
    rows = np.linalg.svd(np.concatenate(deltas))[2][:6]
    assert np.isfinite(result).all()
    assert error(result @ rows.T @ rows, result) < 1e-4
    # Independent inputs: all experts can be followed at once.
    assert time < math.inf or max(error(result @ d.T, d @ d.T) for d in deltas) < 1e-4


@pytest.mark.skipif(not GOLDEN.exists(), reason="../shared/golden is not here")
@pytest.mark.parametrize("key", ["encoder.0.weight", "encoder.2.weight", "head.weight"])
def test_it_goes_where_fusion_benchs_adam_goes_and_further(key):
    """300 Adam steps of 1e-5 move each element by 3e-3 at most, so its result is near its start.

    Adam's step has the sign of the gradient, as has the flow's beginning; where the gradient is
    far from zero the two agree on the direction, and the flow, which has no such limit, ends
    lower.
    """
    from safetensors.torch import load_file

    vectors, base = golden_task_vectors()
    deltas = [delta.double().numpy() for delta in vectors[key]]
    golden = load_file(GOLDEN / "fb" / "wudi_it300.safetensors")[key]
    theirs = (golden.double() - base[key].double()).numpy()
    start = sum(deltas)
    assert np.abs(theirs - start).max() < 3.1e-3
    ours = merged(Wudi(time=1e-3), deltas) - start
    is_clear = np.abs(ours) > 0.2 * np.abs(ours).mean()
    agrees = np.sign(ours) == np.sign(theirs - start)
    assert agrees[is_clear].mean() > 0.99
    lowest = interference(merged(Wudi(time=math.inf), deltas), deltas)
    reached = interference(merged(Wudi(), deltas), deltas)
    assert lowest <= reached < interference(theirs, deltas) < interference(start, deltas)
    # Adam gives every element the same step, the flow one as long as the gradient: the flow passes
    # its result at some early time, closer than the start is, but does not meet it.
    flows = [merged(Wudi(time=float(time)), deltas) for time in np.geomspace(1e-3, 1.0, 40)]
    gap = min(np.linalg.norm(tau - theirs) for tau in flows)
    assert gap < 0.75 * np.linalg.norm(theirs - start)


@pytest.mark.parametrize("parameters", [{}, {"time": math.inf, "start": "mean"}])
def test_it_conforms(parameters):
    check_delta_transform("wudi", parameters=parameters)


def test_bad_settings_are_refused():
    for bad in ({"time": 0.0}, {"time": math.nan}, {"time": "1"}, {"start": "middle"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Wudi(**bad)


def test_convolutions_are_outputs_by_the_rest():
    deltas = random_deltas((4, 18), 2)
    flat = run(Wudi(), deltas)
    shaped = run(Wudi(), [delta.reshape(4, 2, 3, 3) for delta in deltas])
    for part, expected in zip(shaped, flat, strict=True):
        assert torch.equal(torch.as_tensor(part).flatten(1), torch.as_tensor(expected))
