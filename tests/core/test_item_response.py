"""Item response models: exact optima, guards, and what a fit recovers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.item_response import (
    ABILITY_SD,
    MIXTURE_BOUNDS,
    MIXTURE_SD,
    Items,
    fit_abilities,
    fit_items,
    fit_mixture,
)
from evomerge.seeding import generator


def made_items(rng, n=200, d=2):
    return Items(rng.lognormal(0.0, 0.5, (n, d)), rng.normal(size=n))


def responses(rng, items, abilities):
    chance = items.probabilities(abilities)
    return (rng.random(chance.shape) < chance).astype(np.float64)


def test_abilities_are_at_the_top_of_the_posterior():
    rng = generator(0, "test")
    items = made_items(rng)
    truth = rng.normal(size=(5, 2))
    scores = responses(rng, items, truth)
    found = fit_abilities(items, scores)
    gradient = (scores - items.probabilities(found)) @ items.slopes - found / ABILITY_SD**2
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    assert np.abs(found - truth).max() < 0.6


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 5), n=st.integers(1, 40))
def test_a_mixture_is_the_best_point_of_its_box(seed, k, n):
    rng = generator(seed, "test")
    items = made_items(rng, n)
    parents = 2.0 * rng.normal(size=(k, 2))
    scores = np.round(rng.random(n), int(rng.integers(2)))  # right or wrong, or graded
    found = fit_mixture(items, parents, scores)

    def cost(x):
        z = items.slopes @ (x @ parents) - items.offsets
        return (np.logaddexp(0, z) - scores * z).sum() + ((x - 1 / k) ** 2).sum() / (
            2 * MIXTURE_SD**2
        )

    low, high = MIXTURE_BOUNDS
    assert (found >= low).all()
    assert (found <= high).all()
    for _ in range(20):
        near = np.clip(found + rng.normal(size=k) * 10.0 ** rng.uniform(-4, 0), low, high)
        assert cost(near) >= cost(found) - 1e-9


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_or_all_wrong_stays_bounded(value):
    rng = generator(1, "test")
    items = made_items(rng, 20)
    parents = rng.normal(size=(2, 2))
    mixture = fit_mixture(items, parents, np.full(20, value))
    assert np.isfinite(mixture).all()
    ability = fit_abilities(items, np.full((1, 20), value))
    assert np.abs(ability).max() < 5.0
    fitted, abilities = fit_items(np.full((4, 20), value), 2)
    assert np.isfinite(fitted.slopes).all()
    assert np.isfinite(abilities).all()
    assert (np.abs(fitted.probabilities(abilities) - value) < 0.5).all()


def test_no_evidence_is_equal_parts():
    items = Items(np.zeros((6, 1)), np.zeros(6))
    np.testing.assert_allclose(fit_mixture(items, np.ones((4, 1)), np.ones(6)), 0.25)


def test_fitted_items_predict_what_models_score():
    rng = generator(2, "test")
    truth = made_items(rng, 300)
    abilities = 1.5 * rng.normal(size=(60, 2))
    scores = responses(rng, truth, abilities)
    items, found = fit_items(scores, 2)
    chance = truth.probabilities(abilities)
    fitted = items.probabilities(found)
    assert np.sqrt(((fitted - chance) ** 2).mean()) < 0.13
    assert np.sqrt(((scores.mean(axis=0) - chance) ** 2).mean()) > 0.2
    again, _ = fit_items(scores, 2)
    np.testing.assert_array_equal(again.slopes, items.slopes)


def test_few_models_have_few_dimensions():
    rng = generator(3, "test")
    items, abilities = fit_items(rng.random((3, 10)), 5)
    assert items.slopes.shape == (10, 2)
    assert abilities.shape == (3, 2)
    with pytest.raises(ValueError, match="two models"):
        fit_items(rng.random((1, 10)), 1)
