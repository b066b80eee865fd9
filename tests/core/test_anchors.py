"""Anchors: how many, how heavy, and what is guessed from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.anchor_model import ESTIMATORS, PICKS, AnchorModel, pick_anchors, unit_range
from evomerge.core.anchors import (
    Anchors,
    clustered_anchors,
    entropy_anchors,
    estimated_scores,
    moved_to,
)
from evomerge.seeding import generator

SIZES = {"long": 60, "mid": 25, "one": 1}
N = sum(SIZES.values())
ENDS = [60, 85]


def known_scores(seed, models=5, graded=False):
    rng = generator(seed, "known")
    ability, hard = rng.normal(size=(models, 1)), rng.normal(size=N)
    chance = 1.0 / (1.0 + np.exp(hard - 1.5 * ability))
    return chance if graded else (rng.random((models, N)) < chance).astype(np.float64)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), pick=st.sampled_from(PICKS), n=st.integers(1, N))
def test_any_pick_is_n_examples_whose_weights_sum_to_one_in_every_task(seed, pick, n):
    scores = known_scores(seed, graded=seed % 2 == 1)
    anchors = pick_anchors(pick, scores, SIZES, n, generator(seed, "pick"))
    assert len(np.unique(anchors.positions)) == max(n, 3)  # no task without an example
    assert (np.diff(anchors.positions) > 0).all()
    assert (anchors.weights > 0.0).all()
    task = np.searchsorted(ENDS, anchors.positions, side="right")
    np.testing.assert_allclose(np.bincount(task, anchors.weights, minlength=3), 1.0)
    again = pick_anchors(pick, scores, SIZES, n, generator(seed, "pick"))
    np.testing.assert_array_equal(again.positions, anchors.positions)


@pytest.mark.parametrize("pick", PICKS)
def test_all_examples_are_exact(pick):
    scores = known_scores(4)
    anchors = pick_anchors(pick, scores, SIZES, N, generator(0, "pick"))
    model = AnchorModel.fit(scores, 5, SIZES, "gmp_irt")
    np.testing.assert_array_equal(model.complete(anchors, scores[0]), scores[0])


def test_clusters_weigh_as_many_examples_as_they_have():
    features = np.repeat([[0.0], [1.0], [5.0]], [30, 15, 15], axis=0)
    anchors = clustered_anchors(features, {"all": 60}, 3, generator(0, "pick"))
    assert sorted(features[anchors.positions, 0]) == [0.0, 1.0, 5.0]
    np.testing.assert_allclose(anchors.weights, [0.5, 0.25, 0.25])
    more = clustered_anchors(features, {"all": 60}, 8, generator(0, "pick"))
    mass = np.bincount(features[more.positions, 0].astype(int), more.weights)
    np.testing.assert_allclose(mass, [0.5, 0.25, 0, 0, 0, 0.25])


def test_entropy_prefers_disagreement_and_its_weights_undo_that():
    scores = np.zeros((4, 200))
    scores[:2, :50] = 1.0  # half of the models solve these
    scores[:, 50:100] = 1.0
    target = generator(1, "test").random(200)
    shares, means = [], []
    for seed in range(300):
        anchors = entropy_anchors(scores, {"all": 200}, 20, generator(seed, "pick"))
        shares.append((anchors.positions < 50).mean())
        means.append((anchors.weights * target[anchors.positions]).sum())
    assert np.mean(shares) == pytest.approx(np.log(2) / (np.log(2) + 3 * 0.05), abs=0.01)
    assert np.mean(means) == pytest.approx(target.mean(), abs=0.03)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), mean=st.floats(0, 1), edge=st.booleans())
def test_moved_scores_have_the_mean_asked_for(seed, mean, edge):
    scores = generator(seed, "test").random(9)
    moved = moved_to(np.round(scores) if edge else scores, mean)
    assert moved.mean() == pytest.approx(mean, abs=1e-9)
    assert moved.min() >= -1e-12
    assert moved.max() <= 1.0 + 1e-12


def test_the_three_estimates_are_those_of_the_paper():
    row, guesses = np.full(10, np.nan), np.linspace(0.2, 0.8, 10)
    row[[0, 5]] = [1.0, 0.0]
    anchors = Anchors(np.array([0, 5]), np.array([0.7, 0.3]))
    by_model = 0.2 * 0.7 + 0.8 * np.delete(guesses, [0, 5]).mean()
    wanted = {"weighted": 0.7, "mp_irt": by_model, "gmp_irt": 0.5 * 0.7 + 0.5 * by_model}
    for name, mean in wanted.items():
        found = estimated_scores(anchors, row, guesses, {"all": 10}, ESTIMATORS[name])
        assert found.mean() == pytest.approx(mean)
        np.testing.assert_array_equal(found[[0, 5]], [1.0, 0.0])
        assert (np.diff(found[6:]) > 0.0).all(), "what was likelier to be solved still is"


def test_plain_anchors_keep_the_guesses_of_the_model():
    row, guesses = np.full(10, np.nan), np.linspace(0.2, 0.8, 10)
    row[[0, 5]] = [1.0, 0.0]
    found = estimated_scores(
        Anchors(np.array([0, 5]), np.full(2, 0.5)), row, guesses, {"all": 10}, 0.0
    )
    np.testing.assert_allclose(found, np.where(np.isnan(row), guesses, row))


def test_scores_of_any_range_are_guessed_in_it():
    scores = known_scores(5, graded=True)
    scores[:, :60] = -8.0 + 6.0 * scores[:, :60]  # as log-likelihoods are
    low, span = unit_range(scores, SIZES)
    assert (low[60:] == 0.0).all()
    assert (span[60:] == 1.0).all()
    assert low[0] == scores[:, :60].min()
    anchors = pick_anchors("clustered", scores, SIZES, 12, generator(0, "pick"))
    row = np.full(N, np.nan)
    row[anchors.positions] = scores[1, anchors.positions]
    for name in ESTIMATORS:
        found = AnchorModel.fit(scores, 5, SIZES, name).complete(anchors, row)
        np.testing.assert_array_equal(found[anchors.positions], scores[1, anchors.positions])
        assert (found[:60] >= low[0] - 1e-9).all()
        assert (found[:60] < 0.0).all()
        assert found.mean() == pytest.approx(scores[1].mean(), abs=0.6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimates_rank_models(name):
    known, others = known_scores(6, 30)[:10], known_scores(6, 30)[10:]
    anchors = pick_anchors("clustered", known, SIZES, 25, generator(0, "pick"))
    model = AnchorModel.fit(known, 10, SIZES, name)
    guesses = []
    for scores in others:
        row = np.full(N, np.nan)
        row[anchors.positions] = scores[anchors.positions]
        guesses.append(model.complete(anchors, row).mean())
    assert np.corrcoef(guesses, others.mean(axis=1))[0, 1] > 0.85
