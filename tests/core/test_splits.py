"""An example's split follows from its content alone."""

import hashlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.core.splits import split_of, split_positions

SHARES = {"search": 0.6, "validation": 0.2, "test": 0.2}
DIGESTS = tuple(hashlib.sha256(str(i).encode()).hexdigest()[:16] for i in range(3000))


def test_shares_are_about_kept():
    found = split_positions(DIGESTS, SHARES)
    assert [round(len(kept) / 3000, 1) for kept in found.values()] == [0.6, 0.2, 0.2]


def test_a_split_without_a_share_is_empty():
    found = split_positions(DIGESTS, {"search": 0.5, "validation": 0.0, "test": 0.5})
    assert len(found["validation"]) == 0


@settings(max_examples=30)
@given(order=st.permutations(range(40)), extra=st.lists(st.sampled_from(DIGESTS), max_size=5))
def test_order_company_and_copies_change_nothing(order, extra):
    digests = [DIGESTS[i] for i in order] + extra
    found = split_positions(digests, SHARES)
    assert sorted(np.concatenate(list(found.values())).tolist()) == list(range(len(digests)))
    for name, kept in found.items():
        assert all(split_of(digests[i], SHARES) == name for i in kept)
    parts = [{digests[i] for i in kept} for kept in found.values()]
    assert sum(map(len, parts)) == len(set(digests))


def test_the_assignment_never_changes():
    # A run that was begun with one version goes on with another: these are for good.
    found = [split_of(digest, SHARES) for digest in DIGESTS[:6]]
    assert found == ["search", "search", "validation", "search", "search", "validation"]
