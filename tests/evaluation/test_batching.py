from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.errors import ConfigError
from evomerge.evaluation.batching import (
    Limits,
    Shape,
    TokenBudget,
    filled,
    for_each_batch,
    padded_width,
)

CPU = torch.device("cpu")


def holder(n_vocabulary=None):
    return SimpleNamespace(budget=TokenBudget(CPU, n_vocabulary))


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 5000), st.sampled_from([8, 16]))
def test_padding_is_at_most_an_eighth_or_one_step(length, step):
    width = padded_width(length, step=step)
    assert length <= width < length + max(step, length / 8 + 1)
    assert padded_width(width, step=step) == width
    assert length <= padded_width(length, limit=64, step=step) <= max(length, 64)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 60), max_size=40),
    st.one_of(st.just("auto"), st.integers(1, 300)),
    st.one_of(st.none(), st.integers(1, 9)),
)
def test_every_row_is_run_once_within_the_limits(lengths, tokens, rows):
    shapes = [Shape(padded_width(length), keep=1) for length in lengths]
    seen = []

    def run(shape, batch):
        assert all(shapes[i] == shape for i in batch)
        assert len(batch) == 1 or tokens == "auto" or len(batch) * shape.width <= tokens
        assert rows is None or len(batch) <= rows
        seen.extend(batch)

    for_each_batch(holder(), shapes, Limits(tokens, rows), run)
    assert sorted(seen) == list(range(len(lengths)))


def test_a_batch_that_runs_out_of_memory_is_halved_once_and_remembered():
    subject, sizes = holder(), []

    def run(shape, batch):
        sizes.append(len(batch))
        if len(batch) * shape.width > 100:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes")

    for_each_batch(subject, [Shape(16)] * 16, Limits(), run)
    assert sizes == [16, 8, 4, 4, 4, 4]
    sizes.clear()
    for_each_batch(subject, [Shape(16)] * 16, Limits(10_000), run)
    assert sizes == [4, 4, 4, 4]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("gpu"), RuntimeError("allocate memory")])
def test_a_row_that_never_fits_and_other_errors_are_raised(error):
    def run(*_):
        raise error

    with pytest.raises((MemoryError, torch.OutOfMemoryError)):
        for_each_batch(holder(), [Shape(16)] * 4, Limits(), run)

    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes")

    with pytest.raises(RuntimeError, match="mat1"):
        for_each_batch(holder(), [Shape(16)], Limits(), broken)


def test_a_wide_vocabulary_makes_batches_smaller():
    shape = Shape(128, keep=128)
    assert holder(150_000).budget.rows(shape, Limits()) < holder(500).budget.rows(shape, Limits())
    assert holder(10**9).budget.rows(shape, Limits()) == 1


def test_small_batches_are_filled_with_their_first_row():
    assert filled([5], CPU) == [5, 5, 5, 5]
    assert filled([1, 2, 3, 4, 5], CPU) == [1, 2, 3, 4, 5]
    assert filled([5], torch.device("meta")) == [5]


def test_a_budget_below_one_token_is_refused():
    with pytest.raises(ConfigError, match="batch_tokens is 0"):
        Limits(0)
