"""R-TSVM: weights by outliers, ranks by sparsity, otherwise TSV-M."""

import numpy as np
import pytest
from hypothesis import given, settings

from evomerge.errors import ConfigError
from evomerge.merging.transforms.r_tsvm import RTsvm
from evomerge.merging.transforms.tsv_m import TsvM
from tests.merging.transforms.spectral_cases import EXPERTS, SEEDS, error, merged, random_deltas
from tests.merging.transforms.test_tsv_m import oracle


def formula(deltas, multiple):
    """Return weights and ranks by the formulas of operators.md, section 4.3."""
    sums = []
    for delta in deltas:
        sizes = np.abs(delta)
        sums.append(sizes[sizes > sizes.mean() + multiple * sizes.std()].sum())
    n = len(deltas)
    weights = [n * part / sum(sums) for part in sums] if sum(sums) else [1.0] * n
    ranks = [max(1, int(min(d.shape) / n * np.count_nonzero(d) / d.size + 1e-9)) for d in deltas]
    return weights, ranks


@settings(deadline=None, max_examples=40)
@given(n=EXPERTS, seed=SEEDS)
def test_the_merge_is_that_of_the_formula(n, seed):
    generator = np.random.default_rng(seed)
    deltas = random_deltas((11, 14), n, seed=seed)
    for delta in deltas:
        delta[generator.random(delta.shape) < generator.random() * 0.8] = 0.0
    weights, ranks = formula(deltas, 2.0)
    got = merged(RTsvm(sigma_multiple=2.0), deltas)
    assert error(got, oracle(deltas, ranks, weights)) < 1e-5


def test_without_outliers_and_zeros_it_is_tsv_m():
    deltas = [np.sign(delta) * (1.0 + 0.1 * k) for k, delta in enumerate(random_deltas((8, 8), 3))]
    assert error(merged(RTsvm(), deltas), merged(TsvM(), deltas)) < 1e-6


def test_the_expert_with_the_larger_outliers_weighs_more():
    quiet, loud = random_deltas((16, 16), 2)
    loud[3, 4] = 30.0
    weights, _ = formula([quiet, loud], 3.0)
    assert weights[1] > 1.5 > 0.5 > weights[0]


@pytest.mark.parametrize("bad", [-1.0, float("nan"), "3"])
def test_a_multiple_that_is_no_number_from_zero_is_refused(bad):
    with pytest.raises(ConfigError, match="sigma_multiple"):
        RTsvm(sigma_multiple=bad)
