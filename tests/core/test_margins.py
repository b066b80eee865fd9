"""Blurred shares of right answers: between counting and guessing, and better held out."""

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.core.margins import blur_of, blurred

MARGINS = arrays(np.float64, (3, 40), elements=st.floats(-50, 50, width=32))


@settings(deadline=None, max_examples=60)
@given(margins=MARGINS, width=st.floats(1e-3, 10))
def test_blurred_examples_rise_with_the_margin_and_mirror(margins, width):
    right = blurred(margins, width)
    assert ((right >= 0.0) & (right <= 1.0)).all()
    np.testing.assert_allclose(blurred(-margins, width), 1.0 - right, atol=1e-12)
    order = np.argsort(margins, axis=None)
    assert (np.diff(right.ravel()[order]) >= 0.0).all()
    assert blurred(np.zeros(1), width) == 0.5


def test_without_blur_answers_are_counted():
    margins = np.array([[3.0, -0.01, 0.02, -5.0]])
    np.testing.assert_allclose(blurred(margins, 1e-6), [[1.0, 0.0, 1.0, 0.0]], atol=1e-9)


def test_blurred_is_the_normal_distribution_function():
    x = np.linspace(-4.0, 4.0, 81)
    wanted = [NormalDist().cdf(value / 1.7) for value in x]
    np.testing.assert_allclose(blurred(x, 1.7), wanted, atol=0.01)


@settings(deadline=None, max_examples=60)
@given(margins=MARGINS, factor=st.floats(0.1, 10))
def test_the_width_has_the_unit_of_the_margins(margins, factor):
    assert blur_of(margins * factor) == pytest.approx(factor * blur_of(margins), rel=1e-9)
    assert blur_of(margins + 3.0) == pytest.approx(blur_of(margins), rel=1e-6, abs=1e-9)


def test_the_width_follows_the_reference_rule_and_outliers_do_not_widen_it():
    margins = np.random.default_rng(0).standard_normal((4, 20_000))
    assert blur_of(margins) == pytest.approx(1.06 * 20_000**-0.2, rel=0.02)
    margins[:, :20] = 1e6
    assert blur_of(margins) == pytest.approx(1.06 * 20_000**-0.2, rel=0.02)


def test_what_was_not_scored_is_left_out():
    margins = np.random.default_rng(1).standard_normal((2, 4000))
    hidden = margins.copy()
    hidden[:, ::2] = np.nan
    assert blur_of(hidden) == pytest.approx(blur_of(margins), rel=0.1)


def test_answers_that_are_all_alike_have_no_width():
    assert blur_of(np.full((3, 10), 2.0)) == 0.0
    assert blur_of(np.array([[1.0], [2.0]])) == 0.0


def test_the_blurred_share_is_nearer_to_the_share_among_all_examples():
    rng = np.random.default_rng(2)
    errors = []
    for centre in rng.uniform(-1.0, 1.5, size=400):
        sample = centre + 2.0 * rng.standard_normal((1, 100))
        truth = NormalDist().cdf(centre / 2.0)
        smooth = blurred(sample, blur_of(sample)).mean()
        errors.append(((sample > 0).mean() - truth, smooth - truth))
    counted, smooth = np.sqrt(np.square(errors).mean(axis=0))
    assert smooth < 0.95 * counted
