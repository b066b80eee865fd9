"""benchmarks/irt.py, and the acceptance check A6 that it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.irt import synthetic

ROOT = Path(__file__).parents[2]


def test_item_response_estimates_are_better_than_a_plain_mean():
    lines: list[str] = []
    rmse = synthetic(120, lines.append)
    for n in ("20", "50"):
        assert rmse[n]["mp_irt"] <= 0.85 * rmse[n]["naive"]
        assert rmse[n]["gmp_irt"] < rmse[n]["naive"]
    assert len(lines) == 6


def test_the_command_prints_every_figure(tmp_path):
    command = [sys.executable, "benchmarks/irt.py", "--smoke", "--cache", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures["rmse"]) == {"10", "20", "50", "100"}
    rows = figures["ranking"]["synthetic_experts"]
    assert len(rows) == 3 * 4 * 3
    assert all(-1.0 <= row["kendall"] <= 1.0 and row["rmse"] >= 0.0 for row in rows)
