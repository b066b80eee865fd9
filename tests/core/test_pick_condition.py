"""`max(a) s.t. b>=0.7`."""

import numpy as np
import pytest

from evomerge.core.pareto import ParetoFront
from evomerge.core.picking import pick
from evomerge.errors import ConfigError

NAMES = ("math", "general", "ja score")
FRONT = ParetoFront(
    np.array([3, 5, 8, 9]),
    np.array([[0.9, 0.5, 0.1], [0.8, 0.7, 0.2], [0.8, 0.7, 0.3], [0.2, 0.9, 0.4]]),
)


@pytest.mark.parametrize(
    ("text", "candidate"),
    [
        ("max(math)", 3),
        ("max(math) s.t. general>=0.70", 8),  # of two alike the better in the rest
        (" max ( general ) s.t. math > 0.2 , math<0.9", 8),
        ("max(math) s.t. general>0.7", 9),
        ("max(ja score) s.t. math>=0.8 and general <= 6e-1", 3),
        ("max(math) s.t. ja score>=0.2, ja score<0.3", 5),
    ],
)
def test_the_best_that_keeps_the_limits(text, candidate):
    assert pick(FRONT, NAMES, text) == [candidate]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("max(math) s.t. general>=0.95", "nothing on the front keeps the limits"),
        ("max(math) s.t. general>=0.95", "general is 0.5 to 0.9"),
        ("max(maths)", "'maths' is not an objective. Did you mean 'math'?"),
        ("max(math) s.t. code>=1", "'code' is not an objective"),
        ("max(math) s.t. general", "'general' is no limit"),
        ("max(math) s.t. ", "'' is no limit"),
        ("max(math) s.t. general>=high", "'high' is not a number"),
        ("max(math) s.t. general>=nan", "'nan' is not a number"),
        ("max(math) where general>=0.5", "expected a text such as 'max"),
        ("max(__import__('os'))", "expected a text such as 'max"),
        ("maximum", "'maximum' is not a way to pick. Did you mean 'max'?"),
    ],
)
def test_refusals_say_what_is_wrong(text, says):
    with pytest.raises(ConfigError) as refused:
        pick(FRONT, NAMES, text)
    assert says in str(refused.value)


def test_an_empty_front_has_nothing_to_pick():
    empty = ParetoFront(np.zeros(0, dtype=np.int64), np.zeros((0, 3)))
    with pytest.raises(ConfigError, match="the front is empty"):
        pick(empty, NAMES, "max(math)")
