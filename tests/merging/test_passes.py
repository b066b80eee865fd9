"""Merging in stretches and blocks; what methods do with them is in their own tests."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from evomerge.errors import ConfigError
from evomerge.merging import fused
from evomerge.merging.passes import add_in_passes, blocks, row_blocks
from tests.merging.tensors import inputs_of, random_tensors


def test_a_change_of_no_base_is_refused():
    _, experts = random_tensors((3, 4), 2)
    with pytest.raises(ConfigError, match="w: task vectors need a base model"):
        add_in_passes(inputs_of(None, experts), lambda _, deltas: deltas[0])


@pytest.mark.parametrize("length", [1, 10, 25, 1000])
def test_blocks_of_rows_cover_the_tensor_once(length):
    base, experts = random_tensors((6, 2, 5), 1)
    out = torch.full((6, 2, 5), float("nan"))
    with mock.patch.object(fused, "_CPU_PASS", length):
        for part, target in row_blocks(inputs_of(base, experts), out, 10):
            assert part.experts[0].shape == target.shape
            assert len(target) == min(max(length // 10, 1), 6)
            target.copy_(part.delta(0))
    assert torch.equal(out, experts[0] - base)


def test_blocks_are_of_whole_runs_but_for_the_last():
    base, experts = random_tensors((2, 11), 1)
    with mock.patch.object(fused, "_CPU_PASS", 12):
        sizes = [
            target.shape[1]
            for _, target in blocks(inputs_of(base, experts), torch.empty(2, 11), axis=1, run=4)
        ]
    assert sizes == [4, 4, 3]
