"""benchmarks/lm_eval_cost.py runs and finds equal scores."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_both_sides_give_the_same_scores_and_every_figure_is_printed() -> None:
    pytest.importorskip("lm_eval")
    pytest.importorskip("accelerate")
    command = [sys.executable, "benchmarks/lm_eval_cost.py", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    for side in ("ours", "simple_evaluate", "simple_evaluate_indexed"):
        assert 0 < figures[side]["share_in_model"] < 1
        assert 0 < figures[side]["seconds_to_first"] <= figures[side]["seconds"]
    assert figures["simple_evaluate_over_ours_seconds_to_first"] > 0
