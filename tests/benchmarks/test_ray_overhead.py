"""benchmarks/ray_overhead.py prints all its figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
def test_the_command_prints_every_figure() -> None:
    command = [sys.executable, "benchmarks/ray_overhead.py", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["round_trip"]["first_candidate_s"] > figures["in_process"]["first_candidate_s"]
    assert figures["overhead_ms_median"] > 0
    (row,) = figures["memory"]
    assert row["workers"] == 2
    # Mapped once for both workers; a copy that is being installed or read may add to it.
    assert 0 < row["sources_pss_mb"] < 2 * row["sources_mb"]
