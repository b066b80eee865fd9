"""No merge method holds more of a large tensor than the rows of its sources take."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import pytest

from evomerge.merging.operator import merge_operators
from tests.merging.memory_of_merges import LARGE, N_EXPERTS

# What a merge holds whatever the size of the tensor: passes, tables.
CONSTANT = 12_000_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="peaks of memory are read from /proc"),
]


@pytest.fixture(scope="module")
def held():
    command = [sys.executable, "-m", "tests.merging.memory_of_merges"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("name", merge_operators.names())
def test_a_large_tensor_takes_no_more_than_the_rows_of_its_sources(name, held):
    """With one output shard and 512 MB this bounds a merge to disk, whatever the model's size."""
    n_sources = 1 + (merge_operators.get(name).n_models or N_EXPERTS)
    limit = 2 * n_sources * math.prod(LARGE) + CONSTANT
    assert held[name]
    too_much = {mode: size / 1e6 for mode, size in held[name].items() if size > limit}
    assert not too_much, f"MB, allowed {limit / 1e6:.0f}"
