"""What a number of examples can tell apart."""

import numpy as np
import pytest

from evomerge.core.power import detectable_difference, examples_needed


def test_the_textbook_value():
    # (1.959964 + 0.841621) * 0.5 / sqrt(100)
    assert detectable_difference(0.5, 100) == pytest.approx(0.1400793, abs=1e-6)


@pytest.mark.parametrize(("spread", "difference"), [(0.3, 0.01), (0.5, 0.06), (1.0, 0.5)])
def test_as_many_examples_as_are_needed_detect_it(spread, difference):
    n = examples_needed(spread, difference)
    assert detectable_difference(spread, n) <= difference < detectable_difference(spread, n - 1)


def test_the_power_is_what_a_simulation_finds():
    rng = np.random.default_rng(0)
    n, spread = 200, 0.4
    shift = detectable_difference(spread, n)
    draws = rng.normal(shift, spread, size=(4000, n))
    errors = draws.std(axis=1, ddof=1) / np.sqrt(n)
    found = np.abs(draws.mean(axis=1) / errors) > 1.959964
    assert abs(found.mean() - 0.8) < 0.025


def test_a_huge_difference_still_takes_two_examples():
    assert examples_needed(0.1, 10.0) == 2
