"""The racing benchmark's figures, on runs made by hand, and its small mode for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.quality_run import RunResult
from benchmarks.racing import first_reach, saved

ROOT = Path(__file__).parents[2]


def run(*steps, budget=100):
    return RunResult("p", "a", 0, budget, budget, list(steps))


def test_saved_compares_where_the_full_search_first_has_its_final_score():
    full = [run((10, 0.5, 0.5), (80, 0.7, 0.7)), run((10, 0.5, 0.5), (60, 0.7, 0.7))]
    fast = [run((10, 0.5, 0.5), (20, 0.8, 0.8)), run((10, 0.5, 0.5), (16, 0.7, 0.7))]
    assert first_reach(full, 0.7) == 80
    assert saved(full, fast) == 80 / 20
    assert saved(full, [run((10, 0.5, 0.5))]) == 0.0


@pytest.mark.slow
def test_the_small_mode_ends_with_json():
    command = [sys.executable, "-m", "benchmarks.racing", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    body = json.loads(done.stdout.splitlines()[-1])
    assert set(body["example_evaluations_saved"]) == {"synthetic_experts"}
    assert body["lossless"]["synthetic_experts"]["identical"]
