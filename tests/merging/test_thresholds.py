import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.merging.quantiles import n_kept
from evomerge.merging.thresholds import GlobalThresholds
from evomerge.storage.derived_cache import DerivedCache
from tests.merging.memory_source import make_sources, space_of


def magnitudes(sources, space, expert):
    """Return all magnitudes of a task vector, the largest first."""
    base = sources["base"].tensors
    parts = [
        (sources[expert].tensors[t.spec.name].float() - base[t.spec.name].float()).abs().numpy()
        for t in space.merged
    ]
    return np.sort(np.concatenate([part.reshape(-1) for part in parts]))[::-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 0.5, 0.999, 1.0])
def test_exact_thresholds_are_those_of_a_full_sort_and_the_others_just_below(dtype, density):
    sources = make_sources(2, dtype=dtype)
    space = space_of(sources)
    thresholds = GlobalThresholds(space, sources)
    for expert in ("e1", "e2"):
        values = magnitudes(sources, space, expert)
        expected = float(values[n_kept(density, len(values)) - 1])
        assert thresholds.threshold(expert, density, exact=True) == expected
        edge = thresholds.threshold(expert, density)
        assert expected * (1 - 2.0**-15) <= edge <= expected
        n_more = int((values >= edge).sum() - (values >= expected).sum())
        counts = thresholds.histogram(expert).counts
        assert 0 <= n_more < counts.max()


def test_the_masks_of_two_densities_nest():
    sources = make_sources(1)
    thresholds = GlobalThresholds(space_of(sources), sources)
    found = [thresholds.threshold("e1", d) for d in np.linspace(0.0, 1.0, 50)]
    assert found == sorted(found, reverse=True)


def test_sparse_and_tied_task_vectors_have_exact_thresholds():
    sources = make_sources(1)
    base = sources["base"].tensors
    changed = {name: tensor.clone() for name, tensor in base.items()}
    for tensor in changed.values():
        tensor.reshape(-1)[0] += 0.5
    sources["e1"].tensors = changed
    space = space_of(sources)
    thresholds = GlobalThresholds(space, sources)
    values = magnitudes(sources, space, "e1")
    for density in (0.01, 0.03, 0.5):
        wanted = values[n_kept(density, len(values)) - 1]
        assert thresholds.threshold("e1", density, exact=True) == wanted
    assert thresholds.threshold("e1", 0.5) == 0.0


def test_any_density_after_the_first_reads_nothing():
    sources = make_sources(1)
    space = space_of(sources)
    thresholds = GlobalThresholds(space, sources)
    assert not sources["e1"].reads
    thresholds.threshold("e1", 0.3)
    n_reads = len(sources["e1"].reads)
    for density in (0.01, 0.3, 0.7, 1.0):
        thresholds.threshold("e1", density)
    assert len(sources["e1"].reads) == n_reads
    assert thresholds.histogram("e1").counts.sum() == space.n_elements
    thresholds.threshold("e1", 0.3, exact=True)
    assert len(sources["e1"].reads) == 2 * n_reads
    thresholds.threshold("e1", 0.3, exact=True)
    assert len(sources["e1"].reads) == 2 * n_reads


def test_a_cache_saves_the_pass_and_a_new_expert_costs_only_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("evomerge.merging.thresholds._PART", 30)
    sources = make_sources(2)
    two = {name: sources[name] for name in ("base", "e1")}
    cache = DerivedCache(tmp_path)
    first = GlobalThresholds(space_of(two), two, cache)
    assert [filled.is_new for filled in first.fill()] == [True] * 4
    plain = GlobalThresholds(space_of(two), two)
    assert plain.threshold("e1", 0.3) == first.threshold("e1", 0.3)
    for source in sources.values():
        source.reads.clear()
    second = GlobalThresholds(space_of(sources), sources, cache)
    assert [filled.is_new for filled in second.fill()] == [False] * 4 + [True] * 4
    assert not sources["e1"].reads
    assert second.threshold("e1", 0.3) == first.threshold("e1", 0.3)
    np.testing.assert_array_equal(second.histogram("e1").bins, first.histogram("e1").bins)


def test_exact_deltas_are_used():
    sources = make_sources(1, shapes={"a.weight": (2, 3), "b.weight": (2, 2)})
    sources["e1"].deltas = {"a.weight": torch.full((2, 3), 100.0)}
    thresholds = GlobalThresholds(space_of(sources), sources)
    assert thresholds.threshold("e1", 0.6) == 100.0


def test_a_space_without_a_base_is_refused():
    sources = make_sources()
    with pytest.raises(ConfigError, match="need a base"):
        GlobalThresholds(space_of(sources, has_base=False), sources)
