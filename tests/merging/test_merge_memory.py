"""No merge method holds more of a large tensor than the rows of its sources take."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from evomerge.merging.operator import merge_operators
from tests.merging.memory_of_merges import N_ELEMENTS, N_EXPERTS

# What a merge holds whatever the size of the tensor: passes, tables.
CONSTANT = 12_000_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # of DELLA there are many modes, each ranked anew
    pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc"),
]


@pytest.mark.parametrize("name", merge_operators.names())
def test_a_large_tensor_takes_no_more_than_the_rows_of_its_sources(name):
    """With one output shard and 512 MB this bounds a merge to disk, whatever the model's size."""
    command = [sys.executable, "-m", "tests.merging.memory_of_merges", name]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    held = json.loads(printed)[name]
    n_sources = 1 + (merge_operators.get(name).n_models or N_EXPERTS)
    limit = 2 * n_sources * N_ELEMENTS + CONSTANT
    assert held
    too_much = {mode: size / 1e6 for mode, size in held.items() if size > limit}
    assert not too_much, f"MB, allowed {limit / 1e6:.0f}"
