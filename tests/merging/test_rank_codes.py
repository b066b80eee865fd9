import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.merging.cached import exhaust
from evomerge.merging.della import row_ranks
from evomerge.merging.derived import derive_for, row_rank_codes
from evomerge.merging.operator import merge_operators
from evomerge.merging.rank_codes import LONGEST_ROW, has_rank_codes, rank_codes, row_length
from evomerge.storage.derived_cache import DerivedCache
from tests.merging.memory_source import make_sources, space_of

fast = settings(deadline=None, max_examples=60)
SHAPES = st.sampled_from([(), (1,), (7,), (1, 1), (5, 1), (4, 33), (3, 2, 5), (2, 300)])


def ranks_from_codes(codes):
    last = row_length(tuple(codes.shape)) - 1
    return codes.float() / last if last else torch.full(codes.shape, 0.5)


@given(SHAPES, st.sampled_from(["random", "ties", "zeros", "tiny"]), st.integers(0, 50))
@fast
def test_codes_give_the_ranks_bit_for_bit(shape, kind, seed):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    delta = {
        "random": delta,
        "ties": (2 * delta).round(),
        "zeros": -0.0 * delta,
        "tiny": delta * 1e-41,
    }[kind]
    codes = rank_codes(delta)
    assert (codes.dtype, codes.shape) == (torch.uint16, delta.shape)
    assert torch.equal(ranks_from_codes(codes), row_ranks(delta))


@pytest.mark.parametrize("shape", [(2, LONGEST_ROW), (LONGEST_ROW,), (3000, 1500)])
def test_codes_of_long_and_many_rows(shape):
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    assert torch.equal(ranks_from_codes(rank_codes(delta)), row_ranks(delta))


def test_longer_rows_and_empty_tensors_have_no_codes(tmp_path):
    assert has_rank_codes((2, LONGEST_ROW))
    assert has_rank_codes(())
    assert not has_rank_codes((2, LONGEST_ROW + 1))
    assert not has_rank_codes((2, 5, LONGEST_ROW))
    assert not has_rank_codes((0, 5))
    shapes = {"a.weight": (1, LONGEST_ROW + 1), "b.weight": (3, 4)}
    sources = make_sources(1, shapes=shapes)
    codes = row_rank_codes(space_of(sources), sources, DerivedCache(tmp_path))
    exhaust(codes)
    assert codes.of("e1", "a.weight") is None
    assert codes.of("e1", "b.weight") is not None


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
