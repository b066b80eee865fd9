import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evomerge.core.recipe import Recipe
from evomerge.merging import quantiles
from evomerge.merging.derived import derive_for, quantile_tables
from evomerge.merging.materialize import materialize
from evomerge.merging.operator import merge_operators
from evomerge.merging.quantiles import (
    QuantileTable,
    knot_count,
    kth_magnitude,
    magnitude_threshold,
    n_kept,
    n_knots,
    nearest_knot,
    order_statistics,
    quantile_knots,
    snapped,
)
from evomerge.storage.derived_cache import DerivedCache
from tests.merging.memory_source import make_sources, space_of
from tests.merging.tensors import inputs_of

fast = settings(deadline=None, max_examples=80)
SIZES = st.one_of(st.integers(1, 200), st.sampled_from([16_385, 16_386, 40_000, 300_000, 10**10]))


@st.composite
def deltas(draw):
    """A task vector of any shape: random, tied, sparse or all zero."""
    shape = draw(st.sampled_from([(), (1,), (1, 1), (7,), (5, 8), (3, 2, 4), (150, 200)]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    delta = torch.randn(shape, generator=rng)
    kind = draw(st.sampled_from(["random", "bf16", "tied", "sparse", "zero"]))
    if kind == "bf16":
        delta = delta.bfloat16().float()
    elif kind == "tied":
        delta = delta.round()
    elif kind == "sparse":
        delta = delta * (torch.rand(shape, generator=rng) < 0.1)
    elif kind == "zero":
        delta = -0.0 * delta
    return delta


def table_of(delta):
    return QuantileTable(quantile_knots(delta), delta.numel())


@given(SIZES, st.floats(0.0, 1.0))
@example(16_386, 0.5)
@fast
def test_a_snapped_rank_is_near_and_is_one_of_the_knots(n, density):
    count = n_kept(density, n)
    rank = snapped(count, n)
    assert 1 <= rank <= n
    assert abs(rank - count) <= (0 if n <= 2**14 + 1 else n / 2**15 + 0.5)
    knot = nearest_knot(count, n)
    assert 0 <= knot < n_knots(n)
    assert knot_count(knot, n) == rank
    assert snapped(rank, n) == rank
    for other in (knot - 1, knot + 1):
        if 0 <= other < n_knots(n):
            assert abs(knot_count(other, n) - count) >= abs(rank - count)


@pytest.mark.parametrize("n", [1, 2, 16_385, 16_386, 50_001])
def test_the_knots_run_from_the_largest_to_the_smallest(n):
    counts = [knot_count(j, n) for j in range(n_knots(n))]
    assert counts[0] == 1
    assert counts[-1] == n
    assert counts == sorted(set(counts))
    np.testing.assert_array_equal(quantiles._knot_counts(n), counts)


@given(deltas(), st.floats(0.0, 1.0))
@fast
def test_a_table_gives_the_thresholds_that_are_computed_without_one(delta, density):
    count, table = n_kept(density, delta.numel()), table_of(delta)
    values = delta.abs().reshape(-1).sort(descending=True).values
    assert table.at(count) == magnitude_threshold(delta, density)
    assert table.at(count) == float(values[snapped(count, len(values)) - 1])
    exact = float(values[count - 1])
    assert exact == magnitude_threshold(delta, density, exact=True)
    assert table.exactly_at(count, [delta]) == exact
    assert table.exactly_at(count, delta.reshape(-1).split(7)) == exact


@given(deltas(), st.floats(0.0, 1.0), st.floats(0.0, 1.0))
@fast
def test_the_masks_of_two_densities_nest(delta, d1, d2):
    low, high = sorted((d1, d2))
    table = table_of(delta)
    n = delta.numel()
    assert table.at(n_kept(low, n)) >= table.at(n_kept(high, n))


@given(deltas())
@fast
def test_building_a_table_leaves_the_task_vector_alone(delta):
    before = delta.clone()
    quantile_knots(delta)
    assert torch.equal(delta, before)


def test_a_task_vector_need_not_be_contiguous():
    delta = torch.arange(-6.0, 6.0).reshape(3, 4)
    for count in range(1, 13):
        assert kth_magnitude(delta.T, count) == kth_magnitude(delta.T.contiguous(), count)


def test_exact_thresholds_inside_a_bracket_of_ties():
    delta = torch.arange(40_000.0)
    delta[10_000:30_000] = 12_000.0
    table = table_of(delta[torch.randperm(40_000, generator=torch.Generator().manual_seed(0))])
    values = delta.sort(descending=True).values
    for count in (1, 2, 9_999, 10_000, 10_001, 20_000, 29_999, 30_000, 30_001, 39_999, 40_000):
        assert table.exactly_at(count, delta.split(9_000)) == float(values[count - 1])


def test_operators_read_no_task_vector_where_a_table_answers():
    base, expert = torch.zeros(100, 200), torch.randn(100, 200)
    inputs = inputs_of(base, [expert])
    table = table_of(expert)
    with_table = dataclasses.replace(inputs, quantiles=lambda _: table)
    assert with_table.threshold(0, 0.3) == inputs.threshold(0, 0.3)
    assert "deltas" not in vars(with_table)
    exact = with_table.threshold(0, 0.3, exact=True)
    assert exact == inputs.threshold(0, 0.3, exact=True)
    assert exact == magnitude_threshold(expert, 0.3, exact=True)


SHAPES = {"a.weight": (130, 140), "b.weight": (3, 50), "b.bias": (9,), "c.weight": (1, 1)}
CASES = [
    ("ties", {}),
    ("ties", {"compat": "mergekit"}),
    ("ties", {"threshold": "tensor"}),
    ("breadcrumbs", {}),
    ("breadcrumbs_ties", {"compat": "mergekit"}),
    ("localize_and_stitch", {"threshold": "tensor"}),
    ("della", {}),
    ("della_linear", {"vectors": "include"}),
    ("slerp", {}),
    ("linear", {}),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "settings"), CASES)
def test_merges_with_a_cache_have_the_same_bits(name, settings, dtype, tmp_path):
    n_experts = 1 if name == "slerp" else 2
    sources = make_sources(n_experts, dtype=dtype, shapes=SHAPES)
    space = space_of(sources)
    cls = merge_operators.get(name)
    params = {"weights": np.array([[0.7, 0.4]]), "density": np.array([0.37])}
    if name in ("linear",):
        params = {"weights": np.array([[0.2, 0.7, 0.4]])}
    elif name == "slerp":
        params = {"t": np.array([0.4])}
    recipe = Recipe(name, space.sources, params, settings=settings)
    plain = dict(materialize(recipe, space, sources, derive_for(cls, space, sources)))
    cache = DerivedCache(tmp_path)
    for _ in range(2):
        derived = derive_for(cls, space, sources, cache)
        merged = dict(materialize(recipe, space, sources, derived))
        for key, tensor in plain.items():
            assert torch.equal(merged[key], tensor), key


def test_tables_of_a_base_and_an_expert_serve_every_set_they_are_in(tmp_path):
    sources = make_sources(3)
    cache = DerivedCache(tmp_path)
    some = {name: sources[name] for name in ("base", "e3", "e1")}
    first = list(quantile_tables(space_of(some), some, cache).fill())
    assert all(filled.is_new for filled in first)
    again = list(quantile_tables(space_of(sources), sources, cache).fill())
    assert sum(filled.is_new for filled in again) == len(again) // 3
    sources["e1"].tensors = {k: v + 1 for k, v in sources["e1"].tensors.items()}
    after = list(quantile_tables(space_of(sources), sources, cache).fill())
    assert sum(filled.is_new for filled in after) == len(after) // 3


@given(deltas(), st.data())
@fast
def test_order_statistics_are_those_of_the_sorted_values(delta, data):
    values = delta.reshape(-1)
    rank = st.integers(0, values.numel() - 1)
    ranks = data.draw(st.lists(rank, min_size=1, max_size=4))
    assert order_statistics(values, ranks) == values.sort().values[ranks].tolist()


def test_order_statistics_of_numbers_at_the_limits():
    largest = torch.finfo(torch.float32).max
    values = torch.tensor([largest, -largest, 1e-45, -1e-45, 0.0, 1.0, -1.0, torch.inf])
    assert order_statistics(values, range(8)) == values.sort().values.tolist()
