import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.model_space import align
from evomerge.core.recipe import Recipe
from evomerge.merging.derived import derive_for
from evomerge.merging.materialize import materialize
from evomerge.merging.quantiles import STEPS, QuantileTable, table_tensors
from evomerge.merging.sce import Sce
from evomerge.merging.variances import variance_threshold, variances
from evomerge.storage.derived_cache import DerivedCache
from tests.merging.memory_source import MemorySource


def task_vectors(n, n_experts, seed=0, scale=0.01):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(n, generator=generator) for _ in range(n_experts)]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 200), st.integers(1, 16), st.integers(0, 99))
def test_variances_are_the_population_variance(n, n_experts, seed):
    deltas = task_vectors(n, n_experts, seed)
    expected = np.stack([delta.double().numpy() for delta in deltas]).var(0)
    assert np.allclose(variances(deltas).numpy(), expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("n_experts", [2, 3, 7])
def test_equal_task_vectors_have_variance_zero(n_experts):
    delta = task_vectors(1000, 1)[0]
    assert not variances([delta] * n_experts).any()
    assert variance_threshold(variances([delta] * n_experts), 0.5, at_least=1, exact=True) == float(
        "inf"
    )


@settings(deadline=None, max_examples=30)
@given(st.floats(0.0, 1.0), st.booleans(), st.sampled_from([50, 3 * STEPS]))
def test_a_table_answers_as_the_values_do(select, exact, n):
    deltas = task_vectors(n, 3)
    for delta in deltas:
        delta[::3] = 0.0  # variance zero: never selected
    found = variances(deltas)
    table = QuantileTable.of(table_tensors(found[found > 0.0]))
    without = variance_threshold(found, select, at_least=1, exact=exact)
    assert variance_threshold(found, select, at_least=1, exact=exact, table=table) == without
    n_selected = int((found >= without).sum())
    n_nonzero = int((found > 0.0).sum())
    assert abs(n_selected - max(int(select * n_nonzero), 1)) <= (0 if exact else n_nonzero / 2**15)


def test_nothing_is_selected_when_nothing_has_to_be():
    assert variance_threshold(variances(task_vectors(9, 2)), 0.0, at_least=0, exact=True) == float(
        "inf"
    )


def test_merges_are_the_same_with_and_without_a_cache_and_in_any_order(tmp_path):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300, 256, generator=generator)
    sources = {"base": MemorySource("base", {"a.weight": base.bfloat16()})}
    for k in range(3):
        moved = base + 0.02 * torch.randn(base.shape, generator=generator)
        sources[f"e{k}"] = MemorySource(f"e{k}", {"a.weight": moved.bfloat16()})
    space = align([source.header() for source in sources.values()], has_base=True)
    cached = derive_for(Sce, space, sources, DerivedCache(tmp_path))
    assert cached.variances is not None
    results = []
    for derived in (derive_for(Sce, space, sources), cached):
        for order in (("e0", "e1", "e2"), ("e2", "e0", "e1"), ("e1", "e2")):
            recipe = Recipe("sce", ("base", *order), {"select": [0.2]})
            results.append(dict(materialize(recipe, space, sources, derived))["a.weight"])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[3])
    assert torch.equal(results[0], results[4])
    assert torch.equal(results[2], results[5])
    assert not torch.equal(results[0], results[2])
