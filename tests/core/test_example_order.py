from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.example_order import example_weights, mixed_order
from evomerge.core.objective import Objective, Objectives

SIZES = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1)


@settings(deadline=None, max_examples=60)
@given(SIZES, st.integers(1, 200))
def test_every_first_part_holds_each_task_in_its_share(sizes, n):
    order = mixed_order(sizes)
    n_all = sum(sizes.values())
    assert sorted(order.tolist()) == list(range(n_all))
    n = min(n, n_all)
    start = 0
    for task in sorted(sizes):
        here = ((order[:n] >= start) & (order[:n] < start + sizes[task])).sum()
        assert abs(here - n * sizes[task] / n_all) <= 2.0 * len(sizes)
        start += sizes[task]


def test_the_order_is_the_same_everywhere():
    sizes = {"b": 30, "a": 20}
    np.testing.assert_array_equal(mixed_order(sizes), mixed_order(dict(reversed(sizes.items()))))


@settings(deadline=None, max_examples=30)
@given(SIZES, st.integers(0, 99))
def test_weights_give_the_mean_of_the_objectives(sizes, seed):
    rng = np.random.default_rng(seed)
    tasks = sorted(sizes)
    items = [Objective(task, {task: 1.0}) for task in tasks]
    items.append(Objective("all", {task: 1.0 + i for i, task in enumerate(tasks)}))
    objectives = Objectives(tuple(items))
    mixture = rng.dirichlet(np.ones(len(items)))
    scores = {task: rng.random(sizes[task]).astype(np.float32) for task in tasks}
    row = np.concatenate([scores[task] for task in tasks])
    wanted = sum(w * item.value(scores) for w, item in zip(mixture, items, strict=True))
    found = float((example_weights(sizes, objectives, mixture) * row).mean())
    assert abs(found - wanted) < 1e-6
