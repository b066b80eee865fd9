"""Shrunken values and claims of gains, against simulated truth."""

import numpy as np
import pytest

from evomerge.core.finalists import chance_of_no_gain, holm, shrunken
from evomerge.core.objective import Objective

MATHS = Objective("maths", {"maths": 1.0})
BOTH = Objective("both", {"maths": 3.0, "chat": 1.0})


def noisy(truth, n, rng, hard):
    """(P, n) right or wrong; what is hard is hard for all."""
    return (rng.random((len(truth), n)) < np.clip(truth[:, None] + hard, 0, 1)).astype(np.float32)


def test_shrunken_values_are_nearer_to_the_truth_and_not_too_high():
    rng = np.random.default_rng(0)
    raw, drawn, curse = [], [], []
    for _ in range(200):
        truth = rng.normal(0.5, 0.03, 12)
        scores = noisy(truth, 150, rng, rng.normal(0, 0.2, 150))
        expected = np.clip(truth, 0, 1)
        values = scores.mean(axis=1)
        better = shrunken({"maths": scores}, [MATHS])[:, 0]
        # Judged by differences: what all share by the draw of examples says nothing of a choice.
        expected = expected - expected.mean()
        raw.append(np.square(values - values.mean() - expected).mean())
        drawn.append(np.square(better - better.mean() - expected).mean())
        best = int(values.argmax())
        curse.append(
            (
                values[best] - values.mean() - expected[best],
                better[best] - values.mean() - expected[best],
            )
        )
    assert np.mean(drawn) < 0.7 * np.mean(raw)
    above, left = np.mean(curse, axis=0)
    assert above > 0.03
    assert abs(left) < 0.4 * above


def test_clear_differences_are_not_shrunken():
    scores = np.stack([np.full(50, value, np.float32) for value in (0.1, 0.5, 0.9)])
    found = shrunken({"maths": scores, "chat": scores}, [MATHS, BOTH])
    assert np.allclose(found, [[0.1] * 2, [0.5] * 2, [0.9] * 2])


def test_pure_noise_is_shrunken_to_the_mean():
    scores = np.eye(6, dtype=np.float32)  # each right once
    assert np.allclose(shrunken({"maths": scores}, [MATHS]), 1 / 6)


def test_a_lone_finalist_keeps_its_value():
    scores = np.array([[0.0, 1.0]], np.float32)
    assert shrunken({"maths": scores}, [MATHS]).tolist() == [[0.5]]


def test_right_and_wrong_are_judged_by_the_sign_test():
    better = np.array([1, 1, 1, 1, 0, 1], np.float32)
    worse = np.array([0, 0, 0, 1, 1, 1], np.float32)
    # 3 wins, 1 loss: P(at least 3 of 4) = 5 / 16
    assert chance_of_no_gain({"maths": better}, {"maths": worse}, MATHS) == pytest.approx(5 / 16)


def test_weighted_tasks_are_judged_by_their_difference():
    rng = np.random.default_rng(1)
    base = {"maths": rng.random(80), "chat": rng.random(40)}
    gain = {task: values + 0.1 + rng.normal(0, 0.01, len(values)) for task, values in base.items()}
    assert chance_of_no_gain(gain, base, BOTH) < 1e-6
    assert chance_of_no_gain(base, gain, BOTH) > 1 - 1e-6
    assert chance_of_no_gain(base, base, BOTH) == 1.0
    one = {"maths": np.array([0.3]), "chat": np.array([0.5])}
    other = {"maths": np.array([0.1]), "chat": np.array([0.2])}
    assert chance_of_no_gain(one, other, BOTH) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_false_claims_stay_below_the_level():
    rng = np.random.default_rng(2)
    false = 0
    for _ in range(300):
        parent = (rng.random(100) < 0.6).astype(np.float32)
        others = (rng.random((8, 100)) < 0.6).astype(np.float32)
        chances = [chance_of_no_gain({"maths": row}, {"maths": parent}, MATHS) for row in others]
        false += min(holm(chances)) < 0.05
    assert false / 300 < 0.07
