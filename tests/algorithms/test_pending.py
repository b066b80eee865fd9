from __future__ import annotations

import json

import numpy as np

from evomerge.algorithms.pending import Pending
from evomerge.core.recipe import Recipe


def make(first=1.0, settings=None, breaks=None):
    grouping = "global" if breaks is None else "segments"
    weights = np.array([[first, 2.0]])
    return Recipe("linear", ("a", "b"), {"weights": weights}, grouping, breaks, settings or {})


def test_equal_recipes_have_equal_keys_and_others_do_not():
    copy = Recipe.from_json(json.loads(json.dumps(make().to_json())))
    assert make().digest() == copy.digest()
    others = [
        make(np.nextafter(1.0, 2.0)),
        make(settings={"normalize": False}),
        make(breaks=np.array([0, 9])),
    ]
    assert len({recipe.digest() for recipe in [make(), *others]}) == 4


def test_equal_recipes_are_told_in_order_of_ask():
    pending = Pending()
    pending.put(make(), "first")
    pending.put(make(3.0), "other")
    pending.put(make(), "second")
    assert len(pending) == 3
    assert [pending.pop(make()) for _ in range(3)] == ["first", "second", None]
    assert pending.pop(make(3.0)) == "other"
    assert len(pending) == 0
