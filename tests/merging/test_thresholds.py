import numpy as np
import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.merging.sign_consensus import n_kept
from evomerge.merging.thresholds import GlobalThresholds
from tests.merging.memory_source import make_sources, space_of


def magnitudes(sources, space, expert):
    base = sources["base"].tensors
    return np.concatenate(
        [
            (sources[expert].tensors[t.spec.name].float() - base[t.spec.name].float())
            .abs()
            .numpy()
            .reshape(-1)
            for t in space.merged
        ]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.2, 0.5, 0.999, 1.0])
def test_thresholds_are_those_of_a_full_sort(dtype, density):
    sources = make_sources(2, dtype=dtype)
    space = space_of(sources)
    thresholds = GlobalThresholds(space, sources)
    for expert in ("e1", "e2"):
        values = np.sort(magnitudes(sources, space, expert))[::-1]
        expected = values[n_kept(density, len(values)) - 1]
        assert thresholds.threshold(expert, density) == float(expected)


def test_sparse_and_tied_task_vectors_have_exact_thresholds():
    sources = make_sources(1)
    base = sources["base"].tensors
    changed = {name: tensor.clone() for name, tensor in base.items()}
    for tensor in changed.values():
        tensor.reshape(-1)[0] += 0.5
    sources["e1"].tensors = changed
    space = space_of(sources)
    thresholds = GlobalThresholds(space, sources)
    values = np.sort(magnitudes(sources, space, "e1"))[::-1]
    for density in (0.01, 0.03, 0.5):
        assert thresholds.threshold("e1", density) == values[n_kept(density, len(values)) - 1]
    assert thresholds.threshold("e1", 0.5) == 0.0


def test_a_second_threshold_of_the_same_bin_reads_nothing():
    sources = make_sources(1)
    space = space_of(sources)
    thresholds = GlobalThresholds(space, sources)
    assert not sources["e1"].reads
    first = thresholds.threshold("e1", 0.3)
    n_reads = len(sources["e1"].reads)
    assert thresholds.threshold("e1", 0.3) == first
    assert thresholds.threshold("e1", 0.3 + 1e-9) == first
    assert len(sources["e1"].reads) == n_reads
    assert thresholds.histograms["e1"].sum() == space.n_elements


def test_known_histograms_save_the_first_pass():
    sources = make_sources(1)
    space = space_of(sources)
    first = GlobalThresholds(space, sources)
    expected = first.threshold("e1", 0.3)
    n_reads = len(sources["e1"].reads)
    second = GlobalThresholds(space, sources, histograms=first.histograms)
    assert second.threshold("e1", 0.3) == expected
    assert len(sources["e1"].reads) == n_reads + n_reads // 2


def test_exact_deltas_are_used():
    sources = make_sources(1, shapes={"a.weight": (2, 3), "b.weight": (2, 2)})
    sources["e1"].deltas = {"a.weight": torch.full((2, 3), 100.0)}
    thresholds = GlobalThresholds(space_of(sources), sources)
    assert thresholds.threshold("e1", 0.6) == 100.0


def test_a_space_without_a_base_is_refused():
    sources = make_sources()
    with pytest.raises(ConfigError, match="need a base"):
        GlobalThresholds(space_of(sources, has_base=False), sources)
