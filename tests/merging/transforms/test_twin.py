import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.transform_conformance import check_delta_transform
from evomerge.merging.transforms.twin import Twin
from tests.merging.transforms.spectral_cases import (
    EXPERTS,
    SEEDS,
    SHAPES,
    error,
    random_deltas,
    run,
)

fast = settings(deadline=None, max_examples=40)


def oracle(deltas, scale, keep, by):
    shared = scale * sum(deltas)
    parts = []
    for delta in deltas:
        left = delta - shared
        if by == "svd":
            u, s, vt = np.linalg.svd(left, full_matrices=False)
            s[max(1, int(keep * len(s) + 1e-9)) :] = 0.0
            parts.append((u * s) @ vt)
        else:
            n = max(1, int(keep * left.size))
            smallest = np.sort(np.abs(left), axis=None)[-n]
            parts.append(left * (np.abs(left) >= smallest - 1e-12))
    return [*parts, shared]


@fast
@given(
    SHAPES,
    EXPERTS,
    SEEDS,
    st.sampled_from([0.1, 0.2, 0.3, 0.5, 1.0]),
    st.sampled_from(["svd", "magnitude"]),
)
def test_it_matches_its_formula(shape, n, seed, keep, by):
    # A power of two: the exclusive parts then round alike here and there.
    deltas = random_deltas(shape, n, seed=seed)
    got = run(Twin(scale=0.25, keep=keep, by=by), deltas)
    for part, expected in zip(got, oracle(deltas, 0.25, keep, by), strict=True):
        assert np.abs(part - expected).max() < 1e-5


def test_one_open_gate_gives_the_expert_back():
    deltas = random_deltas((9, 7), 3)
    *exclusive, shared = run(Twin(keep=1.0), deltas)
    for part, delta in zip(exclusive, deltas, strict=True):
        assert error(shared + part, delta) < 1e-6


def test_more_kept_is_closer_to_the_expert():
    deltas = random_deltas((16, 12), 2)
    for by in ("svd", "magnitude"):
        gaps = []
        for keep in (0.1, 0.3, 0.6, 1.0):
            first, _, shared = run(Twin(keep=keep, by=by), deltas)
            gaps.append(np.linalg.norm(shared + first - deltas[0]))
        assert gaps == sorted(gaps, reverse=True)
        assert gaps[-1] < 1e-5


@pytest.mark.parametrize("by", ["svd", "magnitude"])
def test_it_grows_with_the_task_vectors_and_keeps_their_order(by):
    deltas = random_deltas((9, 12), 3)
    parts = run(Twin(by=by), deltas)
    longer = run(Twin(by=by), [-0.5 * delta for delta in deltas])
    *turned, shared = run(Twin(by=by), deltas[::-1])
    for part, scaled in zip(parts, longer, strict=True):
        assert error(scaled, -0.5 * part) < 1e-5
    for part, other in zip(parts, [*turned[::-1], shared], strict=True):
        assert error(other, part) < 1e-5


@pytest.mark.parametrize("by", ["svd", "magnitude"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 6), (6, 1), (5, 8)])
def test_zero_task_vectors_give_zero(by, shape):
    parts = run(Twin(by=by), [np.zeros(shape)] * 3)
    assert len(parts) == 4
    assert not np.any(parts)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("model.norm.weight", (5,)), ("model.embed_tokens.weight", (6, 4)), ("scale", ())],
)
def test_what_is_no_linear_map_is_not_compressed(name, shape):
    transform = Twin()
    assert "not compressed" in transform.fallback(name, shape)
    deltas = [np.random.default_rng(k).standard_normal(shape) for k in range(2)]
    first, second, shared = run(transform, deltas, name=name)
    assert error(first + shared, deltas[0]) < 1e-6
    assert error(second + shared, deltas[1]) < 1e-6


def test_convolutions_are_outputs_by_the_rest():
    deltas = random_deltas((4, 18), 2)
    flat = run(Twin(), deltas)
    shaped = run(Twin(), [delta.reshape(4, 2, 3, 3) for delta in deltas])
    for part, expected in zip(shaped, flat, strict=True):
        assert torch.equal(torch.as_tensor(part).flatten(1), torch.as_tensor(expected))


@pytest.mark.parametrize("parameters", [{}, {"by": "magnitude", "keep": 0.5}])
def test_it_conforms(parameters):
    check_delta_transform("twin", parameters=parameters)


def test_bad_settings_are_refused():
    for bad in ({"keep": 0.0}, {"keep": 1.5}, {"scale": -0.1}, {"by": "random"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            Twin(**bad)
