"""A merge of models that do not fit: 1.1 billion parameters to disk within 2 GB.

Two limits of the kernel hold for the merging process. RLIMIT_DATA is 2 GB: private writable
memory, reserved or used, which a merge cannot give back. RLIMIT_AS is 2 GB beside the maps of the
source files, so that everything else (libraries, output, caches) must fit. The sources' own pages
(6.6 GB) are the system's cache, which it takes back at will: no process is charged for them, and a
plain RLIMIT_AS would refuse the maps before a byte is read. A memory cgroup would need rights
that tests do not have.
"""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.side_process import Side, SideRun
from benchmarks.synthetic_models import SIZES, ModelSet, build_models
from evomerge.storage.model_folder import ModelFolder

N_EXPERTS = 2
LIMIT_BYTES = 2_000_000_000
SHARD_BYTES = 500_000_000
ROOM_BYTES = 512_000_000
NEEDED_DISK = 12_000_000_000

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA and /proc are Linux's"),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Iterator[ModelSet]:
    folder = tmp_path_factory.mktemp("billion")
    free = shutil.disk_usage(folder).free
    if free < NEEDED_DISK:
        pytest.skip(f"needs {NEEDED_DISK / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free")
    yield build_models(folder, "1b", N_EXPERTS, shard_bytes=SHARD_BYTES)
    shutil.rmtree(folder)


def merge_within(limit: int, models: ModelSet, case: str, out: Path) -> SideRun:
    """Merge to disk in a process that the kernel limits to `limit` bytes beside its sources."""
    side = Side(sys.executable, "benchmarks.export_side")
    try:
        mapped = sum(file.stat().st_size for file in models.base.parent.rglob("*.safetensors"))
        resource.prlimit(side.start(), resource.RLIMIT_DATA, (limit, limit))
        resource.prlimit(side.start(), resource.RLIMIT_AS, (limit + mapped, limit + mapped))
        folders = [str(folder) for folder in models.folders]
        job = {"case": case, "folders": folders, "out": str(out), "max_shard_bytes": SHARD_BYTES}
        return side.run(job)
    finally:
        side.close()


@pytest.mark.parametrize("case", ["linear", "ties", "ties_global", "dare_ties_l1", "della", "sce"])
def test_a_billion_parameters_are_merged_to_disk_within_two_gigabytes(case, models, tmp_path):
    run = merge_within(LIMIT_BYTES, models, case, tmp_path / "merged")
    merged = ModelFolder("merged", tmp_path / "merged")
    assert {name: spec.shape for name, spec in merged.specs.items()} == SIZES["1b"].shapes()
    shards = sorted((tmp_path / "merged").glob("*.safetensors"))
    assert len(shards) == 5
    shutil.rmtree(tmp_path / "merged")
    largest = max(spec.n_elements for spec in merged.specs.values()) * 2 * (1 + N_EXPERTS)
    assert run.peak_anonymous_mb * 1e6 <= SHARD_BYTES + largest + ROOM_BYTES


def test_the_limit_is_enforced(models, tmp_path):
    with pytest.raises(RuntimeError, match="failed"):
        merge_within(600_000_000, models, "linear", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
