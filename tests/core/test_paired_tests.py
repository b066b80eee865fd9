from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.paired_tests import PAIRED_TESTS, by_mcnemar, by_wilcoxon

DIFFERENCES = st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=2, max_size=60)


@pytest.mark.parametrize("name", PAIRED_TESTS)
def test_who_is_better_is_never_dropped_and_who_fails_everything_is(name):
    test = PAIRED_TESTS[name]
    assert not test(np.full(30, 0.5), 100, 0.9)
    assert not test(np.zeros(30), 100, 0.9)
    assert test(np.concatenate([np.full(60, -1.0), np.zeros(2)]), 1000, 0.9)


@pytest.mark.parametrize("name", PAIRED_TESTS)
def test_an_equal_candidate_is_dropped_no_more_often_than_promised(name):
    rng = np.random.default_rng(0)
    dropped = sum(
        PAIRED_TESTS[name](rng.choice([-1.0, 0.0, 1.0], 40, p=[0.2, 0.6, 0.2]), 10_000, 0.9)
        for _ in range(2000)
    )
    assert dropped / 2000 < 0.13


@settings(deadline=None, max_examples=60)
@given(DIFFERENCES)
def test_wilcoxon_is_scipys(differences):
    values = np.array(differences)
    unequal = values[values != 0.0]
    if len(unequal) < 6:
        return
    wanted = scipy.stats.wilcoxon(
        unequal, alternative="less", correction=True, method="approx"
    ).pvalue
    if abs(wanted - 0.1) > 1e-9:
        assert by_wilcoxon(values, 1000, 0.9) == (wanted < 0.1)


@settings(deadline=None, max_examples=60)
@given(DIFFERENCES)
def test_mcnemar_is_the_exact_binomial(differences):
    values = np.array(differences)
    better, worse = int((values > 0).sum()), int((values < 0).sum())
    wanted = scipy.stats.binom.cdf(better, better + worse, 0.5)
    if abs(wanted - 0.1) > 1e-9:
        assert by_mcnemar(values, 1000, 0.9) == (wanted < 0.1)
