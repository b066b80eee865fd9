"""Independent seeds by name."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evomerge.seeding import derive, generator

PATHS = st.lists(st.one_of(st.text("abc01_. ", max_size=6), st.integers(-3, 3)), max_size=3).map(
    tuple
)


def test_seeds_are_the_same_in_every_release_and_on_every_machine():
    assert derive(0) == 11243728523470438572
    assert derive(7, "mask", "x", 3) == 12950614878241882784


@given(st.integers(0, 2**70), PATHS)
def test_a_seed_is_64_bits_and_repeats(seed, path):
    assert 0 <= derive(seed, *path) < 2**64
    assert derive(seed, *path) == derive(seed, *path)


@given(st.integers(0, 50), PATHS, st.integers(0, 50), PATHS)
def test_different_paths_give_different_seeds(one, path, other, otherwise):
    types = [type(part) for part in path], [type(part) for part in otherwise]
    same = (one, path, types[0]) == (other, otherwise, types[1])
    assert (derive(one, *path) == derive(other, *otherwise)) == same


def test_a_number_is_not_its_text():
    assert derive(1, 2) != derive(1, "2")
    assert derive(1, "a", "b") != derive(1, "ab")
    assert derive(1, "a") != derive(1, "a", "")
    assert derive(1, "a", "b") != derive(1, "a/str:b")


def test_generators_repeat_and_differ_by_name():
    one, again, other = generator(5, "a"), generator(5, "a"), generator(5, "b")
    first = one.random(100)
    np.testing.assert_array_equal(first, again.random(100))
    assert not np.any(first == other.random(100))


def test_seeds_of_neighbouring_candidates_are_unrelated():
    seeds = np.array([derive(0, "candidate", i) for i in range(4096)], dtype=np.uint64)
    assert len(np.unique(seeds)) == len(seeds)
    bits = (seeds[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    # Each bit is a fair coin: 4096 tosses, six standard deviations.
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / 64
