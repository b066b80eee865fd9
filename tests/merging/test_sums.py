import math

import pytest
import torch

from evomerge.merging.sums import ROW, absolute_sum, exact_column_sums, row_sums, square_sum, total


@pytest.mark.parametrize("n", [0, 1, 4095, 4096, 4097, 1_100_000])
def test_absolute_sum_matches_an_exact_sum(n):
    values = torch.randn(n, generator=torch.Generator().manual_seed(n))
    assert absolute_sum(values) == pytest.approx(
        math.fsum(values.abs().double().tolist()), rel=1e-14
    )


def test_square_sum_matches_an_exact_sum_and_leaves_its_input_alone():
    values = torch.randn(70_001, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = values.clone()
    assert square_sum(values) == pytest.approx(math.fsum((before**2).tolist()), rel=1e-14)
    assert torch.equal(values, before)
    assert square_sum(torch.full((3,), 1e-30)) == pytest.approx(3e-60)


def test_row_sums_pad_the_last_row():
    values = torch.arange(10, dtype=torch.float64)
    assert row_sums(values, 4).tolist() == [6.0, 22.0, 17.0]
    assert row_sums(values.reshape(2, 5), 5).tolist() == [[10.0], [35.0]]


def test_column_sums_are_correctly_rounded():
    parts = torch.tensor([[1e16, 1.0, -1e16], [1.0, 2.0, 3.0]], dtype=torch.float64)
    assert exact_column_sums(parts).tolist() == [1.0, 6.0]


def test_the_number_of_threads_changes_no_bit():
    values = torch.randn(3_000_000, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    results = set()
    try:
        for n_threads in (1, 2, 3, 4):
            torch.set_num_threads(n_threads)
            results.add(absolute_sum(values))
    finally:
        torch.set_num_threads(before)
    assert len(results) == 1


@pytest.mark.parametrize("length", [3, ROW, 3 * ROW + 5])
def test_a_total_is_the_same_in_any_pieces(length):
    values = torch.randn(2, length, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    run = min(length, ROW)
    whole = total([row_sums(values, run)], length)
    assert whole.tolist() == pytest.approx(values.sum(-1).tolist(), rel=1e-12)
    for runs in (1, 2):
        pieces = values.split(runs * run, dim=-1)
        assert torch.equal(total((row_sums(piece, run) for piece in pieces), length), whole)
