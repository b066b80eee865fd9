import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.merging.low_rank import LowRank
from evomerge.merging.transforms.lora_lego import LoraLego, cluster, lego
from evomerge.testing import check_delta_transform
from tests.merging.low_rank_cases import dense, random_factors
from tests.merging.tensors import relative_error
from tests.merging.transforms.spectral_cases import inputs_of


def adapters(parts):
    inputs = inputs_of([dense(part).float() for part in parts])
    return dataclasses.replace(inputs, factors=tuple(parts))


def merge(parts, **parameters):
    (delta,) = LoraLego(**parameters).transform(adapters(parts), None)
    return delta


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_order_of_units_and_experts_does_not_matter(k, seed, random):
    parts = random_factors(6, 5, [3, 2, 4])
    units = [(part, i) for part in parts for i in range(part.rank)]
    random.shuffle(units)
    shuffled = [
        LowRank(
            torch.stack([part.a[i] for part, i in some]),
            torch.stack([part.b[:, i] for part, i in some], dim=1),
        )
        for some in (units[:3], units[3:6], units[6:])
    ]
    assert torch.equal(merge(parts, rank=k, seed=seed), merge(shuffled, rank=k, seed=seed))


def test_as_many_clusters_as_units_add_all_adapters():
    parts = random_factors(6, 5, [2, 2])
    expected = math.sqrt(2 / 4) * sum(map(dense, parts))
    assert relative_error(merge(parts, rank=9), expected) < 1e-6


def test_copies_of_an_adapter_give_it_back():
    (part,) = random_factors(6, 5, [3])
    assert relative_error(merge([part, part], rank=3), dense(part)) < 1e-6


def test_centroids_get_the_mean_norm_of_their_members():
    rng = np.random.default_rng(0)
    directions = rng.standard_normal((2, 9)) * 10
    units = [directions[i] + 0.1 * rng.standard_normal(9) for i in (0, 1, 0, 1)]
    parts = [
        LowRank(
            torch.tensor(np.array([u[:5] for u in some]), dtype=torch.float32),
            torch.tensor(np.array([u[5:] for u in some]).T, dtype=torch.float32),
        )
        for some in (units[:2], units[2:])
    ]
    merged = lego(parts, 2, torch.Generator().manual_seed(0))
    expected = []
    for members in (units[::2], units[1::2]):
        mean = np.mean(members, axis=0)
        size = np.mean([np.linalg.norm(u) for u in members])
        expected.append(mean * size / np.linalg.norm(mean))
    want = sum(np.outer(u[5:], u[:5]) for u in expected)
    assert relative_error(merged.product(), want) < 1e-6


def test_k_means_finds_groups_that_are_far_apart():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 30)
    points = torch.tensor(100.0 * np.eye(3)[truth] + rng.standard_normal((30, 3)))
    for seed in range(5):
        labels = cluster(points, 3, torch.Generator().manual_seed(seed)).numpy()
        assert len({(a, b) for a, b in zip(truth, labels, strict=True)}) == 3


def test_coinciding_points_leave_clusters_empty():
    labels = cluster(torch.ones(5, 2, dtype=torch.float64), 3, torch.Generator().manual_seed(0))
    assert len(set(labels.tolist())) == 1


def test_task_vectors_that_are_no_products_are_cut_into_units():
    parts = random_factors(6, 5, [2, 2])
    (with_svd,) = LoraLego(rank=4).transform(inputs_of([dense(part) for part in parts]), None)
    expected = math.sqrt(2 / 4) * sum(map(dense, parts))
    assert relative_error(with_svd, expected) < 1e-5


def test_it_keeps_the_contract_of_transforms():
    check_delta_transform("lora_lego", n_experts=(1, 3))


def test_an_illegal_rank_is_refused():
    with pytest.raises(ConfigError, match="rank is 0"):
        LoraLego(rank=0)
