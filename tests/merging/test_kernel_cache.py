"""Compiled kernels on disk: found by the next process, and never a reason to fail."""

import os
import subprocess
import sys

MERGE = """
import sys
import numba.core.caching
import torch
from evomerge.merging.fused import MIN_ELEMENTS
from evomerge.merging.kept import Keep, merge_kept
from evomerge.merging.operator import TensorInputs

if "no folder" in sys.argv:
    numba.core.caching.CompileResultCacheImpl._locator_classes = []
base, expert = torch.zeros(MIN_ELEMENTS), torch.linspace(0.0, 1.0, MIN_ELEMENTS)
tensors = TensorInputs("w", base, (expert,), torch.float32)
for keep in (Keep(low=0.5), Keep(high=0.5)):
    merged = merge_kept(tensors, [keep], [1.0], vote="unweighted", divisor="none")
    expected = expert * ((expert >= keep.low) & (expert <= keep.high))
    assert torch.equal(merged, expected) and merged in tensors.finite
"""


def merge(folder, *arguments):
    """Merge in a new process; return the files of kernels that there are then."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", MERGE, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*.nb?")}


def test_the_next_process_compiles_nothing_and_damage_heals(tmp_path):
    files = merge(tmp_path)
    # An index for each: one that all share gets mixed up when two processes write it at once.
    kernels = [file.name for file in files if "kept_sum" in file.name]
    assert sorted(name.rpartition(".")[2] for name in kernels) == ["nbc", "nbc", "nbi", "nbi"]
    assert merge(tmp_path) == files
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    merge(tmp_path)
    assert min(file.stat().st_size for file in files) > 100


def test_kernels_work_where_nothing_can_be_kept(tmp_path):
    assert merge(tmp_path, "no folder") == {}
