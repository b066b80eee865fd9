import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.cached import exhaust
from evomerge.merging.derived import derive_for, row_rank_codes
from evomerge.merging.operator import merge_operators
from evomerge.merging.rank_codes import _sort_by_torch, last_code, rank_codes, row_length
from evomerge.storage.derived_cache import DerivedCache
from tests.merging.memory_source import make_sources, space_of

fast = settings(deadline=None, max_examples=60)
SHAPES = st.sampled_from([(), (1,), (7,), (1, 1), (5, 1), (4, 33), (3, 2, 5), (2, 300)])


def places(delta):
    """Return each element's place in its row by a plain stable sort."""
    rows = delta.abs().reshape(-1, row_length(tuple(delta.shape)))
    order = rows.argsort(dim=1, stable=True)
    return order.argsort(dim=1).reshape(delta.shape)


def sorted_by_torch(delta):
    """Return the codes as they are sorted out on a GPU."""
    codes = torch.empty(delta.reshape(-1, row_length(tuple(delta.shape))).shape, dtype=torch.int32)
    _sort_by_torch(delta.reshape(-1).split(1000), codes)
    return codes.reshape(delta.shape).long()


@given(SHAPES, st.sampled_from(["random", "ties", "zeros", "tiny"]), st.integers(0, 50))
@fast
def test_codes_are_places_and_torch_sorts_out_the_same(shape, kind, seed):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    delta = {
        "random": delta,
        "ties": (2 * delta).round(),
        "zeros": -0.0 * delta,
        "tiny": delta * 1e-41,
    }[kind]
    codes = rank_codes(delta)
    assert (codes.dtype, codes.shape) == (torch.uint16, delta.shape)
    assert torch.equal(codes.long(), places(delta))
    assert torch.equal(sorted_by_torch(delta), codes.long())


def test_ranks_run_from_the_smallest_to_the_largest_of_a_row():
    delta = torch.tensor([[3.0, -1.0, 2.0], [0.0, 0.0, -5.0]])
    assert rank_codes(delta).tolist() == [[2, 0, 1], [0, 1, 2]]
    assert rank_codes(torch.tensor([[2.0], [1.0]])).tolist() == [[0], [0]]


def test_rows_of_a_convolution_are_its_output_channels():
    delta = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(rank_codes(delta), rank_codes(delta.reshape(4, -1)).reshape(delta.shape))


@pytest.mark.parametrize("shape", [(2, 1 << 16), (1 << 16,), (3000, 1500)])
def test_codes_of_long_and_many_rows(shape):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    assert torch.equal(rank_codes(delta).long(), places(delta))


@pytest.mark.parametrize("n", [(1 << 16) + 1, 100_003, 3 << 17])
def test_longer_rows_count_their_places_in_as_many_steps(n):
    delta = torch.randn((3, n), generator=torch.Generator().manual_seed(n))
    codes, exact = rank_codes(delta), places(delta)
    assert torch.equal(codes.long(), sorted_by_torch(delta))
    steps = exact.double() / (n - 1) * last_code(n)
    assert float((codes.double() - steps).abs().max()) <= 0.5
    assert (int(codes.long().min()), int(codes.long().max())) == (0, last_code(n))


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (2, 0, 3)])
def test_empty_tensors_have_empty_codes(shape):
    assert rank_codes(torch.zeros(shape)).shape == shape


def test_codes_of_long_rows_are_prepared(tmp_path):
    name, n = "a.weight", (1 << 16) + 1
    sources = make_sources(1, shapes={name: (2, n)})
    codes = row_rank_codes(space_of(sources), sources, DerivedCache(tmp_path))
    exhaust(codes)
    found = codes.of("e1", name)["codes"]
    base, expert = (sources[key].read(name).float() for key in ("base", "e1"))
    assert torch.equal(found, rank_codes((expert - base).reshape(2, n)))


def test_codes_that_a_search_leaves_out_are_used_once_they_are_prepared(tmp_path):
    sources = make_sources(2)
    space, cache = space_of(sources), DerivedCache(tmp_path)
    name = space.merged[0].spec.name
    della = merge_operators.get("della")
    derived = derive_for(della, space, sources, cache, leave_out=("rank-codes",))
    assert derived.rank_codes("e1", name) is None
    exhaust(row_rank_codes(space, sources, cache))
    assert derived.rank_codes("e1", name) is not None
    assert derived.quantiles("e1", name) is None
